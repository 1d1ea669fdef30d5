// numpy's .npy files, versions 1 to 3 (NEP 1): C order, little-endian.
#ifndef RUNNEL_BOARD_NPY_H_
#define RUNNEL_BOARD_NPY_H_

#include <cstddef>
#include <cstdint>

#include "runnel_bundle.h"

namespace runnel_run {

constexpr int kMostDimensions = 32;
constexpr size_t kNpyHeader = 512;  // of the files written here, so that the shape may be put in at the end

struct Npy {
  const uint8_t* data = nullptr;
  char type[8] = {};  // such as f4
  int dimensions = 0;
  int64_t shape[kMostDimensions] = {};
};

// What is in `bytes`, whose elements lie behind the header; a sentence's end where it cannot be read, null where it
// can.
const char* ReadNpy(const uint8_t* bytes, size_t size, Npy* npy);

// Whether an array has a port's type and shape.
bool FitsPort(const Npy& npy, const rn_port& port);
// The code of a dtype, such as f4.
const char* TypeCode(const rn_port& port);

// A header of kNpyHeader bytes for `frames` on a port's time axis.
void WriteNpyHeader(const rn_port& port, int64_t frames, char header[kNpyHeader]);

}  // namespace runnel_run

#endif  // RUNNEL_BOARD_NPY_H_
