// Keeps the frames that the model itself ranks highest when they come in, and the latest ones: retaining heads (Locret,
// arXiv 2410.01805).
#include "cache_policy.h"

namespace runnel {

const Policy kRetainPolicy = {
    [](const int64_t* params) { return kHeavyPolicy.slots(params); },
    [](const Slots& slots, const Arrival& frame, const int64_t* params) {
      return kHeavyPolicy.slot(slots, frame, params);
    },
    [](const Arrival& frame) { return frame.retain; },
    nullptr,
    nullptr,
};

}  // namespace runnel
