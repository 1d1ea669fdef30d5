// runnel's runtime: runs a plan (docs/plan.md) over caller-owned memory.
//
// A program is immutable and may be shared by threads. A state belongs to one stream, a scratch to one thread; both are
// blocks of the caller's, 64-byte aligned, without pointers inside. After rn_open nothing is allocated, and there are
// no threads but those of rn_workers_open, no exceptions and no global state. Every function that can fail returns a
// code of `rn_code`.
#ifndef RUNNEL_H_
#define RUNNEL_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define RN_API __attribute__((visibility("default")))
#else
#define RN_API
#endif

// Raised whenever a signature or the meaning of a code below changes.
#define RN_ABI_VERSION 5

typedef struct rn_program rn_program;

enum rn_code {
  RN_OK = 0,
  RN_BAD_ARGUMENT = 1,  // a null or unaligned pointer, a negative count, an unknown policy
  RN_BAD_PLAN = 2,      // the plan breaks a rule of docs/plan.md; rn_open's message says which
  RN_NO_MEMORY = 3,     // rn_open could not allocate
  RN_NOT_FINITE = 4,    // an input sample is NaN or infinite; nothing was written
  RN_CAPACITY = 5,      // an output array is too small (ask rn_due); nothing was written
  RN_FLUSHED = 6,       // the stream has ended; rn_init starts it again
  RN_BAD_STATE = 7,     // not a state of this program, or one left broken by a failed step
  RN_KERNEL = 8,        // a kernel reported a failure; the state must be initialised again
  RN_TOO_LONG = 9,      // more frames than the plan allows, at most 2^44
  RN_UNSUPPORTED = 10,  // the plan uses an instruction or a schema that this runtime lacks
  RN_BAD_BUNDLE = 11,   // not a whole bundle for this machine; the message says why
  RN_BAD_LENGTH = 12,   // the offline model takes no recording of this length
  RN_CACHE_FULL = 13,   // a cache that keeps everything has no room for so many frames; nothing was written
  RN_STORAGE = 14       // weights could not be read from their file, or are damaged; see runnel_paging.h
};

enum rn_nonfinite { RN_NONFINITE_ERROR = 0, RN_NONFINITE_ZERO = 1, RN_NONFINITE_RESET = 2 };

RN_API int rn_abi_version(void);

// One sentence for a code.
RN_API const char* rn_message(int code);

// Checks a plan and makes a program. `plan` is not kept; `weights` and `image` (mapped executable) must outlive the
// program. On failure *out is null and `message` (may be null) holds one sentence.
RN_API int rn_open(const void* plan, size_t plan_bytes, const void* weights, size_t weights_bytes, const void* image,
                   size_t image_bytes, const uint8_t program_hash[32], rn_program** out, char* message,
                   size_t message_bytes);
RN_API void rn_close(rn_program* program);

RN_API size_t rn_state_bytes(const rn_program* program);
RN_API size_t rn_scratch_bytes(const rn_program* program);
// The most input frames of one step. rn_push takes any number and cuts it into steps.
RN_API int64_t rn_hop(const rn_program* program);
RN_API int32_t rn_input_count(const rn_program* program);
RN_API int32_t rn_output_count(const rn_program* program);
// Frames of an input for one frame of the stream's clock (above 1 where inputs have different rates); 0: a static
// input, which rn_set gives its one value.
RN_API int64_t rn_input_rate(const rn_program* program, int32_t input);
// Bytes of one unpadded frame, as in the caller's arrays.
RN_API int64_t rn_input_frame_bytes(const rn_program* program, int32_t input);
RN_API int64_t rn_output_frame_bytes(const rn_program* program, int32_t output);

// Puts a state at the start of a stream. `poison` fills all that nobody has written, there and in every step's scratch,
// with NaN, so that a read of it shows.
RN_API int rn_init(const rn_program* program, void* state, int poison);
// Puts a stream back at its start; static inputs keep what they were set to.
RN_API int rn_reset(const rn_program* program, void* state);
// Gives a static input its value, one unpadded frame, for all frames that are made from now on. To be called for each
// static input after rn_init, and again whenever a value changes. RN_NOT_FINITE leaves the state as it was.
RN_API int rn_set(const rn_program* program, void* state, int32_t input, const void* value);

// How many frames of each output a push of `frames` would write now, and with `end` a flush after it as well.
RN_API int rn_due(const rn_program* program, const void* state, int64_t frames, int end, int64_t* counts);

// Threads that share the work of steps; without them nothing here starts one. `threads` counts the caller's, 1 to
// RN_MOST_WORKERS. They sleep while there is no step. Bits do not depend on them. One step uses them at a time; others
// run on their own thread alone. To be closed after the last step that uses them.
#define RN_MOST_WORKERS 32
typedef struct rn_workers rn_workers;
RN_API int rn_workers_open(int32_t threads, rn_workers** out);
RN_API void rn_workers_close(rn_workers* workers);

// Takes `frames` frames of the stream's clock. inputs[i]: [outer, frames * rn_input_rate(i), inner], not read for a
// static input. outputs[i]: [outer, capacity[i], inner], of
// which the first written[i] frames of the middle axis are set. When the code is RN_BAD_ARGUMENT, RN_NOT_FINITE,
// RN_CAPACITY, RN_FLUSHED, RN_BAD_STATE or RN_TOO_LONG the state is as it was.
// `nonfinite`: refuse non-finite float32 samples, take them as 0, or start the stream again and take them as 0.
RN_API int rn_push(const rn_program* program, void* state, void* scratch, const void* const* inputs, int64_t frames,
                   void* const* outputs, const int64_t* capacity, int64_t* written, int nonfinite);
// The same with workers, which share the kernels that the compiler made in parts; null: none.
RN_API int rn_push_on(rn_workers* workers, const rn_program* program, void* state, void* scratch,
                      const void* const* inputs, int64_t frames, void* const* outputs, const int64_t* capacity,
                      int64_t* written, int nonfinite);

// Where rn_push_profiled adds what each instruction of the plan took; instruction i is the i-th of rn_instructions.
typedef struct rn_profile {
  int64_t (*now)(void);  // a clock; differences of what it says are added up
  int64_t* spent;        // of that clock
  int64_t* calls;        // of kernels
  int64_t* macs;         // multiply-adds
} rn_profile;

// How many instructions the plan has that do work: a call or a copy, in order.
RN_API int32_t rn_instructions(const rn_program* program);
// rn_push, which notes what each instruction took; rn_push itself asks no clock.
RN_API int rn_push_profiled(const rn_program* program, void* state, void* scratch, const void* const* inputs,
                            int64_t frames, void* const* outputs, const int64_t* capacity, int64_t* written,
                            int nonfinite, const rn_profile* profile);

// The most lanes that rn_push_many steps together; it takes any number.
#define RN_LANES_TOGETHER 16
RN_API size_t rn_batch_scratch_bytes(const rn_program* program, int32_t lanes);

// rn_push for several streams of one program, each at a position of its own; the bits are those of single pushes.
// states[l], frames[l] (below 0: the lane rests, and its state may be null) and nonfinite[l] are those of lane l, and
// so are inputs[l * inputs + i], outputs[l * outputs + o], capacity and written. Every lane is checked before any is
// written: after a code that leaves a state as it was, all are, and *failed is a lane that it is about. After
// RN_CAPACITY `written` says what is due of every output. After a failed step *failed is -1 and the lanes that were
// stepped together have to be initialised again. `scratch` has rn_batch_scratch_bytes.
RN_API int rn_push_many(const rn_program* program, int32_t lanes, void* const* states, void* scratch,
                        const void* const* inputs, const int64_t* frames, void* const* outputs, const int64_t* capacity,
                        int64_t* written, const int* nonfinite, int32_t* failed);
// The same with workers, which share the lanes, or the parts of a lane's kernels; null: none.
RN_API int rn_push_many_on(rn_workers* workers, const rn_program* program, int32_t lanes, void* const* states,
                           void* scratch, const void* const* inputs, const int64_t* frames, void* const* outputs,
                           const int64_t* capacity, int64_t* written, const int* nonfinite, int32_t* failed);

// Whether rn_prefill can be called.
RN_API int rn_has_prefill(const rn_program* program);
// rn_push of the `first` of these frames, for what they leave in the state alone: what only outputs need is not
// computed, and no output is given. All of the frames are checked.
RN_API int rn_prefill(rn_workers* workers, const rn_program* program, void* state, void* scratch,
                      const void* const* inputs, int64_t frames, int64_t first, int nonfinite);

// Caches of keys and values (docs/kv.md). choice: 13 words, the position of the stream's first frame, then slots,
// sinks, window, heavy, observed, spare, system, vision, audio, 0, 0, 0; -1 is the most that the plan allows. Bytes of
// a state with this choice; -1 where the plan does not allow it, or has no caches. rn_state_bytes is what the most
// takes, which is also what rn_init chooses.
RN_API int64_t rn_cache_bytes(const rn_program* program, const int64_t* choice);
// rn_init with a choice, for a state of rn_cache_bytes.
RN_API int rn_init_cache(const rn_program* program, void* state, const int64_t* choice, int poison);
// Bytes of a state block.
RN_API int64_t rn_state_size(const void* state);
// Copies a state with caches: what its slots hold, not those that hold nothing. `to` has as many bytes, and is zero or
// a state of the same program.
RN_API int rn_fork(const rn_program* program, const void* state, void* to);
// The choice (13 words), policy, positions, frames taken, keys dropped by all heads, bytes of the caches, bits of a
// key's and a value's element, heads, class of the frames that come in, 0, 0; then for each KV head: its cache, its
// slots, how many are kept, frames dropped. A null state stands for one at its start with the most of all. Returns how
// many words there are, and writes none where `room` is too small; 0: the plan has no caches.
RN_API int64_t rn_cache_words(const rn_program* program, const void* state, int64_t* words, int64_t room);

// What the frames of the next pushes are: 0 text, 1 system, 2 vision, 3 audio.
RN_API int rn_cache_class(const rn_program* program, void* state, int64_t token_class);
// Takes the latest frames back, as if they had never come: at most as many as the stream's spare, and those it took
// back since count against that. RN_BAD_ARGUMENT: more than it can; RN_UNSUPPORTED: the program keeps other things than
// caches; RN_BAD_STATE: its notes are damaged.
RN_API int rn_rollback(const rn_program* program, void* state, int64_t frames);
// What the slots of a KV head hold: int64 positions, ranks, keys [kept, features] as they were turned, values. Arrays
// have room for all its slots. Returns how many are kept, -1 where there is no such head.
RN_API int64_t rn_cache_read(const rn_program* program, void* state, int32_t cache, int32_t head, int64_t* positions,
                             float* mass, float* keys, float* values);
// Gives up slots of a head whose policy is the caller's; `slots` falls. The last kept slots take their places, one by
// one.
RN_API int rn_cache_drop(const rn_program* program, void* state, int32_t cache, int32_t head, const int32_t* slots,
                         int64_t count);

// Ends the stream and writes what is left of every output.
RN_API int rn_flush(const rn_program* program, void* state, void* scratch, void* const* outputs,
                    const int64_t* capacity, int64_t* written);

// Whether any float32 sample of the inputs is NaN or infinite: 1 or 0.
RN_API int rn_has_nonfinite(const rn_program* program, const void* const* inputs, int64_t frames);

// Whether `bytes` is a snapshot (a copy of a state block) of this program: RN_OK or RN_BAD_STATE. Need not be aligned.
RN_API int rn_check_state(const rn_program* program, const void* bytes, size_t n);
// Input frames taken so far.
RN_API int64_t rn_position(const rn_program* program, const void* state);
// Steps, kernel calls, bytes copied to keep the margins of rings and multiply-adds, since the stream started.
RN_API void rn_counters(const void* state, int64_t counters[4]);

// CRC-32C (Castagnoli), as used for weights segments.
RN_API uint32_t rn_crc32c(const void* bytes, size_t n, uint32_t crc);

#ifdef __cplusplus
}
#endif

#endif  // RUNNEL_H_
