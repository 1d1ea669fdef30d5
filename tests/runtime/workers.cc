// Rounds of tasks on workers, from one thread and from two at once, with rests long enough to fall asleep. Every task
// runs once, and what tasks wrote is there when their round is over. Prints the number of rounds that went right.
#include "workers.h"

#include <pthread.h>
#include <unistd.h>

#include "harness.h"

namespace {

constexpr int kRounds = 4000, kMost = 32;

struct Round {
  int value;
  int* done;  // by task
};

int32_t Task(const void* context, int32_t index) {
  const Round& round = *static_cast<const Round*>(context);
  round.done[index] += round.value;
  return index == 5 && round.value % 7 == 0 ? 3 : 0;
}

struct Caller {
  rn_workers* workers;
  int right;
};

void* Call(void* own) {
  auto& caller = *static_cast<Caller*>(own);
  for (int i = 0; i < kRounds; ++i) {
    int done[kMost] = {};
    const int32_t count = i % kMost + 1;
    const Round round{i + 1, done};
    const int32_t code = runnel::RunTasks(caller.workers, Task, &round, count);
    bool right = code == (count > 5 && round.value % 7 == 0 ? 3 : 0);
    for (int32_t k = 0; k < kMost; ++k) right = right && done[k] == (k < count ? i + 1 : 0);
    caller.right += right;
    if (i % 512 == 511) usleep(20000);
  }
  return nullptr;
}

}  // namespace

int main() {
  rn_workers* workers = nullptr;
  if (rn_workers_open(0, &workers) != RN_BAD_ARGUMENT || workers) return 2;
  if (rn_workers_open(RN_MOST_WORKERS + 1, &workers) != RN_BAD_ARGUMENT || workers) return 2;
  if (rn_workers_open(4, &workers) != RN_OK || runnel::ThreadsOf(workers) != 4) return 2;
  Caller first{workers, 0}, second{workers, 0}, alone{nullptr, 0};
  pthread_t thread;
  if (pthread_create(&thread, nullptr, Call, &second) != 0) return 3;
  Call(&first);
  pthread_join(thread, nullptr);
  rn_workers_close(workers);
  Call(&alone);
  printf("%d %d %d %d\n", first.right, second.right, alone.right, kRounds);
  return 0;
}
