// Opens model.rnl: checks and maps it, and makes the program in it. A program that needs no Python.
//
// What a bundle holds lies in one mapping of its file; nothing is copied but names and numbers. Each function that can
// fail returns an rn_code and leaves one sentence in `message` (may be null). There are no threads and no globals.
#ifndef RUNNEL_BUNDLE_H_
#define RUNNEL_BUNDLE_H_

#include "runnel.h"
#include "runnel_paging.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct rn_bundle rn_bundle;

// An input or output. shape: `dimensions` numbers, -1 where time is. axis: which one that is, -1 where there is no
// time: a static input, or an output that is whole at the end. per_tick: frames of an input for one frame of the
// stream's clock, 0 for a static input. rate: frames a second, 0 where it is not known.
typedef struct rn_port {
  const char* name;
  const char* dtype;  // float32, float64, float16, int8, uint8, int16, int32, int64 or bool
  int32_t item_bytes;
  int32_t dimensions;
  const int64_t* shape;
  int32_t axis;
  int64_t per_tick;
  double rate;
} rn_port;

// hop, latency_frames, shortest, max_frames and rate count frames of the stream's clock. The offline model takes the
// lengths from `shortest` on whose remainder by `period` is among `remainders`. max_frames: the most frames of a
// stream, 0 for any number. ahead: how many ticks an input may be ahead of the others, 0 where inputs come together.
typedef struct rn_facts {
  const char* name;
  const char* target;
  const char* arch;
  const char* max_frames_reason;
  int64_t hop, latency_frames, shortest, max_frames, ahead;
  int64_t period, remainder_count;
  const int64_t* remainders;
  double rate;       // 0 where it is not known
  double tolerance;  // what the golden outputs may differ by, in parts of their largest value
  uint64_t weights_bytes;
} rn_facts;

// Checks the directory, the manifest, the plan, the kernels and the weights, maps the kernels executable and makes the
// program. Fails with RN_BAD_BUNDLE for what is not a whole bundle for this machine.
RN_API int rn_load(const char* path, rn_bundle** out, char* message, size_t message_bytes);
// The same under a budget of RAM (runnel_paging.h): weights are not mapped but read. path, offset and segments of
// `paging` are the bundle's and need not be set; null: as rn_load.
RN_API int rn_load_paged(const char* path, const rn_paging* paging, rn_bundle** out, char* message,
                         size_t message_bytes);
// The program must have no streams any more.
RN_API void rn_unload(rn_bundle* bundle);

// What lives as long as the bundle. A port that is not there is null.
RN_API const rn_program* rn_bundle_program(const rn_bundle* bundle);
RN_API const rn_facts* rn_bundle_facts(const rn_bundle* bundle);
RN_API const rn_port* rn_bundle_input(const rn_bundle* bundle, int32_t input);
RN_API const rn_port* rn_bundle_output(const rn_bundle* bundle, int32_t output);

// The manifest as it was checked: JSON text of `bytes` bytes, without an end.
RN_API const char* rn_bundle_manifest(const rn_bundle* bundle, size_t* bytes);

// An entry in the mapped file, after its checksum; RN_BAD_BUNDLE where it is missing or altered.
RN_API int rn_bundle_entry(const rn_bundle* bundle, const char* name, const void** bytes, size_t* size, char* message,
                           size_t message_bytes);
// The text of the entry manifest.sig, at which nothing has looked, without an end; of 0 bytes in a bundle without it.
RN_API const char* rn_bundle_signatures(const rn_bundle* bundle, size_t* bytes);
// Checks every entry in full.
RN_API int rn_bundle_verify(const rn_bundle* bundle, char* message, size_t message_bytes);
// Whether a stream of `frames` may be flushed: RN_OK, or RN_BAD_LENGTH where the offline model takes no such recording.
RN_API int rn_check_length(const rn_bundle* bundle, int64_t frames, char* message, size_t message_bytes);

#ifdef __cplusplus
}
#endif

#endif  // RUNNEL_BUNDLE_H_
