// Reads from a file that run while the caller works: io_uring, threads, or one after the other.
#ifndef RUNNEL_STORAGE_H_
#define RUNNEL_STORAGE_H_

#include <cstddef>
#include <cstdint>

namespace runnel {

constexpr int32_t kMostReads = 32;                     // of the pass at a time
constexpr int32_t kUnitReads = 32;                     // of units at a time
constexpr int32_t kTickets = kMostReads + kUnitReads;  // units have those from kMostReads on

// A read that has no result yet.
constexpr int kPending = -1;
// Fewer bytes came than the file should have.
constexpr int kShortRead = -2;
// The read took longer than the caller waits.
constexpr int kTooSlow = -3;

class Storage {
 public:
  Storage() = default;
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;
  ~Storage() { Close(); }

  // Opens a file past the system's cache where it allows that. way: an rn_io; threads: of RN_IO_THREADS. Returns 0 or
  // an errno.
  int Open(const char* path, int way, int32_t threads);
  void Close();

  // Begins a read; `ticket` (below kTickets) names it until Wait returned its result. offset, bytes and memory are
  // multiples of 4096.
  void Submit(int32_t ticket, uint64_t offset, size_t bytes, uint8_t* to);
  // 0, an errno, kShortRead or kTooSlow; after kTooSlow the read goes on (a plain one is over) and can be waited for
  // again. patience_ns: how long to wait, 0 for any time. *waited: whether the result was not there yet.
  int Wait(int32_t ticket, int64_t patience_ns, bool* waited);
  // Whether the result is there.
  bool Done(int32_t ticket);

  int way() const { return way_; }
  bool direct() const { return direct_; }
  int32_t threads() const { return threads_; }

 private:
  struct Read {
    uint64_t offset;
    size_t bytes;
    uint8_t* to;
    int result;
  };
  struct Ring;
  struct Pool;

  static int ReadAll(int file, const Read& read);
  bool OpenRing();
  bool RingWorks();
  void Reap();
  int WaitRing(int32_t ticket, int64_t patience_ns);
  static void* Work(void* pool);

  int file_ = -1;
  int way_ = 0;
  bool direct_ = false;
  int32_t threads_ = 0;
  Read reads_[kTickets] = {};
  Ring* ring_ = nullptr;
  Pool* pool_ = nullptr;
};

}  // namespace runnel

#endif  // RUNNEL_STORAGE_H_
