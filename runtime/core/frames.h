// Between the caller's arrays [outer, frames, inner] and buffers of frames [outer, inner].
#ifndef RUNNEL_FRAMES_H_
#define RUNNEL_FRAMES_H_

#include "step.h"

namespace runnel {

// Whether any of `count` float32 values is NaN or infinite.
bool HasNonfinite(const void* values, int64_t count);

// Takes frames [first, first + count) of a caller's array of `pitch` frames as frames [at, at + count) of the input's
// buffer. `clean` puts 0 for values that are not finite. Returns an rn_code.
int TakeInput(const Step& step, const Input& input, const void* array, int64_t pitch, int64_t first, int64_t count,
              int64_t at, bool clean);

// Gives frames [at, at + count) of an output as frames [first, first + count) of a caller's array of `pitch` frames.
int GiveOutput(const Step& step, const Output& output, void* array, int64_t pitch, int64_t first, int64_t count,
               int64_t at);

}  // namespace runnel

#endif  // RUNNEL_FRAMES_H_
