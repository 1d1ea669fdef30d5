// Programs whose weights lie in a file and of which only a part is in memory at a time.
//
// Memory is bounded by a budget that is chosen at open: a part of the weights stays in memory (pinned), the rest passes
// through a few buffers, read ahead of use in the order of use, from the last instruction on to the first. Outputs are
// the same bits as with all weights in memory. Every byte is checked against its segment's CRC32C after it was read.
#ifndef RUNNEL_PAGING_H_
#define RUNNEL_PAGING_H_

#include "runnel.h"

#ifdef __cplusplus
extern "C" {
#endif

// How reads run: io_uring where the kernel has it, else threads if any were asked for; one of these alone; or one read
// after the other, when its bytes are needed.
enum rn_io { RN_IO_AUTO = 0, RN_IO_URING = 1, RN_IO_THREADS = 2, RN_IO_PLAIN = 3 };

// What becomes of a step whose read takes longer than `patience_us`: it fails with RN_STORAGE, or goes on slowly, which
// rn_paging_facts counts (late).
enum rn_slow { RN_SLOW_STOP = 0, RN_SLOW_GO_ON = 1 };
// What leaves memory for a unit (an expert) that was chosen and is not there: the one not chosen for longest, the one
// chosen most seldom, the one least likely to be chosen in a time as long as it takes until its layer comes again, the
// same with what was foreseen from the layer before; or none: whatever is chosen is read again.
enum rn_units { RN_UNITS_LRU = 0, RN_UNITS_LFU = 1, RN_UNITS_COST = 2, RN_UNITS_PREDICT = 3, RN_UNITS_NONE = 4 };

// Whether units are read before they are chosen: where that saves more time than wrong guesses cost, as far as was
// measured; never; or always.
enum rn_ahead { RN_AHEAD_AUTO = 0, RN_AHEAD_OFF = 1, RN_AHEAD_ON = 2 };

// What a bundle's manifest says of a part of the weights: multiples of 4096, at most 1 MiB, without gaps.
typedef struct rn_segment {
  uint64_t offset, bytes;
  uint32_t crc32c, reserved;
} rn_segment;

// Memory that programs share: the sum of what they may use is never above it. A program takes what it can use from
// those of lower priority before its next pass, and from those of the same priority that did not run for 16 passes of
// the others; what it takes is read as its passes come by it. Each has its least at all times. Programs of one budget
// may run in several threads.
typedef struct rn_budget rn_budget;

// path, offset: the file that holds the weights, and where in it (a multiple of 4096). ram: bytes for all that the
// program needs, the states of `streams` streams among it, and `elsewhere` bytes that the caller needs besides.
// patience_us: how long a read may take before `slow` (an rn_slow) says what to do; 0: any time. budget: one that the
// program shares, with its priority, instead of `ram`; null: its own. units: an rn_units; ahead: an rn_ahead.
// read_bytes: how many bytes storage reads in the time that one more read takes (flash-bench tells); 0: 16 KiB.
typedef struct rn_paging {
  const char* path;
  uint64_t offset;
  const rn_segment* segments;
  int32_t segment_count;
  int32_t io, threads, streams;
  uint64_t ram, elsewhere;
  int64_t patience_us;
  int32_t slow, priority;
  rn_budget* budget;
  int32_t units, ahead;
  uint64_t read_bytes;
} rn_paging;

#define RN_STALLS 96

// Units: bytes of all, and of the slots that hold some. Since open: chosen, found (of those, there when chosen), late
// (on their way), reads of pieces and their bytes, nanoseconds that steps waited for them, guessed (begun before they
// were chosen) and guessed_used; nanoseconds between such a beginning and the CHOOSE that it was for (gap_ns), and for
// how long of these units were read (read_ns).
typedef struct rn_unit_facts {
  uint64_t all, room, chosen, found, late, reads, bytes_read, stall_ns, guessed, guessed_used, gap_ns, read_ns;
} rn_unit_facts;

// ram, least: the budget and the smallest possible one. peak: what is used at most. pinned and streamed: bytes of
// weights in memory, and read in every pass over all instructions. tables: bytes of which only rows are read. buffers:
// bytes of buffers that reads go to. Since open: reads, bytes_read, uses (of segments that pass), waits (those that
// a step had to wait for), stall_ns, dropped (read ahead and not used), rows (of tables), passes, late (waits beyond
// the patience). shared, shared_used, shared_least: of a budget that programs share, what they use at most and need at
// least together; 0 without one.
// stalls[i]: passes that waited for 2^(i / 4) microseconds or more, and less than 2^((i + 1) / 4); [0] also for less.
// io, threads, direct (whether the system's cache is passed by): what was opened.
typedef struct rn_paging_facts {
  uint64_t ram, least, peak, weights, pinned, streamed, tables, buffers;
  uint64_t reads, bytes_read, uses, waits, stall_ns, dropped, rows, passes, late;
  uint64_t shared, shared_used, shared_least;
  uint64_t stalls[RN_STALLS];
  int32_t io, threads, direct, reserved;
  rn_unit_facts units;
} rn_paging_facts;

RN_API int rn_budget_open(uint64_t ram, rn_budget** out);
// It lives as long as a program shares it.
RN_API void rn_budget_close(rn_budget* budget);
// Higher ones come first. RN_BAD_ARGUMENT for a program that shares no budget.
RN_API int rn_set_priority(rn_program* program, int32_t priority);

// rn_open for weights in a file. Fails with RN_NO_MEMORY, and the least budget in the message, where `ram` is too
// small, with RN_STORAGE where the file cannot be read.
RN_API int rn_open_paged(const void* plan, size_t plan_bytes, size_t weights_bytes, const void* image,
                         size_t image_bytes, const uint8_t program_hash[32], const rn_paging* paging, rn_program** out,
                         char* message, size_t message_bytes);
// RN_BAD_ARGUMENT for a program whose weights are all in memory.
RN_API int rn_paging_status(const rn_program* program, rn_paging_facts* facts);
// One sentence about the last RN_STORAGE, or RN_NO_MEMORY of rn_set_ram.
RN_API const char* rn_paging_error(const rn_program* program);
// Moves to another budget (the one that programs share, for all of them) without reading anything that stays.
// RN_NO_MEMORY, and nothing changes, below the least.
// streams: as in rn_paging. Not while the program steps.
RN_API int rn_set_ram(rn_program* program, uint64_t ram, int32_t streams);

// Reads `count` blocks of `bytes` (a multiple of 4096, at most 4 MiB) from random places of a file's first `span`
// bytes, `depth` (1 to 16) at a time, and sets how many nanoseconds that took and whether the system's cache was passed
// by. RN_STORAGE where the file cannot be read.
RN_API int rn_read_speed(const char* path, int io, int32_t threads, uint64_t span, uint64_t bytes, int32_t depth,
                         int32_t count, int64_t* nanoseconds, int32_t* direct);

#ifdef __cplusplus
}
#endif

#endif  // RUNNEL_PAGING_H_
