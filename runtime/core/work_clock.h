// Nanoseconds for figures, from a clock that only goes on.
#ifndef RUNNEL_WORK_CLOCK_H_
#define RUNNEL_WORK_CLOCK_H_

#include <time.h>

#include <cstdint>

namespace runnel {

inline int64_t WorkClock() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return int64_t{time.tv_sec} * 1000000000 + time.tv_nsec;
}

}  // namespace runnel

#endif  // RUNNEL_WORK_CLOCK_H_
