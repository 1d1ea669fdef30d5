// Keeps every frame, as far as the slots go.
#include "cache_policy.h"

namespace runnel {

const Policy kFullPolicy = {
    [](const int64_t* params) { return params[kSlots]; },
    [](const Slots& slots, const Arrival&, const int64_t*) { return slots.count(); },
    nullptr,
    nullptr,
    nullptr,
};

}  // namespace runnel
