// The block of memory that is a stream's state: a header, then rings.
#ifndef RUNNEL_STATE_H_
#define RUNNEL_STATE_H_

#include <cstring>

#include "plan.h"
#include "step.h"

struct rn_program : runnel::Program {};

namespace runnel {

constexpr int64_t kStateVersion = 1;
constexpr int64_t kFlushed = 1, kBroken = 2, kPoisoned = 4, kStale = 8;
constexpr uint32_t kNaN = 0x7fc00000u;
constexpr char kMagic[8] = {'R', 'N', 'L', 'S', 'T', 'A', 'T', 'E'};

// At the start of every state block; a snapshot is the block. stale: a static input changed since the last step.
struct StateHeader {
  char magic[8];
  int64_t version;
  uint8_t hash[32];
  int64_t layout;
  int64_t bytes;
  int64_t t;
  int64_t flags;
  Counters counters;
  int64_t zero[2];
};
static_assert(sizeof(StateHeader) == kStateHeaderBytes, "the header's size is part of the plan's contract");

inline bool Aligned(const void* p) { return p && (reinterpret_cast<uintptr_t>(p) & 63) == 0; }

inline bool IsStateOf(const Program& program, const StateHeader& header) {
  return memcmp(header.magic, kMagic, sizeof kMagic) == 0 && header.layout == program.layout &&
         memcmp(header.hash, program.hash, sizeof header.hash) == 0 && header.version == kStateVersion;
}

// Puts a state at the start of a stream. What static inputs hold, which lies before the rings, stays where `keep`.
void StartState(const Program& program, void* state, bool poison, bool keep);

}  // namespace runnel

#endif  // RUNNEL_STATE_H_
