// The instruction ATTEND: frames come into a cache, one after another, and attend to what it keeps.
#ifndef RUNNEL_ATTEND_H_
#define RUNNEL_ATTEND_H_

#include "step.h"

namespace runnel {

// Bytes of scratch that a cache's attention works in.
int64_t AttendWorkBytes(const Cache& cache);

int RunAttend(const Step& step, const Instruction& instruction, int64_t low, int64_t high);

}  // namespace runnel

#endif  // RUNNEL_ATTEND_H_
