#include "call.h"

#include "call_kernel.h"
#include "pager.h"
#include "runnel.h"
#include "workers.h"

namespace runnel {
namespace {

// A call as workers share it.
struct SharedCall {
  const Program& program;
  const Instruction& instruction;
  const Entry& kernel;
  const Arguments& arguments;
  int32_t shares;
};

int32_t CallShare(const void* context, int32_t share) {
  const SharedCall& call = *static_cast<const SharedCall*>(context);
  int32_t words[2] = {share, call.shares};
  void* pointer[kMaxArguments];
  int32_t n = 0;
  for (int32_t i = 0; i < call.instruction.operands; ++i) {
    const Operand& operand = call.program.operands[call.instruction.first_operand + i];
    pointer[n] = operand.kind == OperandKind::kShare ? words : call.arguments.pointer[n];
    ++n;
    if (operand.Pointers() == 2) {
      pointer[n] = call.arguments.pointer[n];
      ++n;
    }
  }
  return CallKernel(call.kernel.code, call.instruction.arguments, pointer);
}

// Where a chosen unit of frame q lies, or where all slots begin.
Binding UnitOf(const Step& step, const Operand& operand, int64_t q, void** found) {
  const UnitTable& table = step.program.tables[operand.table];
  const Pager* pager = step.program.pager;
  const uint8_t* base = pager ? pager->UnitSlots(operand.table) : step.program.weights + table.offset;
  if (operand.taps >= 0) {
    const Buffer& buffer = step.program.buffers[operand.buffer];
    const int64_t at = step.Slot(buffer, q);
    if (at < 0) return Binding::kBroken;
    const auto* list = reinterpret_cast<const int32_t*>(step.Memory(buffer) + at * buffer.frame_bytes);
    const int64_t slots = pager ? pager->UnitSlotCount(operand.table) : table.units;
    const int32_t slot = list[1 + operand.taps];
    if (operand.taps >= list[0] || slot < -1 || slot >= slots) return Binding::kBroken;
    if (slot < 0) return Binding::kNobody;
    base += slot * table.unit_bytes;
  }
  *found = const_cast<uint8_t*>(base) + operand.offset;
  return Binding::kBound;
}

template <bool kOne>
Binding BindRows(const Step& step, const Instruction& instruction, int64_t q, int64_t count, Arguments& arguments) {
  const int64_t rows = kOne ? 1 : count;
  const Operand* operand = step.program.operands.data + instruction.first_operand;
  const Operand* end = operand + instruction.operands;
  void** next = arguments.pointer;
  int32_t* table = step.table;
  const Binding apart = kOne ? Binding::kBroken : Binding::kNotInOnePiece;
  arguments.written_count = 0;
  for (; operand != end; ++operand) {
    if (operand->kind == OperandKind::kWeights) {
      const Pager* pager = step.program.pager;
      *next++ = const_cast<uint8_t*>(pager ? pager->At(*operand) : step.program.weights + operand->weights_offset);
      continue;
    }
    if (operand->kind == OperandKind::kUnits) {
      if (const Binding unit = UnitOf(step, *operand, q, next++); unit != Binding::kBound) return unit;
      continue;
    }
    if (operand->kind >= OperandKind::kFrame && operand->kind != OperandKind::kRing) {
      *next = operand->kind == OperandKind::kFrame ? arguments.Number(next, step, *operand, q) : nullptr;
      ++next;
      continue;
    }
    const Buffer& buffer = step.program.buffers[operand->buffer];
    uint8_t* memory = step.Memory(buffer);
    int64_t frame = q * operand->stride;
    if (operand->kind == OperandKind::kOut) {
      const int64_t slot = step.Slot(buffer, frame), frames = rows * operand->stride;
      if (slot < 0) return Binding::kBroken;
      if (slot + frames > buffer.slots) {
        if (slot + frames > buffer.slots + buffer.margin || frames > buffer.slots) return apart;
        arguments.written[arguments.written_count++] = {&buffer, slot, frames};
      } else if (slot < buffer.margin) {
        arguments.written[arguments.written_count++] = {&buffer, slot, frames};
      }
      *next++ = memory + slot * buffer.frame_bytes + operand->offset;
      continue;
    }
    frame += operand->offset;
    if (operand->kind == OperandKind::kLast) {
      if (!step.lengths) return Binding::kBroken;
      frame += step.lengths[buffer.length];
    }
    const int64_t slot = step.Slot(buffer, frame), span = (rows - 1) * operand->stride;
    if (slot < 0) return Binding::kBroken;
    switch (operand->kind) {
      case OperandKind::kRing:
        *next++ = memory;
        *next++ = table;
        *table++ = static_cast<int32_t>(slot);
        *table++ = static_cast<int32_t>(buffer.slots);
        continue;
      case OperandKind::kRun:
        if (slot + span + operand->taps > buffer.slots + buffer.margin) return apart;
        break;
      case OperandKind::kIn:
        if (!kOne && slot + span >= buffer.slots + buffer.margin) return apart;
        if (operand->taps > 1) {
          const int64_t elements = buffer.frame_bytes / 4;
          *next++ = memory;
          *next++ = table;
          *table++ = static_cast<int32_t>(slot * elements);
          for (int64_t tap = 1; tap < operand->taps; ++tap) {
            const int64_t tap_slot = step.Slot(buffer, frame + tap * operand->dilation);
            if (tap_slot < 0) return Binding::kBroken;
            if (!kOne && tap_slot + span >= buffer.slots + buffer.margin) return apart;
            *table++ = static_cast<int32_t>(tap_slot * elements);
          }
          continue;
        }
        break;
      default:
        break;
    }
    *next++ = memory + slot * buffer.frame_bytes;
  }
  return Binding::kBound;
}

}  // namespace

Binding Bind(const Step& step, const Instruction& instruction, int64_t q, int64_t rows, Arguments& arguments) {
  return rows == 1 ? BindRows<true>(step, instruction, q, 1, arguments)
                   : BindRows<false>(step, instruction, q, rows, arguments);
}

int CallKernels(const Step& step, const Instruction& instruction, const Entry& kernel, const Arguments& arguments) {
  ++step.counters.calls;
  step.counters.macs += kernel.macs;
  if (!instruction.shared) {
    return CallKernel(kernel.code, instruction.arguments, arguments.pointer) == 0 ? RN_OK : RN_KERNEL;
  }
  const int32_t shares = ThreadsOf(step.help.workers);
  const SharedCall call{step.program, instruction, kernel, arguments, shares};
  return RunTasks(step.help.workers, CallShare, &call, shares) == 0 ? RN_OK : RN_KERNEL;
}

void Written(const Step& step, const Arguments& arguments) {
  for (int32_t i = 0; i < arguments.written_count; ++i) {
    const auto& written = arguments.written[i];
    Mirror(*written.buffer, step.Memory(*written.buffer), written.slot, written.frames, step.counters);
  }
}

int RunCall(const Step& step, const Instruction& instruction, int64_t low, int64_t high) {
  Arguments arguments;
  for (int64_t q = low; q < high;) {
    if (instruction.kernel_rows.code && high - q >= instruction.rows) {
      Binding bound = Bind(step, instruction, q, instruction.rows, arguments);
      if (bound == Binding::kBound) {
        if (int code = CallKernels(step, instruction, instruction.kernel_rows, arguments)) return code;
        Written(step, arguments);
        q += instruction.rows;
        continue;
      }
      if (bound == Binding::kBroken) return RN_BAD_PLAN;
    }
    const Binding bound = Bind(step, instruction, q, 1, arguments);
    if (bound == Binding::kNobody) {
      ++q;
      continue;
    }
    if (bound != Binding::kBound) return RN_BAD_PLAN;
    if (int code = CallKernels(step, instruction, instruction.kernel, arguments)) return code;
    if (arguments.written_count) Written(step, arguments);
    ++q;
  }
  return RN_OK;
}

}  // namespace runnel
