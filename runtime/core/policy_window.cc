// Keeps the first frames and the latest ones: attention sinks and a window (StreamingLLM, arXiv 2309.17453).
#include "cache_policy.h"

namespace runnel {

const Policy kWindowPolicy = {
    [](const int64_t* params) { return params[kSink] + params[kWindow]; },
    [](const Slots& slots, const Arrival& frame, const int64_t*) {
      const int64_t sink = slots.head().sink, window = slots.head().slots - sink;
      return frame.number < sink ? frame.number : sink + (frame.number - sink) % window;
    },
    nullptr,
    nullptr,
    nullptr,
};

}  // namespace runnel
