#include "figures.h"

namespace runnel_run {

Times::Times(size_t most) : most_(most) {
  memset(times_.Add(most), 0, most * sizeof(int64_t));
  times_.size = 0;
}

void Times::Put(int64_t nanoseconds) {
  total_ += nanoseconds;
  if (times_.size < most_) {
    times_.data[times_.size++] = nanoseconds;
  } else {
    times_.data[seen_ % static_cast<int64_t>(most_)] = nanoseconds;  // of a long run the last ones are kept
  }
  ++seen_;
}

void Times::Sort() {
  qsort(times_.data, times_.size, sizeof(int64_t), [](const void* a, const void* b) {
    const int64_t x = *static_cast<const int64_t*>(a), y = *static_cast<const int64_t*>(b);
    return x < y ? -1 : x > y ? 1 : 0;
  });
}

double Times::Percentile(double percent) const {
  if (!times_.size) return 0;
  const double at = percent / 100 * static_cast<double>(times_.size - 1);
  const auto low = static_cast<size_t>(at);
  const size_t high = low + 1 < times_.size ? low + 1 : low;
  const auto a = static_cast<double>(times_.data[low]), b = static_cast<double>(times_.data[high]);
  return (a + (b - a) * (at - static_cast<double>(low))) * 1e-9;
}

}  // namespace runnel_run
