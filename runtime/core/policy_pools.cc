// Keeps the first frames, and the latest ones of each class in a pool of their own: what is said, shown and heard does
// not push each other out (as in StreamingVLM, arXiv 2510.09608).
#include "cache_policy.h"

namespace runnel {
namespace {

// The slots of a class; one without a pool shares that of text.
int64_t PoolOf(const int64_t* params, int64_t* token_class) {
  constexpr int kPool[kTokenClasses] = {kWindow, kSystem, kVision, kAudio};
  if (params[kPool[*token_class]] == 0) *token_class = 0;
  return params[kPool[*token_class]];
}

}  // namespace

const Policy kPoolsPolicy = {
    [](const int64_t* params) {
      return params[kSink] + params[kWindow] + params[kSystem] + params[kVision] + params[kAudio];
    },
    [](const Slots& slots, const Arrival& frame, const int64_t* params) {
      if (frame.number < slots.head().sink) return slots.count();
      int64_t own = frame.token_class, taken = 0, oldest = -1;
      const int64_t pool = PoolOf(params, &own);
      for (int64_t s = slots.head().sink; s < slots.count(); ++s) {
        int64_t other = static_cast<int64_t>(slots.mark(s).extra);
        if (other < 0 || other >= kTokenClasses) return int64_t{-1};
        PoolOf(params, &other);
        if (other != own) continue;
        ++taken;
        if (oldest < 0 || slots.mark(s).position < slots.mark(oldest).position) oldest = s;
      }
      return taken < pool ? slots.count() : oldest;
    },
    nullptr,
    [](const Arrival& frame) { return static_cast<float>(frame.token_class); },
    nullptr,
};

}  // namespace runnel
