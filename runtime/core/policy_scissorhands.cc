// Keeps the frames that attention looked at more than at the average one most often of late, and the latest ones
// (Scissorhands, arXiv 2305.17118). What counts as of late fades over about `observe` queries.
#include "cache_policy.h"

namespace runnel {

const Policy kScissorhandsPolicy = {
    [](const int64_t* params) { return kHeavyPolicy.slots(params); },
    [](const Slots& slots, const Arrival& frame, const int64_t* params) {
      return kHeavyPolicy.slot(slots, frame, params);
    },
    nullptr,
    nullptr,
    [](const Slots& slots, const Arrival&, const int64_t* params, const float* mass, int64_t group) {
      const float keep = 1.0f - 1.0f / static_cast<float>(params[kObserve]);
      const float average = static_cast<float>(group) / static_cast<float>(slots.count());
      for (int64_t s = 0; s < slots.count(); ++s) {
        Mark& mark = slots.mark(s);
        mark.mass = mark.mass * keep + (mass[s] > average ? 1.0f : 0.0f);
      }
    },
};

}  // namespace runnel
