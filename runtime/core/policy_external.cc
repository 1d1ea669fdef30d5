// Keeps every frame until the caller gives some up (rn_cache_drop), and adds up what attention gave them.
#include "cache_policy.h"

namespace runnel {

const Policy kExternalPolicy = {
    [](const int64_t* params) { return kFullPolicy.slots(params); },
    [](const Slots& slots, const Arrival& frame, const int64_t* params) {
      return kFullPolicy.slot(slots, frame, params);
    },
    nullptr,
    nullptr,
    [](const Slots& slots, const Arrival& frame, const int64_t* params, const float* mass, int64_t group) {
      kHeavyPolicy.attended(slots, frame, params, mass, group);
    },
};

}  // namespace runnel
