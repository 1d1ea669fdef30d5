#include "step.h"

#include <cstring>

#include "attend.h"
#include "call.h"
#include "pager.h"
#include "runnel.h"
#include "together.h"

namespace runnel {
namespace {

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

// A broken plan may lay buffers over each other: memmove.
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
      memmove(to + slot * target.frame_bytes, from + source_slot * source.frame_bytes,
              static_cast<size_t>(frames * target.frame_bytes));
    } else {
      m = Reflected(m, length, instruction.mode);
      if (m < 0) {
        FillFrames(to + slot * target.frame_bytes, target.frame_bytes, instruction.fill);
      } else {
        const int64_t source_slot = step.Slot(source, m);
        if (source_slot < 0) return RN_BAD_PLAN;
        memmove(to + slot * target.frame_bytes, from + source_slot * source.frame_bytes,
                static_cast<size_t>(target.frame_bytes));
      }
    }
    if (target.margin) Mirror(target, to, slot, frames, step.counters);
    n += frames;
  }
  return RN_OK;
}

// The row that a frame's number names, brought inside the table.
int64_t RowOf(const uint8_t* frame, int64_t bytes, int64_t rows) {
  int64_t row = 0;
  if (bytes == 8) {
    memcpy(&row, frame, 8);
  } else {
    int32_t number;
    memcpy(&number, frame, 4);
    row = number;
  }
  if (row < 0) row += rows;
  return row < 0 ? 0 : row < rows ? row : rows - 1;
}

// The chosen units of frame q, null where the frame names none that can be.
const int32_t* ListOf(const Step& step, const Instruction& instruction, int64_t q) {
  const Buffer& source = step.program.buffers[instruction.source];
  const int64_t at = step.Slot(source, q);
  if (at < 0) return nullptr;
  const auto* list = reinterpret_cast<const int32_t*>(step.Memory(source) + at * source.frame_bytes);
  if (list[0] < 0 || list[0] > instruction.rows) return nullptr;
  const UnitTable& table = step.program.tables[instruction.units];
  int32_t chosen = 0;
  for (int32_t i = 0; i < list[0]; ++i) {
    if (list[1 + i] < -1 || list[1 + i] >= table.units) return nullptr;
    chosen += list[1 + i] >= 0;
  }
  return chosen <= table.most ? list : nullptr;
}

// A CHOOSE for frame q, and those that are made with it: what all of them lack is read at the same time.
int ChooseFrame(const Step& step, const Instruction* first, int64_t q) {
  Pager* pager = step.program.pager;
  const Instruction* last = first + first->joined;
  for (const Instruction* part = first; pager && part <= last; ++part) {
    const int32_t* list = ListOf(step, *part, q);
    if (!list) return RN_BAD_PLAN;
    if (const int code = pager->Ask(part->units, list + 1, list[0])) return code;
  }
  for (const Instruction* part = first; part <= last; ++part) {
    const int32_t* list = ListOf(step, *part, q);
    if (!list) return RN_BAD_PLAN;
    const Buffer& target = step.program.buffers[part->target];
    const int64_t to = step.Slot(target, q);
    if (to < 0) return RN_BAD_PLAN;
    auto* slots = reinterpret_cast<int32_t*>(step.Memory(target) + to * target.frame_bytes);
    if (!pager) {
      memmove(slots, list, (1 + static_cast<size_t>(list[0])) * sizeof(int32_t));
    } else if (const int code = pager->Bring(part->units, list + 1, list[0], slots + 1)) {
      return code;
    }
    slots[0] = list[0];
    if (target.margin) Mirror(target, step.Memory(target), to, 1, step.counters);
  }
  return RN_OK;
}

int RunChoose(const Step& step, const Instruction& instruction, int64_t low, int64_t high) {
  Pager* pager = step.program.pager;
  for (int64_t q = low; q < high && instruction.joined >= 0; ++q) {
    if (instruction.target >= 0) {
      if (const int code = ChooseFrame(step, &instruction, q)) return code;
      continue;
    }
    const int32_t* list = ListOf(step, instruction, q);
    if (!list) return RN_BAD_PLAN;
    if (pager) pager->Guess(instruction.units, list + 1, list[0], false);
  }
  return RN_OK;
}

int RunFetch(const Step& step, const Instruction& instruction, int64_t low, int64_t high) {
  const Buffer& source = step.program.buffers[instruction.source];
  const Buffer& target = step.program.buffers[instruction.target];
  for (int64_t q = low; q < high; ++q) {
    const int64_t from = step.Slot(source, q * instruction.stride + instruction.offset), to = step.Slot(target, q);
    if (from < 0 || to < 0) return RN_BAD_PLAN;
    const int64_t row = RowOf(step.Memory(source) + from * source.frame_bytes, source.frame_bytes, instruction.rows);
    const int64_t block = row / instruction.in_block;
    const int64_t at = instruction.table + block * instruction.block_bytes;
    const int64_t inside = (row - block * instruction.in_block) * instruction.row_bytes;
    Pager* pager = step.program.pager;
    const uint8_t* bytes = pager ? pager->Row(at, inside) : step.program.weights + at + inside;
    if (!bytes) return RN_STORAGE;
    uint8_t* frame = step.Memory(target) + to * target.frame_bytes;
    memcpy(frame, bytes, static_cast<size_t>(instruction.row_bytes));
    memset(frame + instruction.row_bytes, 0, static_cast<size_t>(target.frame_bytes - instruction.row_bytes));
    if (target.margin) Mirror(target, step.Memory(target), to, 1, step.counters);
  }
  return RN_OK;
}

}  // namespace

int RunOne(const Step& step, const Instruction& instruction, int64_t low, int64_t high) {
  switch (instruction.op) {
    case InstructionOp::kCall:
      return RunCall(step, instruction, low, high);
    case InstructionOp::kAttend:
      return RunAttend(step, instruction, low, high);
    case InstructionOp::kFetch:
      return RunFetch(step, instruction, low, high);
    case InstructionOp::kChoose:
      return RunChoose(step, instruction, low, high);
    case InstructionOp::kSkipIf:
      return RN_OK;
    default:
      return RunCopy(step, instruction, low, high);
  }
}

namespace {

template <bool kProfiled>
int RunProfiled(const Step& step, const Instruction& instruction, int64_t low, int64_t high) {
  if (!kProfiled) return RunOne(step, instruction, low, high);
  const rn_profile& profile = *step.help.profile;
  const Counters before = step.counters;
  const int64_t from = profile.now();
  const int code = RunOne(step, instruction, low, high);
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

Range RangeOf(const Step& step, const Instruction& instruction) {
  // What has a constant clock is made of static inputs alone.
  const bool again = step.stale && step.program.clocks[instruction.made].op == ClockOp::kConst;
  return {again ? 0 : step.Limit(step.before[instruction.made], instruction.length),
          step.Limit(step.after[instruction.made], instruction.length)};
}

namespace {

// Begins to read what a later frame of the same REPEAT chooses, where that is known.
void ForeseeFrame(const Step& step, const Instruction& choose, int32_t repeat, int64_t q) {
  Pager* pager = step.program.pager;
  if (!pager || step.program.buffers[choose.source].last_writer == repeat) return;
  if (const int32_t* list = ListOf(step, choose, q)) pager->Guess(choose.units, list + 1, list[0], true);
}

// Begins to read the experts that the streams of a step choose in a REPEAT, where that is known before the first of
// them runs it. Neurons are cheaper read by the choice itself: those that lie close together in one piece.
void ForeseeStreams(const Step* const* steps, int32_t count, int32_t repeat) {
  const Instruction* code = steps[0]->code.data + repeat;
  for (int32_t k = 0; k < count; ++k) {
    const Range range = RangeOf(*steps[k], *code);
    for (int32_t i = 1; i <= code->body && range.low < range.high; ++i) {
      if (!code[i].chooses || steps[k]->program.tables[code[i].units].window) continue;
      ForeseeFrame(*steps[k], code[i], repeat, range.low);
    }
  }
}

template <bool kProfiled>
int RunRepeat(const Step& step, const Instruction* code, int64_t low, int64_t high) {
  const auto repeat = static_cast<int32_t>(code - step.code.data);
  for (int64_t q = low; q < high; ++q) {
    const bool last = q + 1 == high;
    for (int32_t k = 1; k <= code->body; ++k) {
      const Instruction& part = code[k];
      const bool guess = part.op == InstructionOp::kChoose && part.target < 0;
      if (guess && !last) continue;  // units of later instructions: they have to wait for these
      if (int status = RunProfiled<kProfiled>(step, part, q, q + 1)) return status;
      if (part.chooses && !last) ForeseeFrame(step, part, repeat, q + 1);
    }
  }
  return RN_OK;
}

bool Chosen(const Step& step, int32_t guard, int64_t q) {
  for (; guard >= 0; guard = step.code[guard].guard) {
    const Instruction& skip = step.code[guard];
    const Buffer& flags = step.program.buffers[skip.source];
    const int64_t slot = step.Slot(flags, q);
    if (slot < 0 || (step.Memory(flags)[slot * flags.frame_bytes] != 0) != (skip.wanted != 0)) return false;
  }
  return true;
}

bool AnyChosen(const Step* const* steps, int32_t count, int32_t i) {
  for (int32_t k = 0; k < count; ++k) {
    const Instruction& instruction = steps[k]->code[i];
    const Range range = RangeOf(*steps[k], instruction);
    for (int64_t q = range.low; q < range.high; ++q) {
      if (Chosen(*steps[k], instruction.guard, q)) return true;
    }
  }
  return false;
}

// Runs an instruction for those frames that the flags above it choose.
template <bool kProfiled>
int RunChosen(const Step& step, const Instruction& instruction, int64_t low, int64_t high) {
  for (int64_t q = low; q < high;) {
    int64_t end = q;
    while (end < high && Chosen(step, instruction.guard, end)) ++end;
    if (end > q) {
      if (int status = RunProfiled<kProfiled>(step, instruction, q, end)) return status;
    }
    q = end + 1;
  }
  return RN_OK;
}

template <bool kProfiled>
int RunInstruction(const Step& step, int32_t i) {
  const Instruction* code = step.code.data + i;
  const Range range = RangeOf(step, *code);
  if (range.low < range.high) {
    if (code->guard >= 0) {
      if (int status = RunChosen<kProfiled>(step, *code, range.low, range.high)) return status;
    } else if (code->op != InstructionOp::kRepeat) {
      if (int status = RunProfiled<kProfiled>(step, *code, range.low, range.high)) return status;
    } else if (int status = RunRepeat<kProfiled>(step, code, range.low, range.high)) {
      return status;
    }
  }
  return step.lengths ? FillTails(step, i) : RN_OK;
}

// RunAll for one stream that goes on, with all weights in memory.
int RunSteady(const Step& step) {
  const Instruction* end = step.code.data + step.code.size;
  for (const Instruction* code = step.code.data; code != end; code += 1 + code->body) {
    const int64_t low = step.before[code->made], high = step.after[code->made];
    if (low >= high) continue;
    int status = RN_OK;
    if (code->plain && high - low == 1) {
      status = RunPlain(step, *code, low);
    } else if (code->guard >= 0) {
      status = RunChosen<false>(step, *code, low, high);
    } else if (code->op != InstructionOp::kRepeat) {
      status = RunOne(step, *code, low, high);
    } else {
      status = RunRepeat<false>(step, code, low, high);
    }
    if (status) return status;
  }
  return RN_OK;
}

template <bool kProfiled>
int RunAll(const Step* const* steps, int32_t count, uint8_t* gathered) {
  const Span<Instruction>& code = steps[0]->code;
  Pager* pager = steps[0]->program.pager;
  for (int32_t i = 0; i < code.size; i += 1 + code[i].body) {
    if (pager) {
      if (code[i].guard >= 0) pager->Decide(i, AnyChosen(steps, count, i));
      if (int status = pager->Use(i)) return status;
    }
    if (count > 1 && gathered && code[i].together && !code[i].chooses) {
      if (int status = RunTogether(steps, count, i, gathered)) return status;
      continue;
    }
    if (count > 1 && code[i].chooses) ForeseeStreams(steps, count, i);
    for (int32_t k = 0; k < count; ++k) {
      if (int status = RunInstruction<kProfiled>(*steps[k], i)) return status;
    }
  }
  return RN_OK;
}

}  // namespace

int RunSteps(const Step* const* steps, int32_t count, uint8_t* gathered) {
  for (int32_t k = 0; k < count; ++k) ++steps[k]->counters.steps;
  Pager* pager = steps[0]->program.pager;
  const Step& first = *steps[0];
  if (count == 1 && !pager && !first.lengths && !first.stale && !first.help.profile) return RunSteady(first);
  if (pager) pager->Begin(steps, count);
  const int code =
      steps[0]->help.profile ? RunAll<true>(steps, count, gathered) : RunAll<false>(steps, count, gathered);
  if (pager) pager->End(code == RN_OK);
  return code;
}

}  // namespace runnel
