// What decides which frames a head keeps. One file a family: policy_*.cc.
#ifndef RUNNEL_CACHE_POLICY_H_
#define RUNNEL_CACHE_POLICY_H_

#include "cache.h"

namespace runnel {

// A frame that comes in. number: from the start of the stream.
struct Arrival {
  int64_t number, position;
  float retain;
};

// A head's slots, as a policy sees them.
struct HeadView {
  HeadState& state;
  Mark* marks;
  const int64_t* params;
};

struct Policy {
  // The slots that these parameters take, at most.
  int64_t (*slots)(const int64_t* params);
  // The slot of a frame that comes in: the count of kept ones appends, a lower one is overwritten.
  int64_t (*slot)(const HeadView& head, const Arrival& frame);
  // What a mark's mass becomes when the frame comes in, and what attention adds to it; null: nothing.
  float (*arrive)(const Arrival& frame);
  void (*attended)(const HeadView& head, const Arrival& frame, const float* mass);
};

extern const Policy kFullPolicy, kWindowPolicy;

constexpr int64_t kMostFamily = 1;

const Policy& PolicyOf(Family family);

}  // namespace runnel

#endif  // RUNNEL_CACHE_POLICY_H_
