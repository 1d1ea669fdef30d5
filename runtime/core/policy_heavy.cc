// Keeps the frames that attention looked at most, and the latest ones: heavy hitters (H2O, arXiv 2306.14048).
#include "cache_policy.h"

namespace runnel {

int64_t LowestRank(const Slots& slots, const Arrival& frame, int64_t window) {
  const int64_t recent = frame.position - window;
  int64_t found = -1;
  for (int64_t s = slots.head().sink; s < slots.count(); ++s) {
    const Mark& mark = slots.mark(s);
    if (mark.position > recent) continue;
    if (found >= 0) {
      const Mark& best = slots.mark(found);
      if (mark.mass > best.mass || (mark.mass == best.mass && mark.position > best.position)) continue;
    }
    found = s;
  }
  return found;
}

const Policy kHeavyPolicy = {
    [](const int64_t* params) { return params[kSink] + params[kHeavy] + params[kWindow]; },
    [](const Slots& slots, const Arrival& frame, const int64_t* params) {
      return slots.count() < slots.head().slots ? slots.count() : LowestRank(slots, frame, params[kWindow]);
    },
    nullptr,
    nullptr,
    [](const Slots& slots, const Arrival&, const int64_t*, const float* mass, int64_t) {
      for (int64_t s = 0; s < slots.count(); ++s) AddMass(slots.mark(s), mass[s]);
    },
};

}  // namespace runnel
