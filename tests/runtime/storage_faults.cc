// Storage that fails, is slow or gives less than it is asked for: it stands before libc's pread and io_uring's calls.
#include <dlfcn.h>
#include <errno.h>
#include <linux/io_uring.h>
#include <pthread.h>
#include <stdarg.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <time.h>

#include <cstdint>

extern "C" {

// What the next `fault_left` reads of `fault_bytes` (0: any) bytes meet.
enum { kNone, kError, kShort, kSlow, kBusy };
int32_t fault_kind = kNone, fault_left = 0, fault_bytes = 0, fault_seen = 0;
constexpr int64_t kSlowNs = 600'000'000;

static io_uring_params params;
static io_uring_sqe* entries = nullptr;
static uint8_t* queue = nullptr;

static int Fault(size_t bytes) {
  if (fault_kind == kNone || (fault_bytes && bytes != static_cast<size_t>(fault_bytes))) return kNone;
  if (__atomic_fetch_sub(&fault_left, 1, __ATOMIC_SEQ_CST) <= 0) return kNone;
  __atomic_fetch_add(&fault_seen, 1, __ATOMIC_SEQ_CST);
  return fault_kind;
}

static void Rest() {
  const timespec time = {0, kSlowNs};
  nanosleep(&time, nullptr);
}

ssize_t pread(int file, void* to, size_t bytes, off_t offset) {
  using Real = ssize_t (*)(int, void*, size_t, off_t);
  static const auto real = reinterpret_cast<Real>(dlsym(RTLD_NEXT, "pread"));
  switch (Fault(bytes)) {
    case kError:
      errno = EIO;
      return -1;
    case kShort:
      return real(file, to, bytes > 4096 ? bytes / 8192 * 4096 : bytes, offset);
    case kSlow:
      Rest();
  }
  return real(file, to, bytes, offset);
}

void* mmap(void* at, size_t bytes, int protection, int flags, int file, off_t offset) {
  using Real = void* (*)(void*, size_t, int, int, int, off_t);
  static const auto real = reinterpret_cast<Real>(dlsym(RTLD_NEXT, "mmap"));
  void* found = real(at, bytes, protection, flags, file, offset);
  if (file >= 0 && offset == static_cast<off_t>(IORING_OFF_SQES)) entries = static_cast<io_uring_sqe*>(found);
  if (file >= 0 && offset == 0 && (flags & MAP_SHARED) && (protection & PROT_WRITE))
    queue = static_cast<uint8_t*>(found);
  return found;
}

static long (*RealCall())(long, ...) {
  static const auto real = reinterpret_cast<long (*)(long, ...)>(dlsym(RTLD_NEXT, "syscall"));
  return real;
}

static void* Later(void* ring) {
  Rest();
  RealCall()(__NR_io_uring_enter, reinterpret_cast<intptr_t>(ring), 1, 0, 0, nullptr, 0);
  return nullptr;
}

long syscall(long number, ...) {
  long a[6];
  va_list list;
  va_start(list, number);
  for (long& value : a) value = va_arg(list, long);
  va_end(list);
  if (number == __NR_io_uring_enter && static_cast<uint32_t>(a[1]) == 1) {
    uint32_t tail, mask;
    memcpy(&tail, queue + params.sq_off.tail, 4);
    memcpy(&mask, queue + params.sq_off.ring_mask, 4);
    io_uring_sqe& entry = entries[(tail - 1) & mask];
    switch (Fault(entry.len)) {
      case kError:
        entry.fd = -1;
        break;
      case kShort:
        if (entry.len > 4096) entry.len = entry.len / 8192 * 4096;
        break;
      case kSlow: {
        pthread_t thread;
        pthread_create(&thread, nullptr, Later, reinterpret_cast<void*>(static_cast<intptr_t>(a[0])));
        pthread_detach(thread);
        return 1;
      }
      case kBusy:
        errno = EBUSY;
        return -1;
    }
  }
  const long result = RealCall()(number, a[0], a[1], a[2], a[3], a[4], a[5]);
  if (number == __NR_io_uring_setup && result >= 0) memcpy(&params, reinterpret_cast<void*>(a[1]), sizeof params);
  return result;
}

}  // extern "C"
