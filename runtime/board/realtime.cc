#include "realtime.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include <cstdio>

#include "say.h"

namespace runnel_run {
namespace {

volatile sig_atomic_t stopped = 0;

void Stop(int) { stopped = 1; }

}  // namespace

int64_t Now() {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<int64_t>(now.tv_sec) * 1000000000 + now.tv_nsec;
}

void SleepUntil(int64_t time) {
  struct timespec until = {};
  until.tv_sec = static_cast<time_t>(time / 1000000000);
  until.tv_nsec = static_cast<long>(time % 1000000000);
  while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, nullptr) == EINTR && !stopped) {
  }
}

void CatchSignals() {
  struct sigaction action = {};
  action.sa_handler = Stop;  // without SA_RESTART, so that a read that waits comes back
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

bool Stopped() { return stopped != 0; }

int64_t PageFaults() {
  struct rusage usage;
#ifdef RUSAGE_THREAD
  getrusage(RUSAGE_THREAD, &usage);
#else
  getrusage(RUSAGE_SELF, &usage);
#endif
  return usage.ru_minflt + usage.ru_majflt;
}

int64_t ResidentBytes() {
  long pages = 0, resident = 0;
  FILE* file = fopen("/proc/self/statm", "r");
  if (!file) return 0;
  if (fscanf(file, "%ld %ld", &pages, &resident) != 2) resident = 0;
  fclose(file);
  return static_cast<int64_t>(resident) * sysconf(_SC_PAGESIZE);
}

void LockMemory(bool as_used) {
#ifndef MCL_ONFAULT
#define MCL_ONFAULT 4
#endif
  if (mlockall(MCL_CURRENT | MCL_FUTURE | (as_used ? MCL_ONFAULT : 0)) != 0) {
    Refuse("the memory cannot be locked (%s); raise the limit with 'ulimit -l unlimited', or run with CAP_IPC_LOCK.",
           strerror(errno));
  }
}

void UsePriority(int priority) {
  struct sched_param wanted = {};
  wanted.sched_priority = priority;
  if (sched_setscheduler(0, SCHED_FIFO, &wanted) != 0) {
    Refuse("priority %d is not allowed (%s); give 1 to %d and run with CAP_SYS_NICE.", priority, strerror(errno),
           sched_get_priority_max(SCHED_FIFO));
  }
}

void UseCore(int core) {
  cpu_set_t cores;
  CPU_ZERO(&cores);
  if (core < CPU_SETSIZE) CPU_SET(static_cast<size_t>(core), &cores);
  if (sched_setaffinity(0, sizeof cores, &cores) != 0) Refuse("core %d cannot be used (%s).", core, strerror(errno));
}

}  // namespace runnel_run
