// Time, signals, and what real time asks of the system.
#ifndef RUNNEL_BOARD_REALTIME_H_
#define RUNNEL_BOARD_REALTIME_H_

#include <cstdint>

namespace runnel_run {

int64_t Now();  // nanoseconds of a clock that never goes back
void SleepUntil(int64_t time);

// From here on SIGINT and SIGTERM ask for an end instead of ending the program.
void CatchSignals();
bool Stopped();

// Page faults of this thread so far.
int64_t PageFaults();
// Bytes of this process in memory.
int64_t ResidentBytes();

// Each exits with a sentence where the system does not allow it.
void LockMemory(bool as_used);   // as_used: not what is reserved only
void UsePriority(int priority);  // SCHED_FIFO
void UseCore(int core);

}  // namespace runnel_run

#endif  // RUNNEL_BOARD_REALTIME_H_
