#include "step.h"

#include <cstring>

#include "runnel.h"

namespace runnel {
namespace {

// A kernel takes as many pointers as it declares: calling through a type of another arity is undefined.
template <size_t>
using Pointer = void*;
template <size_t... kIndex>
struct Indices {};
template <size_t kCount, size_t... kIndex>
struct MakeIndices : MakeIndices<kCount - 1, kCount - 1, kIndex...> {};
template <size_t... kIndex>
struct MakeIndices<0, kIndex...> {
  using Type = Indices<kIndex...>;
};

template <size_t... kIndex>
int32_t CallWith(const uint8_t* kernel, void* const* a, Indices<kIndex...>) {
  return reinterpret_cast<int32_t (*)(Pointer<kIndex>...)>(reinterpret_cast<uintptr_t>(kernel))(a[kIndex]...);
}

int32_t CallKernel(const uint8_t* kernel, int32_t arguments, void* const* a) {
  switch (arguments) {
#define RUNNEL_CASE(n) \
  case n:              \
    return CallWith(kernel, a, MakeIndices<n>::Type())
    RUNNEL_CASE(1);
    RUNNEL_CASE(2);
    RUNNEL_CASE(3);
    RUNNEL_CASE(4);
    RUNNEL_CASE(5);
    RUNNEL_CASE(6);
    RUNNEL_CASE(7);
    RUNNEL_CASE(8);
    RUNNEL_CASE(9);
    RUNNEL_CASE(10);
    RUNNEL_CASE(11);
    RUNNEL_CASE(12);
    RUNNEL_CASE(13);
    RUNNEL_CASE(14);
    RUNNEL_CASE(15);
    RUNNEL_CASE(16);
#undef RUNNEL_CASE
    default:
      return -1;
  }
}

enum class Binding { kBound, kBroken, kNotInOnePiece };

// The pointers of one call.
struct Arguments {
  void* pointer[kMaxArguments];
  int64_t frame[kMaxArguments][2];  // of kFrame operands
  struct {
    const Buffer* buffer;
    int64_t slot, frames;
  } written[kMaxArguments];
  int32_t written_count;
};

// Resolves the operands of rows [q, q + rows). Several rows need each operand's frames in one piece.
Binding Bind(const Step& step, const Instruction& instruction, int64_t q, int64_t rows, Arguments& arguments) {
  const Operand* operand = step.program.operands.data + instruction.first_operand;
  const Operand* end = operand + instruction.operands;
  void** next = arguments.pointer;
  int32_t* table = step.table;
  const Binding apart = rows > 1 ? Binding::kNotInOnePiece : Binding::kBroken;
  arguments.written_count = 0;
  for (; operand != end; ++operand) {
    if (operand->kind == OperandKind::kWeights) {
      *next++ = const_cast<uint8_t*>(step.program.weights + operand->weights_offset);
      continue;
    }
    if (operand->kind == OperandKind::kFrame) {
      int64_t* words = arguments.frame[next - arguments.pointer];
      words[0] = q;
      words[1] = step.lengths ? step.lengths[operand->buffer] : -1;
      *next++ = words;
      continue;
    }
    const Buffer& buffer = step.program.buffers[operand->buffer];
    uint8_t* memory = step.Memory(buffer);
    const int64_t room = buffer.slots + buffer.margin;
    int64_t frame = q * operand->stride + operand->offset;
    if (operand->kind == OperandKind::kLast) {
      if (!step.lengths) return Binding::kBroken;
      frame += step.lengths[buffer.length];
    }
    const int64_t slot = step.Slot(buffer, frame);
    if (slot < 0) return Binding::kBroken;
    const int64_t rows_span = (rows - 1) * operand->stride;
    switch (operand->kind) {
      case OperandKind::kLast:
        *next++ = memory + slot * buffer.frame_bytes;
        break;
      case OperandKind::kIn:
        if (slot + rows_span >= room) return apart;
        if (operand->taps == 1) {
          *next++ = memory + slot * buffer.frame_bytes;
        } else {
          const int64_t elements = buffer.frame_bytes / 4;
          *next++ = memory;
          *next++ = table;
          *table++ = static_cast<int32_t>(slot * elements);
          for (int64_t tap = 1; tap < operand->taps; ++tap) {
            const int64_t tap_slot = step.Slot(buffer, frame + tap * operand->dilation);
            if (tap_slot < 0) return Binding::kBroken;
            if (tap_slot + rows_span >= room) return apart;
            *table++ = static_cast<int32_t>(tap_slot * elements);
          }
        }
        break;
      case OperandKind::kRing:
        *next++ = memory;
        *next++ = table;
        *table++ = static_cast<int32_t>(slot);
        *table++ = static_cast<int32_t>(buffer.slots);
        break;
      case OperandKind::kRun:
        if (slot + rows_span + operand->taps > room) return apart;
        *next++ = memory + slot * buffer.frame_bytes;
        break;
      default: {  // kOut
        const int64_t frames = rows * operand->stride;
        if (slot + frames > room || frames > buffer.slots) return apart;
        *next++ = memory + slot * buffer.frame_bytes;
        if (buffer.margin) arguments.written[arguments.written_count++] = {&buffer, slot, frames};
      }
    }
  }
  return Binding::kBound;
}

int Call(const Step& step, const Instruction& instruction, const Entry& kernel, const Arguments& arguments) {
  ++step.counters.calls;
  step.counters.macs += kernel.macs;
  if (CallKernel(kernel.code, instruction.arguments, arguments.pointer) != 0) return RN_KERNEL;
  for (int32_t i = 0; i < arguments.written_count; ++i) {
    const auto& written = arguments.written[i];
    Mirror(*written.buffer, step.Memory(*written.buffer), written.slot, written.frames, step.counters);
  }
  return RN_OK;
}

int RunCall(const Step& step, const Instruction& instruction, int64_t low, int64_t high) {
  Arguments arguments;
  for (int64_t q = low; q < high;) {
    if (instruction.kernel_rows.code && high - q >= instruction.rows) {
      Binding bound = Bind(step, instruction, q, instruction.rows, arguments);
      if (bound == Binding::kBound) {
        if (int code = Call(step, instruction, instruction.kernel_rows, arguments)) return code;
        q += instruction.rows;
        continue;
      }
      if (bound == Binding::kBroken) return RN_BAD_PLAN;
    }
    if (Bind(step, instruction, q, 1, arguments) != Binding::kBound) return RN_BAD_PLAN;
    if (int code = Call(step, instruction, instruction.kernel, arguments)) return code;
    ++q;
  }
  return RN_OK;
}

// The frame that stands for frame `m` of a source of `length` frames, -1 for the fill value.
int64_t Reflected(int64_t m, int64_t length, CopyMode mode) {
  if (mode == CopyMode::kFill || length <= 0) return -1;
  if (mode == CopyMode::kEdge) return m < 0 ? 0 : length - 1;
  if (length == 1) return 0;
  const int64_t period = 2 * (length - 1);
  m %= period;
  if (m < 0) m += period;
  return m < length ? m : period - m;
}

int RunCopy(const Step& step, const Instruction& instruction, int64_t low, int64_t high) {
  const Buffer& source = step.program.buffers[instruction.source];
  const Buffer& target = step.program.buffers[instruction.target];
  const uint8_t* from = step.Memory(source);
  uint8_t* to = step.Memory(target);
  // While the end is unknown, a reflection at the end cannot be asked for: the period is as good as infinite.
  const int64_t length = step.Limit(kMaxCount / 2, instruction.source_length);
  for (int64_t n = low; n < high;) {
    int64_t m = n + instruction.offset;
    const int64_t slot = step.Slot(target, n);
    if (slot < 0) return RN_BAD_PLAN;
    int64_t frames = 1;
    if (m >= 0 && m < length) {
      const int64_t source_slot = step.Slot(source, m);
      if (source_slot < 0) return RN_BAD_PLAN;
      frames = high - n;
      if (frames > length - m) frames = length - m;
      if (frames > source.slots - source_slot) frames = source.slots - source_slot;
      if (frames > target.slots - slot) frames = target.slots - slot;
      memcpy(to + slot * target.frame_bytes, from + source_slot * source.frame_bytes,
             static_cast<size_t>(frames * target.frame_bytes));
    } else {
      m = Reflected(m, length, instruction.mode);
      if (m < 0) {
        FillFrames(to + slot * target.frame_bytes, target.frame_bytes, instruction.fill);
      } else {
        const int64_t source_slot = step.Slot(source, m);
        if (source_slot < 0) return RN_BAD_PLAN;
        memcpy(to + slot * target.frame_bytes, from + source_slot * source.frame_bytes,
               static_cast<size_t>(target.frame_bytes));
      }
    }
    if (target.margin) Mirror(target, to, slot, frames, step.counters);
    n += frames;
  }
  return RN_OK;
}

int RunPlain(const Step& step, const Instruction& instruction, int64_t low, int64_t high) {
  return instruction.op == InstructionOp::kCall ? RunCall(step, instruction, low, high)
                                                : RunCopy(step, instruction, low, high);
}

template <bool kProfiled>
int RunOne(const Step& step, const Instruction& instruction, int64_t low, int64_t high) {
  if (!kProfiled) return RunPlain(step, instruction, low, high);
  const rn_profile& profile = *step.profile;
  const Counters before = step.counters;
  const int64_t from = profile.now();
  const int code = RunPlain(step, instruction, low, high);
  profile.spent[instruction.work] += profile.now() - from;
  profile.calls[instruction.work] += step.counters.calls - before.calls;
  profile.macs[instruction.work] += step.counters.macs - before.macs;
  return code;
}

}  // namespace

void Mirror(const Buffer& buffer, uint8_t* memory, int64_t slot, int64_t frames, Counters& counters) {
  const int64_t end = slot + frames, bytes = buffer.frame_bytes;
  if (end > buffer.slots) {  // the run went on into the margin
    const int64_t first = slot > buffer.slots ? slot : buffer.slots;
    memcpy(memory + (first - buffer.slots) * bytes, memory + first * bytes, static_cast<size_t>((end - first) * bytes));
    counters.mirrored += (end - first) * bytes;
  }
  if (slot < buffer.margin) {
    const int64_t last = end < buffer.margin ? end : buffer.margin;
    memcpy(memory + (slot + buffer.slots) * bytes, memory + slot * bytes, static_cast<size_t>((last - slot) * bytes));
    counters.mirrored += (last - slot) * bytes;
  }
}

void FillFrames(uint8_t* to, int64_t bytes, uint32_t fill) {
  for (int64_t i = 0; i < bytes; i += 4) memcpy(to + i, &fill, 4);
}

int FillTails(const Step& step, int32_t writer) {
  for (const Buffer& buffer : step.program.buffers) {
    if (!buffer.tail || buffer.last_writer != writer) continue;
    int64_t frame = step.before[buffer.made];
    const int64_t end = step.after[buffer.made];
    if (frame < step.lengths[buffer.length]) frame = step.lengths[buffer.length];
    if (buffer.space == Space::kState && frame < end - buffer.slots) frame = end - buffer.slots;
    uint8_t* memory = step.Memory(buffer);
    for (; frame < end; ++frame) {
      const int64_t slot = step.Slot(buffer, frame);
      if (slot < 0) return RN_BAD_PLAN;
      FillFrames(memory + slot * buffer.frame_bytes, buffer.frame_bytes, buffer.fill);
      if (buffer.margin) Mirror(buffer, memory, slot, 1, step.counters);
    }
  }
  return RN_OK;
}

namespace {

template <bool kProfiled>
int RunInstruction(const Step& step, int32_t i) {
  const Instruction* code = step.program.instructions.data + i;
  // What has a constant clock is made of static inputs alone.
  const bool again = step.stale && step.program.clocks[code->made].op == ClockOp::kConst;
  const int64_t low = again ? 0 : step.Limit(step.before[code->made], code->length);
  const int64_t high = step.Limit(step.after[code->made], code->length);
  if (low < high) {
    if (code->op != InstructionOp::kRepeat) {
      if (int status = RunOne<kProfiled>(step, *code, low, high)) return status;
    } else {
      for (int64_t q = low; q < high; ++q) {
        for (int32_t k = 1; k <= code->body; ++k) {
          if (int status = RunOne<kProfiled>(step, code[k], q, q + 1)) return status;
        }
      }
    }
  }
  return step.lengths ? FillTails(step, i) : RN_OK;
}

template <bool kProfiled>
int RunAll(const Step* const* steps, int32_t count) {
  const Span<Instruction>& code = steps[0]->program.instructions;
  for (int32_t i = 0; i < code.size; i += 1 + code[i].body) {
    for (int32_t k = 0; k < count; ++k) {
      if (int status = RunInstruction<kProfiled>(*steps[k], i)) return status;
    }
  }
  return RN_OK;
}

}  // namespace

int RunSteps(const Step* const* steps, int32_t count) {
  for (int32_t k = 0; k < count; ++k) ++steps[k]->counters.steps;
  return steps[0]->profile ? RunAll<true>(steps, count) : RunAll<false>(steps, count);
}

}  // namespace runnel
