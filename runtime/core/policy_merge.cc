// Keeps the frames that attention looked at most as anchors, and the latest ones; what else there was is merged into
// the nearest anchor (Elastic Cache, arXiv 2407.18121).
#include "cache_policy.h"

namespace runnel {
namespace {

// The slot whose frame is nearest in the text, among those that could be given up themselves. -1: there is none.
int64_t Nearest(const Slots& slots, int64_t to, int64_t recent) {
  int64_t found = -1, least = 0;
  for (int64_t s = slots.head().sink; s < slots.count(); ++s) {
    if (s == to || slots.mark(s).position > recent) continue;
    const int64_t apart = slots.mark(s).position - slots.mark(to).position, size = apart < 0 ? -apart : apart;
    if (found >= 0 && (size > least || (size == least && slots.mark(s).position > slots.mark(found).position)))
      continue;
    found = s;
    least = size;
  }
  return found;
}

}  // namespace

const Policy kMergePolicy = {
    [](const int64_t* params) { return params[kSink] + params[kHeavy] + params[kWindow]; },
    [](const Slots& slots, const Arrival& frame, const int64_t* params) {
      if (slots.count() < slots.head().slots) return slots.count();
      const int64_t lowest = LowestRank(slots, frame, params[kWindow]);
      const int64_t anchor = Nearest(slots, lowest, frame.position - params[kWindow]);
      if (anchor >= 0) slots.Merge(lowest, anchor);
      return lowest;
    },
    nullptr,
    [](const Arrival&) { return 1.0f; },
    [](const Slots& slots, const Arrival&, const int64_t*, const float* mass, int64_t) {
      for (int64_t s = 0; s < slots.count(); ++s) slots.mark(s).mass += mass[s];
    },
};

}  // namespace runnel
