// What decides which frames a head keeps. One file a family: policy_*.cc.
#ifndef RUNNEL_CACHE_POLICY_H_
#define RUNNEL_CACHE_POLICY_H_

#include "cache.h"
#include "slots.h"

namespace runnel {

// A frame that comes in. number: from the start of the stream. retain: what the model says that it is worth.
struct Arrival {
  int64_t number, position;
  float retain;
  int64_t token_class;
};

// Policies that share a function call it in a lambda: copying it would need code that runs before main.
struct Policy {
  // The slots that these parameters take, at most.
  int64_t (*slots)(const int64_t* params);
  // The slot of a frame that comes in: the count of kept ones appends, a lower one is overwritten.
  int64_t (*slot)(const Slots& slots, const Arrival& frame, const int64_t* params);
  // What a frame is ranked by when it comes in; null: 0.
  float (*arrive)(const Arrival& frame);
  // What else its mark begins with; null: 0.
  float (*extra)(const Arrival& frame);
  // After attention; mass: for each slot, the sum of its weights over the query heads, of which there are `group`.
  // Null: nothing to do.
  void (*attended)(const Slots& slots, const Arrival& frame, const int64_t* params, const float* mass, int64_t group);
};

extern const Policy kFullPolicy, kWindowPolicy, kHeavyPolicy, kScissorhandsPolicy, kRetainPolicy, kSnapPolicy,
    kMergePolicy, kExternalPolicy, kPoolsPolicy;

constexpr int64_t kMostFamily = 8;

const Policy& PolicyOf(Family family);

// The kept slot of the lowest rank among those that are neither among the first frames nor among the latest `window`
// ones, the frame that comes in included; the oldest of equals. -1: there is none.
int64_t LowestRank(const Slots& slots, const Arrival& frame, int64_t window);

// Adds to a rank; what rounding takes away goes into the mark's extra.
inline void AddMass(Mark& mark, float more) {
  const float rest = more - mark.extra, sum = mark.mass + rest;
  mark.extra = (sum - mark.mass) - rest;
  mark.mass = sum;
}

}  // namespace runnel

#endif  // RUNNEL_CACHE_POLICY_H_
