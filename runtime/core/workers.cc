#include "workers.h"

#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <new>

#include "platform.h"
#include "runnel.h"

namespace {

constexpr int32_t kMostTasks = 32;
constexpr int kTurns = 1 << 13;  // looks at the word before a thread goes to sleep, some tens of microseconds

inline void Pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__) || defined(__arm__)
  __asm__ volatile("yield");
#endif
}

}  // namespace

// Tasks of a round are bits of a word, taken by whoever clears them; the round's number is above them. What the round
// is may be read once a bit of it was taken, since the next round begins only when all that was taken is done.
struct rn_workers {
  std::atomic<uint64_t> open{0};
  std::atomic<int32_t> left{0};
  std::atomic<int32_t> failed{0};
  std::atomic<int32_t> asleep{0};
  std::atomic<bool> busy{false};
  std::atomic<bool> stop{false};
  int32_t (*task)(const void*, int32_t) = nullptr;
  const void* context = nullptr;
  int32_t threads = 1;  // with the caller's
  int32_t started = 0;
  pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
  pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
  struct Thread {
    rn_workers* workers;
    int32_t number;
    pthread_t id;
  } thread[RN_MOST_WORKERS];

  // Takes a task, one of this thread's own share first; -1: none is left.
  int32_t Take(int32_t number) {
    uint64_t word = open.load(std::memory_order_acquire);
    for (;;) {
      const auto tasks = static_cast<uint32_t>(word);
      if (tasks == 0) return -1;
      uint32_t own = 0;
      for (int32_t i = number; i < kMostTasks; i += threads) own |= tasks & (uint32_t{1} << i);
      const int32_t index = __builtin_ctz(own ? own : tasks);
      if (open.compare_exchange_weak(word, word & ~(uint64_t{1} << index), std::memory_order_acq_rel)) return index;
    }
  }

  void Work(int32_t number) {
    for (int32_t index = Take(number); index >= 0; index = Take(number)) {
      if (int32_t result = task(context, index)) failed.store(result, std::memory_order_relaxed);
      left.fetch_sub(1, std::memory_order_release);
    }
  }

  bool Idle() const { return static_cast<uint32_t>(open.load(std::memory_order_seq_cst)) == 0; }

  void Sleep() {
    pthread_mutex_lock(&lock);
    asleep.fetch_add(1, std::memory_order_seq_cst);
    while (Idle() && !stop.load(std::memory_order_acquire)) pthread_cond_wait(&wake, &lock);
    asleep.fetch_sub(1, std::memory_order_seq_cst);
    pthread_mutex_unlock(&lock);
  }

  void Wake() {
    if (asleep.load(std::memory_order_seq_cst) == 0) return;
    pthread_mutex_lock(&lock);
    pthread_cond_broadcast(&wake);
    pthread_mutex_unlock(&lock);
  }

  static void* Live(void* own) {
    auto* thread = static_cast<Thread*>(own);
    rn_workers& workers = *thread->workers;
    runnel::FlushDenormals mode;  // as every step has it, so that bits are the same on any thread
    while (!workers.stop.load(std::memory_order_acquire)) {
      workers.Work(thread->number);
      int turn = 0;
      while (turn < kTurns && workers.Idle()) {
        ++turn;
        Pause();
      }
      if (turn == kTurns) workers.Sleep();
    }
    return nullptr;
  }
};

namespace runnel {

int32_t ThreadsOf(const rn_workers* workers) { return workers ? workers->threads : 1; }

int32_t RunTasks(rn_workers* workers, int32_t (*task)(const void*, int32_t), const void* context, int32_t count) {
  if (!workers || count < 2 || workers->busy.exchange(true, std::memory_order_acquire)) {
    int32_t result = 0;
    for (int32_t i = 0; i < count; ++i) {
      if (int32_t code = task(context, i)) result = code;
    }
    return result;
  }
  workers->task = task;
  workers->context = context;
  workers->failed.store(0, std::memory_order_relaxed);
  workers->left.store(count, std::memory_order_relaxed);
  const uint64_t round = (workers->open.load(std::memory_order_relaxed) >> 32) + 1;
  const uint64_t tasks = count == kMostTasks ? ~uint32_t{0} : (uint32_t{1} << count) - 1;
  workers->open.store(round << 32 | tasks, std::memory_order_seq_cst);
  workers->Wake();
  workers->Work(0);
  for (int turn = 0; workers->left.load(std::memory_order_acquire) != 0;) {
    if (++turn % kTurns == 0) sched_yield();  // the thread that holds the last task may not be running
    Pause();
  }
  const int32_t result = workers->failed.load(std::memory_order_relaxed);
  workers->busy.store(false, std::memory_order_release);
  return result;
}

}  // namespace runnel

extern "C" {

int rn_workers_open(int32_t threads, rn_workers** out) {
  if (!out) return RN_BAD_ARGUMENT;
  *out = nullptr;
  if (threads < 1 || threads > RN_MOST_WORKERS) return RN_BAD_ARGUMENT;
  void* block = runnel::PlatformAlloc(sizeof(rn_workers));
  if (!block) return RN_NO_MEMORY;
  auto* workers = new (block) rn_workers;
  workers->threads = threads;
  for (int32_t i = 1; i < threads; ++i) {
    auto& thread = workers->thread[i];
    thread = {workers, i, {}};
    if (pthread_create(&thread.id, nullptr, rn_workers::Live, &thread) != 0) {
      rn_workers_close(workers);
      return RN_NO_MEMORY;
    }
    workers->started = i;
  }
  *out = workers;
  return RN_OK;
}

void rn_workers_close(rn_workers* workers) {
  if (!workers) return;
  workers->stop.store(true, std::memory_order_release);
  pthread_mutex_lock(&workers->lock);
  pthread_cond_broadcast(&workers->wake);
  pthread_mutex_unlock(&workers->lock);
  for (int32_t i = 1; i <= workers->started; ++i) pthread_join(workers->thread[i].id, nullptr);
  pthread_cond_destroy(&workers->wake);
  pthread_mutex_destroy(&workers->lock);
  workers->~rn_workers();
  runnel::PlatformFree(workers);
}

}  // extern "C"
