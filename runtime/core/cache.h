// Caches of keys and values: what a plan says of them, and where they lie in a stream's state (docs/kv.md).
#ifndef RUNNEL_CACHE_H_
#define RUNNEL_CACHE_H_

#include <cstddef>
#include <cstdint>

#include "plan.h"

namespace runnel {

constexpr int64_t kCacheAlign = 64;
constexpr int64_t kMostSlots = int64_t{1} << 24;
constexpr int64_t kMostDim = 4096;  // features of a head

// What a slot holds.
struct Mark {
  int64_t position;
  float mass;   // what a policy ranks slots by
  float extra;  // how many frames were merged into it, or what rounding took from the mass
};
static_assert(sizeof(Mark) == 16, "part of a state's layout");

// One KV head of one cache. The kept slots are 0 … count - 1; sink: how many of them are never given away. marks, keys,
// values, undo: offsets from the start of the state. Scales of quantised keys and values lie behind them. undo: what
// the latest frames took the place of, 0 where a stream cannot go back.
struct HeadState {
  int64_t slots, count, sink, family;
  int64_t marks, keys, values, undo;
  int64_t dropped;
  int64_t zero[3];
};
static_assert(sizeof(HeadState) == 96, "part of a state's layout");

// Lies behind a plan's rings; behind it lie the heads' states, the last angles, and the slots.
struct CacheState {
  int64_t start;  // position of the stream's frame 0
  int64_t params[kCacheParams];
  int64_t low;          // the first frame that the stream can go back to, where that is not too long ago
  int64_t token_class;  // of the frames that come in
  int64_t zero[5];
  int64_t angle_position[2];  // of the angles that are kept, -1: none
  int64_t angle_table[2];
};

// Whether elements of so many bits are codes, with a scale a slot.
inline bool Coded(int32_t bits) { return bits == 8 || bits == 4; }
// Bytes of what is moved at once: an element, or two codes of 4 bits.
inline int64_t ItemBytes(int32_t bits) { return bits < 16 ? 1 : bits / 8; }
inline int64_t KeyBytes(const Cache& cache, int64_t slots) { return slots * cache.key_dim * cache.key_bits / 8; }
inline int64_t ValueBytes(const Cache& cache, int64_t slots) { return slots * cache.value_dim * cache.value_bits / 8; }

// The bytes of a state with these parameters.
int64_t CacheStateBytes(const Program& program, const int64_t* params);

inline CacheState* CachesOf(const Program& program, void* state) {
  return reinterpret_cast<CacheState*>(static_cast<uint8_t*>(state) + program.rings_end);
}
inline const CacheState* CachesOf(const Program& program, const void* state) {
  return reinterpret_cast<const CacheState*>(static_cast<const uint8_t*>(state) + program.rings_end);
}
inline HeadState* HeadsOf(const Program& program, void* state) {
  return reinterpret_cast<HeadState*>(CachesOf(program, state) + 1);
}
// The angles of two positions, cosines before sines.
inline float* AnglesOf(const Program& program, void* state) {
  return reinterpret_cast<float*>(HeadsOf(program, state) + program.cache_heads.size);
}

// What frames are: text and what else has a pool of slots.
constexpr int64_t kTokenClasses = 4;

// Whether slots are counted by rank: positions among what is kept, where frames drop out of the middle.
inline bool Ranked(const Program& program) {
  return program.rules.positions == Positions::kContiguous && program.rules.family != Family::kFull &&
         program.rules.family != Family::kWindow;
}

// Whether a policy changes one slot at a time, so that a stream can go back.
bool GoesBack(const Program& program);
// Bytes of what one frame takes the place of.
int64_t UndoBytes(const Cache& cache, const HeadState& head);

// The most slots of a head of a cache.
int64_t MostSlots(const Program& program, const Cache& cache, const int64_t* params);

// Whether a stream may have these parameters.
bool TakesParams(const Program& program, const int64_t* params, int64_t start);

// Empties the caches of a state whose parameters and start are set.
void StartCaches(const Program& program, void* state);

// Copies a state of so many frames but for slots that hold nothing.
void ForkCaches(const Program& program, const uint8_t* from, uint8_t* to, int64_t frames);

// Whether bytes behind the rings are caches as this program makes them. `bytes` need not be aligned.
bool CheckCaches(const Program& program, const uint8_t* bytes, int64_t size, int64_t frames);

// Whether the caches can take so many more frames, or so many at all where the stream starts again.
bool CachesTake(const Program& program, const void* state, int64_t frames, bool restart);

}  // namespace runnel

#endif  // RUNNEL_CACHE_H_
