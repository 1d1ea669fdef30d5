// Keeps every frame until the caller gives some up (rn_cache_drop), and adds up what attention gave them.
#include "cache_policy.h"

namespace runnel {

const Policy kExternalPolicy = {
    kFullPolicy.slots, kFullPolicy.slot, nullptr, nullptr, kHeavyPolicy.attended,
};

}  // namespace runnel
