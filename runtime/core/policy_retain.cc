// Keeps the frames that the model itself ranks highest when they come in, and the latest ones: retaining heads (Locret,
// arXiv 2410.01805).
#include "cache_policy.h"

namespace runnel {

const Policy kRetainPolicy = {
    kHeavyPolicy.slots, kHeavyPolicy.slot, [](const Arrival& frame) { return frame.retain; }, nullptr, nullptr,
};

}  // namespace runnel
