// What steps took.
#ifndef RUNNEL_BOARD_FIGURES_H_
#define RUNNEL_BOARD_FIGURES_H_

#include <cstdint>

#include "say.h"

namespace runnel_run {

// Nanoseconds of every step; room is made before, so that taking one down touches no new page.
class Times {
 public:
  explicit Times(size_t most);
  void Put(int64_t nanoseconds);
  size_t size() const { return times_.size; }
  bool full() const { return times_.size == most_; }
  void Sort();
  // After Sort: seconds, between the two nearest as numpy.percentile.
  double Percentile(double percent) const;
  double total() const { return static_cast<double>(total_) * 1e-9; }

 private:
  size_t most_;
  int64_t total_ = 0, seen_ = 0;
  Array<int64_t> times_;
};

}  // namespace runnel_run

#endif  // RUNNEL_BOARD_FIGURES_H_
