// The calls that nearly every step is made of: one row, weights in memory, frames in rings.
#include "call.h"
#include "call_kernel.h"
#include "runnel.h"

namespace runnel {

int RunPlain(const Step& step, const Instruction& instruction, int64_t q) {
  void* pointer[kMaxArguments];
  pointer[0] = nullptr;  // every call has an operand, which compilers cannot know
  struct {
    const Buffer* buffer;
    int64_t slot, frames;
  } mirrored[kMaxArguments];
  int32_t margins = 0;
  void** next = pointer;
  int32_t* table = step.table;
  const Program& program = step.program;
  const Operand* operand = program.operands.data + instruction.first_operand;
  for (const Operand* end = operand + instruction.operands; operand != end; ++operand) {
    if (operand->kind == OperandKind::kWeights) {
      *next++ = const_cast<uint8_t*>(program.weights + operand->weights_offset);
      continue;
    }
    const Buffer& buffer = program.buffers.data[operand->buffer];
    uint8_t* memory = step.Memory(buffer);
    if (operand->kind == OperandKind::kOut) {
      const int64_t frames = operand->stride, slot = step.Slot(buffer, q * frames);
      if (slot < 0) return RN_BAD_PLAN;
      if (buffer.margin ? slot < buffer.margin || slot + frames > buffer.slots : slot + frames > buffer.slots) {
        if (slot + frames > buffer.slots + buffer.margin || frames > buffer.slots) return RN_BAD_PLAN;
        mirrored[margins++] = {&buffer, slot, frames};
      }
      *next++ = memory + slot * buffer.frame_bytes + operand->offset;
      continue;
    }
    const int64_t slot = step.Slot(buffer, q * operand->stride + operand->offset);
    if (slot < 0) return RN_BAD_PLAN;
    if (operand->kind == OperandKind::kRun) {
      if (slot + operand->taps > buffer.slots + buffer.margin) return RN_BAD_PLAN;
    } else if (operand->taps > 1) {
      const int64_t elements = buffer.frame_bytes / 4, dilation = operand->dilation;
      const bool ring = buffer.space == Space::kState && dilation <= buffer.slots;
      *next++ = memory;
      *next++ = table;
      *table++ = static_cast<int32_t>(slot * elements);
      for (int64_t tap = 1, at = slot; tap < operand->taps; ++tap) {
        if (ring) {
          at += dilation;
          at -= at >= buffer.slots ? buffer.slots : 0;
        } else {
          at = step.Slot(buffer, q * operand->stride + operand->offset + tap * dilation);
          if (at < 0) return RN_BAD_PLAN;
        }
        *table++ = static_cast<int32_t>(at * elements);
      }
      continue;
    }
    *next++ = memory + slot * buffer.frame_bytes;
  }
  ++step.counters.calls;
  step.counters.macs += instruction.kernel.macs;
  if (CallKernel(instruction.kernel.code, instruction.arguments, pointer)) return RN_KERNEL;
  for (int32_t i = 0; i < margins; ++i) {
    Mirror(*mirrored[i].buffer, step.Memory(*mirrored[i].buffer), mirrored[i].slot, mirrored[i].frames, step.counters);
  }
  return RN_OK;
}

}  // namespace runnel
