#include "frames.h"

#include <cstring>

#include "runnel.h"

namespace runnel {
namespace {

constexpr uint32_t kExponent = 0x7f800000u;

// Copies `outer` pieces of `inner` bytes; `from_pitch` and `to_pitch` are the bytes between pieces.
void CopyPieces(uint8_t* to, int64_t to_pitch, const uint8_t* from, int64_t from_pitch, int64_t outer, int64_t inner) {
  if (inner == 4) {  // channels before time: by far the most common layout
    for (int64_t i = 0; i < outer; ++i) memcpy(to + i * to_pitch, from + i * from_pitch, 4);
  } else {
    for (int64_t i = 0; i < outer; ++i) {
      memcpy(to + i * to_pitch, from + i * from_pitch, static_cast<size_t>(inner));
    }
  }
}

void Clean(uint8_t* values, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 4) {
    uint32_t bits;
    memcpy(&bits, values + i, 4);
    if ((bits & kExponent) == kExponent) memset(values + i, 0, 4);
  }
}

}  // namespace

bool HasNonfinite(const void* values, int64_t count) {
  // Adding one to a full exponent carries into the sign bit. Blocks of constant size are what compilers vectorise.
  constexpr int64_t kBlock = 32;
  const auto* bytes = static_cast<const uint8_t*>(values);
  constexpr uint32_t kOne = 0x00800000u;
  int64_t i = 0;
  for (; i + kBlock <= count; i += kBlock) {
    uint32_t block[kBlock], carry = 0;
    memcpy(block, bytes + i * 4, sizeof block);
    for (uint32_t bits : block) carry |= (bits & kExponent) + kOne;
    if (carry >> 31) return true;
  }
  for (; i < count; ++i) {
    uint32_t bits;
    memcpy(&bits, bytes + i * 4, 4);
    if ((bits & kExponent) == kExponent) return true;
  }
  return false;
}

int TakeInput(const Step& step, const Input& input, const void* array, int64_t pitch, int64_t first, int64_t count,
              int64_t at, bool clean) {
  const Buffer& buffer = step.program.buffers[input.buffer];
  uint8_t* memory = step.Memory(buffer);
  const auto* from = static_cast<const uint8_t*>(array) + first * input.inner_bytes;
  const bool packed = input.outer == 1 && input.inner_bytes == buffer.frame_bytes;
  for (int64_t i = 0; i < count;) {
    const int64_t slot = step.Slot(buffer, at + i);
    if (slot < 0) return RN_BAD_PLAN;
    uint8_t* to = memory + slot * buffer.frame_bytes;
    int64_t frames = 1;
    if (packed) {
      frames = count - i < buffer.slots - slot ? count - i : buffer.slots - slot;
      memcpy(to, from + i * input.inner_bytes, static_cast<size_t>(frames * input.inner_bytes));
    } else {
      CopyPieces(to, input.inner_bytes, from + i * input.inner_bytes, pitch * input.inner_bytes, input.outer,
                 input.inner_bytes);
    }
    if (clean) Clean(to, packed ? frames * input.inner_bytes : input.outer * input.inner_bytes);
    if (buffer.margin) Mirror(buffer, memory, slot, frames, step.counters);
    i += frames;
  }
  return RN_OK;
}

int GiveOutput(const Step& step, const Output& output, void* array, int64_t pitch, int64_t first, int64_t count,
               int64_t at) {
  const Buffer& buffer = step.program.buffers[output.buffer];
  const uint8_t* memory = step.Memory(buffer);
  uint8_t* to = static_cast<uint8_t*>(array) + first * output.inner_bytes;
  const bool packed = output.outer == 1 && output.inner_bytes == buffer.frame_bytes;
  for (int64_t i = 0; i < count;) {
    const int64_t slot = step.Slot(buffer, at + i + output.shift);
    if (slot < 0) return RN_BAD_PLAN;
    const uint8_t* from = memory + slot * buffer.frame_bytes;
    int64_t frames = 1;
    if (packed) {
      frames = count - i < buffer.slots - slot ? count - i : buffer.slots - slot;
      memcpy(to + i * output.inner_bytes, from, static_cast<size_t>(frames * output.inner_bytes));
    } else {
      CopyPieces(to + i * output.inner_bytes, pitch * output.inner_bytes, from, output.inner_bytes, output.outer,
                 output.inner_bytes);
    }
    i += frames;
  }
  return RN_OK;
}

}  // namespace runnel
