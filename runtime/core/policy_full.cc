// Keeps every frame, as far as the slots go.
#include "cache_policy.h"

namespace runnel {

const Policy kFullPolicy = {
    [](const int64_t* params) { return params[kSlots]; },
    [](const HeadView& head, const Arrival&) { return head.state.count; },
    nullptr,
    nullptr,
};

}  // namespace runnel
