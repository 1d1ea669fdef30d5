#include "storage.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "platform.h"
#include "runnel_paging.h"

namespace runnel {
namespace {

constexpr uint32_t kRingEntries = 64;
constexpr size_t kAlignment = 4096;
constexpr int32_t kTries = 8;  // for a place in a full queue

int64_t Now() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return int64_t{time.tv_sec} * 1000000000 + time.tv_nsec;
}

}  // namespace

// The rings that are shared with the kernel (io_uring(7)).
struct Storage::Ring {
  int file;
  void *sq, *cq;
  size_t sq_bytes, cq_bytes, sqes_bytes;
  uint32_t *sq_tail, *sq_mask, *sq_array;
  uint32_t *cq_head, *cq_tail, *cq_mask;
  io_uring_sqe* sqes;
  io_uring_cqe* cqes;
};

struct Storage::Pool {
  pthread_mutex_t lock;
  pthread_cond_t work, done;
  int file;
  bool closing;
  int32_t waiting[kTickets], first, count;
  Storage* storage;
  int32_t started;
  pthread_t thread[kMostReads];
};

int Storage::Open(const char* path, int way, int32_t threads) {
  direct_ = true;
  file_ = open(path, O_RDONLY | O_CLOEXEC | O_DIRECT);
  if (file_ >= 0) {  // some file systems refuse the flag, others the first read
    void* page = mmap(nullptr, kAlignment, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    const bool readable = page != MAP_FAILED && pread(file_, page, kAlignment, 0) >= 0;
    if (page != MAP_FAILED) munmap(page, kAlignment);
    if (!readable) {
      close(file_);
      file_ = -1;
    }
  }
  if (file_ < 0) {
    direct_ = false;
    file_ = open(path, O_RDONLY | O_CLOEXEC);
    if (file_ < 0) return errno;
  }
  way_ = RN_IO_PLAIN;
  if ((way == RN_IO_AUTO || way == RN_IO_URING) && OpenRing()) {
    way_ = RN_IO_URING;
    return 0;
  }
  if (way == RN_IO_URING) return ENOSYS;
  if (way == RN_IO_PLAIN || threads < 1) return 0;
  pool_ = static_cast<Pool*>(PlatformAlloc(sizeof(Pool)));
  if (!pool_) return ENOMEM;
  pthread_mutex_init(&pool_->lock, nullptr);
  pthread_condattr_t monotonic;
  pthread_condattr_init(&monotonic);
  pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
  pthread_cond_init(&pool_->work, nullptr);
  pthread_cond_init(&pool_->done, &monotonic);
  pthread_condattr_destroy(&monotonic);
  pool_->file = file_;
  pool_->storage = this;
  const int32_t most = threads < kMostReads ? threads : kMostReads;
  for (; pool_->started < most; ++pool_->started) {
    if (const int error = pthread_create(&pool_->thread[pool_->started], nullptr, Work, pool_)) return error;
  }
  way_ = RN_IO_THREADS;
  threads_ = most;
  return 0;
}

void Storage::Close() {
  if (pool_) {
    pthread_mutex_lock(&pool_->lock);
    pool_->closing = true;
    pthread_cond_broadcast(&pool_->work);
    pthread_mutex_unlock(&pool_->lock);
    for (int32_t i = 0; i < pool_->started; ++i) pthread_join(pool_->thread[i], nullptr);
    pthread_cond_destroy(&pool_->work);
    pthread_cond_destroy(&pool_->done);
    pthread_mutex_destroy(&pool_->lock);
    PlatformFree(pool_);
    pool_ = nullptr;
  }
  if (ring_) {
    for (const Read& read : reads_) {  // the kernel writes to memory that may be the caller's no more
      bool waited;
      if (read.result == kPending) Wait(static_cast<int32_t>(&read - reads_), 0, &waited);
    }
    munmap(ring_->sqes, ring_->sqes_bytes);
    munmap(ring_->cq, ring_->cq_bytes);
    munmap(ring_->sq, ring_->sq_bytes);
    close(ring_->file);
    PlatformFree(ring_);
    ring_ = nullptr;
  }
  if (file_ >= 0) close(file_);
  file_ = -1;
}

int Storage::ReadAll(int file, const Read& read) {
  size_t again = SIZE_MAX;  // where a read began anew
  for (size_t have = 0; have < read.bytes;) {
    const ssize_t got = pread(file, read.to + have, read.bytes - have, static_cast<off_t>(read.offset + have));
    if (got > 0) {
      have += static_cast<size_t>(got);
    } else if (got == 0) {
      return kShortRead;
    } else if (errno == EINVAL && have % kAlignment) {  // past the cache reads begin at multiples
      have -= have % kAlignment;
      if (have == again) return kShortRead;
      again = have;
    } else if (errno != EINTR) {
      return errno;
    }
  }
  return 0;
}

void* Storage::Work(void* context) {
  Pool& pool = *static_cast<Pool*>(context);
  pthread_mutex_lock(&pool.lock);
  for (;;) {
    while (!pool.count && !pool.closing) pthread_cond_wait(&pool.work, &pool.lock);
    if (pool.closing) break;
    Read& read = pool.storage->reads_[pool.waiting[pool.first]];
    pool.first = (pool.first + 1) % kTickets;
    --pool.count;
    pthread_mutex_unlock(&pool.lock);
    const int result = ReadAll(pool.file, read);
    pthread_mutex_lock(&pool.lock);
    read.result = result;
    pthread_cond_broadcast(&pool.done);
  }
  pthread_mutex_unlock(&pool.lock);
  return nullptr;
}

void Storage::Submit(int32_t ticket, uint64_t offset, size_t bytes, uint8_t* to) {
  Read& read = reads_[ticket];
  read = {offset, bytes, to, kPending};
  if (pool_) {
    pthread_mutex_lock(&pool_->lock);
    pool_->waiting[(pool_->first + pool_->count++) % kTickets] = ticket;
    pthread_cond_signal(&pool_->work);
    pthread_mutex_unlock(&pool_->lock);
  } else if (ring_) {
    const uint32_t tail = *ring_->sq_tail, at = tail & *ring_->sq_mask;
    io_uring_sqe& entry = ring_->sqes[at];
    memset(&entry, 0, sizeof entry);
    entry.opcode = IORING_OP_READ;
    entry.fd = file_;
    entry.addr = reinterpret_cast<uintptr_t>(to);
    entry.len = static_cast<uint32_t>(bytes);
    entry.off = offset;
    entry.user_data = static_cast<uint64_t>(ticket);
    ring_->sq_array[at] = at;
    __atomic_store_n(ring_->sq_tail, tail + 1, __ATOMIC_RELEASE);
    long sent;
    int32_t tries = 0;
    do {
      sent = syscall(__NR_io_uring_enter, ring_->file, 1, 0, 0, nullptr, 0);
      if (sent < 0 && errno != EINTR) Reap();
    } while (sent < 0 && (errno == EINTR || ((errno == EAGAIN || errno == EBUSY) && ++tries < kTries)));
    if (sent == 1) return;
    __atomic_store_n(ring_->sq_tail, tail, __ATOMIC_RELEASE);  // the queue is full, or the ring does not take it
    read.result = ReadAll(file_, read);
  }
}

bool Storage::Done(int32_t ticket) {
  if (ring_) Reap();
  if (!pool_) return reads_[ticket].result != kPending;
  pthread_mutex_lock(&pool_->lock);
  const bool done = reads_[ticket].result != kPending;
  pthread_mutex_unlock(&pool_->lock);
  return done;
}

int Storage::Wait(int32_t ticket, int64_t patience_ns, bool* waited) {
  Read& read = reads_[ticket];
  *waited = false;
  if (ring_) {
    Reap();
    if (read.result != kPending) return read.result;
    *waited = true;
    return WaitRing(ticket, patience_ns);
  }
  if (!pool_) {
    if (read.result != kPending) return read.result;
    *waited = true;
    const int64_t from = Now();
    read.result = ReadAll(file_, read);
    return patience_ns && Now() - from > patience_ns ? kTooSlow : read.result;
  }
  timespec until = {};
  if (patience_ns) {
    const int64_t end = Now() + patience_ns;
    until = {static_cast<time_t>(end / 1000000000), static_cast<long>(end % 1000000000)};
  }
  pthread_mutex_lock(&pool_->lock);
  int late = 0;
  while (read.result == kPending && !late) {
    *waited = true;
    late = patience_ns ? pthread_cond_timedwait(&pool_->done, &pool_->lock, &until)
                       : pthread_cond_wait(&pool_->done, &pool_->lock);
  }
  const int result = read.result;
  pthread_mutex_unlock(&pool_->lock);
  return result == kPending ? kTooSlow : result;
}

bool Storage::OpenRing() {
  io_uring_params params;
  memset(&params, 0, sizeof params);
  const auto file = static_cast<int>(syscall(__NR_io_uring_setup, kRingEntries, &params));
  if (file < 0) return false;
  ring_ = static_cast<Ring*>(PlatformAlloc(sizeof(Ring)));
  if (!ring_) {
    close(file);
    return false;
  }
  Ring& ring = *ring_;
  ring.file = file;
  ring.sq_bytes = params.sq_off.array + params.sq_entries * sizeof(uint32_t);
  ring.cq_bytes = params.cq_off.cqes + params.cq_entries * sizeof(io_uring_cqe);
  ring.sqes_bytes = params.sq_entries * sizeof(io_uring_sqe);
  const auto map = [&](size_t bytes, off_t what) {
    return mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, file, what);
  };
  ring.sq = map(ring.sq_bytes, IORING_OFF_SQ_RING);
  ring.cq = map(ring.cq_bytes, IORING_OFF_CQ_RING);
  void* sqes = map(ring.sqes_bytes, static_cast<off_t>(IORING_OFF_SQES));
  ring.sqes = static_cast<io_uring_sqe*>(sqes);
  const bool mapped = ring.sq != MAP_FAILED && ring.cq != MAP_FAILED && sqes != MAP_FAILED;
  if (mapped) {
    auto* sq = static_cast<uint8_t*>(ring.sq);
    auto* cq = static_cast<uint8_t*>(ring.cq);
    const auto word = [](uint8_t* base, uint32_t offset) { return reinterpret_cast<uint32_t*>(base + offset); };
    ring.sq_tail = word(sq, params.sq_off.tail);
    ring.sq_mask = word(sq, params.sq_off.ring_mask);
    ring.sq_array = word(sq, params.sq_off.array);
    ring.cq_head = word(cq, params.cq_off.head);
    ring.cq_tail = word(cq, params.cq_off.tail);
    ring.cq_mask = word(cq, params.cq_off.ring_mask);
    ring.cqes = reinterpret_cast<io_uring_cqe*>(cq + params.cq_off.cqes);
  }
  if (mapped && RingWorks()) return true;
  if (sqes != MAP_FAILED) munmap(sqes, ring.sqes_bytes);
  if (ring.cq != MAP_FAILED) munmap(ring.cq, ring.cq_bytes);
  if (ring.sq != MAP_FAILED) munmap(ring.sq, ring.sq_bytes);
  close(file);
  PlatformFree(ring_);
  ring_ = nullptr;
  return false;
}

// Kernels before 5.6 have rings without this read.
bool Storage::RingWorks() {
  void* page = mmap(nullptr, kAlignment, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (page == MAP_FAILED) return false;
  bool waited;
  Submit(0, 0, kAlignment, static_cast<uint8_t*>(page));
  const int result = Wait(0, 0, &waited);
  munmap(page, kAlignment);
  return result == 0 || result == kShortRead;
}

void Storage::Reap() {
  uint32_t head = *ring_->cq_head;
  while (head != __atomic_load_n(ring_->cq_tail, __ATOMIC_ACQUIRE)) {
    const io_uring_cqe& entry = ring_->cqes[head & *ring_->cq_mask];
    Read& read = reads_[entry.user_data];
    if (entry.res < 0) {
      read.result = -entry.res;
    } else {
      const auto have = static_cast<size_t>(entry.res);
      const size_t whole = have - have % kAlignment;
      read.result =
          have == read.bytes ? 0 : ReadAll(file_, {read.offset + whole, read.bytes - whole, read.to + whole, 0});
    }
    __atomic_store_n(ring_->cq_head, ++head, __ATOMIC_RELEASE);
  }
}

int Storage::WaitRing(int32_t ticket, int64_t patience_ns) {
  const int64_t end = patience_ns ? Now() + patience_ns : 0;
  while (reads_[ticket].result == kPending) {
    if (end) {
      const int64_t left = end - Now();
      if (left <= 0) return kTooSlow;
      pollfd ready = {ring_->file, POLLIN, 0};
      if (poll(&ready, 1, static_cast<int>(left / 1000000) + 1) < 0 && errno != EINTR) return errno;
    } else if (syscall(__NR_io_uring_enter, ring_->file, 0, 1, IORING_ENTER_GETEVENTS, nullptr, 0) < 0 &&
               errno != EINTR && errno != EAGAIN && errno != EBUSY) {
      return errno;
    }
    Reap();
  }
  return reads_[ticket].result;
}

}  // namespace runnel
