#include "decoder.h"
#include "together.h"

namespace runnel {

// Adds what an entry point has, as far as ReadEntry comes at most.
void Decoder::Count(int64_t entry, Counts& counts) const {
  int64_t at = Word(entries_at_ + entry * 2);
  const int64_t count = Word(entries_at_ + entry * 2 + 1);
  if (!In(at, 0, header_.code)) return;
  for (int64_t i = 0; i < count && header_.code - at >= 2 && In(Code(at + 1), 2, header_.code - at); ++i) {
    const int64_t size = Code(at + 1);
    ++counts.instructions;
    if (Code(at) == 1 && size > kCallWords) counts.operands += (size - kCallWords) / kOperandWords;
    counts.chooses += Code(at) == 8;
    at += size;
  }
}

bool Decoder::ReadCode() {
  for (int64_t i = 0; i < header_.entries; ++i) {
    int64_t first = Word(entries_at_ + i * 2), count = Word(entries_at_ + i * 2 + 1);
    if (!In(first, 0, header_.code) || !In(count, 0, header_.code)) {
      return Fail("entry point %lld lies outside the code", static_cast<long long>(i));
    }
  }
  if (!ReadEntry(0, program_->instructions)) return false;
  if (header_.entries < 2) return true;
  // The second is the first less what only outputs need, in the same order.
  program_->prefill.data = program_->instructions.end();
  in_prefill_ = true;
  twin_at_ = Word(entries_at_);
  return ReadEntry(1, program_->prefill);
}

bool Decoder::ReadEntry(int64_t entry, Span<Instruction>& instructions) {
  int64_t at = Word(entries_at_ + entry * 2), count = Word(entries_at_ + entry * 2 + 1);
  int64_t repeat_left = 0;
  int32_t top_level = -1;
  for (int64_t i = 0; i < count; ++i) {
    int64_t left = header_.code - at;
    if (left < 2 || !In(Code(at + 1), 2, left)) {
      return Fail("instruction %lld runs past the code", static_cast<long long>(i));
    }
    int64_t op = Code(at), size = Code(at + 1);
    bool in_repeat = repeat_left > 0;
    if (in_repeat) {
      --repeat_left;
    } else {
      top_level = static_cast<int32_t>(i);
      repeat_at_ = instructions.size;
    }
    Instruction& instruction = instructions.data[instructions.size++];
    instruction = Instruction{};
    if (op != 2 && op != 4 && !NumberWork(at, size, instruction)) return false;  // all but REPEAT and SKIP_IF
    bool ok = false;
    switch (op) {
      case 1:
        ok = ReadCall(at, size, i, top_level, instruction);
        program_->macs += instruction.kernel.macs;
        if (instruction.together) instructions[top_level].together = true;
        break;
      case 2:
        ok = ReadRepeat(at, size, i, count, in_repeat, instruction);
        repeat_left = instruction.body;
        break;
      case 3:
        ok = ReadCopy(at, size, i, top_level, instruction);
        break;
      case 7:
        ok = ReadFetch(at, size, i, top_level, instruction);
        break;
      case 8:
        ok = ReadChoose(at, size, i, top_level, in_repeat, instruction);
        if (instruction.chooses) instructions[top_level].chooses = true;
        break;
      case 4:
        ok = ReadSkip(at, size, i, count, instruction);
        break;
      case 5:
        return FailWith(RN_UNSUPPORTED, "this runtime lacks the instruction SUBGRAPH; update runnel");
      case 6:
        ok = ReadAttend(at, size, i, top_level, instruction);
        break;
      default:
        return FailWith(RN_UNSUPPORTED, "instruction %lld has the unknown op %lld; update runnel",
                        static_cast<long long>(i), static_cast<long long>(op));
    }
    if (!ok || !Guard(instructions, i, in_repeat)) return false;
    at += size;
  }
  return true;
}

// An instruction of the second entry point has the number of the one of the first that it repeats.
bool Decoder::NumberWork(int64_t at, int64_t size, Instruction& instruction) {
  if (!in_prefill_) {
    instruction.work = program_->works++;
    return true;
  }
  for (; twin_ < program_->instructions.size; ++twin_) {
    const int64_t other = twin_at_;
    twin_at_ += Code(twin_at_ + 1);
    bool same = Code(other + 1) == size;
    for (int64_t i = 0; same && i < size; ++i) same = Code(other + i) == Code(at + i);
    if (!same) continue;
    instruction.work = program_->instructions[twin_++].work;
    return true;
  }
  return Fail("the second entry point has an instruction that the first lacks");
}

bool Decoder::ReadRange(int64_t at, int64_t number, Instruction& instruction) {
  int64_t made = Code(at + 2), length = Code(at + 3);
  if (!IsClock(made) || !IsClock(length)) {
    return Fail("instruction %lld names a clock that is not there", static_cast<long long>(number));
  }
  if (!IsMade(made)) {
    return Fail("instruction %lld can make more than 2^24 frames in a step", static_cast<long long>(number));
  }
  instruction.made = static_cast<int32_t>(made);
  instruction.length = static_cast<int32_t>(length);
  return true;
}

bool Decoder::ReadKernel(int64_t index, int64_t number, int32_t arguments, Entry* kernel) {
  if (!In(index, 0, header_.kernels - 1)) {
    return Fail("instruction %lld calls a kernel that is not there", static_cast<long long>(number));
  }
  int64_t declared = Word(kernels_at_ + index * 3 + 1);
  if (declared != arguments) {
    return Fail("instruction %lld passes %d pointers to kernel %lld, which takes %lld", static_cast<long long>(number),
                arguments, static_cast<long long>(index), static_cast<long long>(declared));
  }
  *kernel = {sources_.image + Word(kernels_at_ + index * 3), Word(kernels_at_ + index * 3 + 2)};
  return true;
}

bool Decoder::ReadCall(int64_t at, int64_t size, int64_t number, int32_t top_level, Instruction& instruction) {
  if (size < kCallWords) return Fail("instruction %lld is too short", static_cast<long long>(number));
  if (!ReadRange(at, number, instruction)) return false;
  int64_t kernel = Code(at + 4), kernel_rows = Code(at + 5), rows = Code(at + 6), operands = Code(at + 9);
  if (!In(operands, 1, kMaxArguments) || size != kCallWords + operands * kOperandWords) {
    return Fail("instruction %lld has a wrong number of operands", static_cast<long long>(number));
  }
  if (program_->operands.size + operands > most_operands_) return Fail("the plan has too many operands");
  instruction.op = InstructionOp::kCall;
  instruction.first_operand = program_->operands.size;
  instruction.operands = static_cast<int32_t>(operands);
  instruction.rows = 1;
  instruction.plain = true;
  int64_t taps = 0;
  for (int64_t i = 0; i < operands; ++i) {
    Operand& operand = program_->operands[program_->operands.size++];
    if (!ReadOperand(at + kCallWords + i * kOperandWords, number, instruction, operand)) return false;
    instruction.arguments += operand.Pointers();
    instruction.shared |= operand.kind == OperandKind::kShare;
    instruction.plain &= operand.kind <= OperandKind::kRun;
    if (operand.Pointers() == 2) taps += operand.kind == OperandKind::kRing ? 2 : operand.taps;
    if (operand.kind == OperandKind::kOut) Writes(operand.buffer, top_level);
  }
  if (taps > kMaxTable) return Fail("instruction %lld has too many taps", static_cast<long long>(number));
  if (taps > program_->tap_entries) program_->tap_entries = taps;
  if (instruction.arguments > kMaxArguments) {
    return Fail("instruction %lld passes more than 16 pointers", static_cast<long long>(number));
  }
  if (!ReadKernel(kernel, number, instruction.arguments, &instruction.kernel)) return false;
  if (kernel_rows != -1) {
    if (!In(rows, 2, kMaxFactor)) {
      return Fail("instruction %lld makes an impossible number of rows", static_cast<long long>(number));
    }
    instruction.rows = rows;
    for (int64_t i = 0; i < operands; ++i) {
      if (program_->operands[instruction.first_operand + i].kind == OperandKind::kRing) {
        return Fail("instruction %lld makes several rows from a ring", static_cast<long long>(number));
      }
    }
    if (!ReadKernel(kernel_rows, number, instruction.arguments, &instruction.kernel_rows)) return false;
  }
  return ReadApart(at, number, instruction);
}

bool Decoder::ReadApart(int64_t at, int64_t number, Instruction& instruction) {
  const int64_t kernel = Code(at + 7), rows = Code(at + 8);
  if (kernel == -1) return true;
  if (!In(rows, 2, kMaxApart)) {
    return Fail("instruction %lld makes an impossible number of rows", static_cast<long long>(number));
  }
  instruction.rows_apart = static_cast<int32_t>(rows);
  instruction.together = true;
  const int64_t bytes = GatheredBytes(*program_, instruction);
  if (bytes == 0) return Fail("instruction %lld has operands that cannot be gathered", static_cast<long long>(number));
  if (bytes > program_->gathered_bytes) program_->gathered_bytes = bytes;
  return ReadKernel(kernel, number, instruction.arguments, &instruction.kernel_apart);
}

bool Decoder::ReadOperand(int64_t at, int64_t number, const Instruction& instruction, Operand& operand) {
  int64_t kind = Code(at), id = Code(at + 1), stride = Code(at + 2), offset = Code(at + 3), taps = Code(at + 4);
  int64_t dilation = Code(at + 5);
  auto n = static_cast<long long>(number);
  if (!In(kind, 0, 8)) return FailWith(RN_UNSUPPORTED, "instruction %lld has an operand of unknown kind", n);
  operand = Operand{};
  operand.kind = static_cast<OperandKind>(kind);
  if (operand.kind == OperandKind::kWeights) {
    if (!In(id, 0, header_.weights_bytes - 1) || id % 4 != 0) {
      return Fail("instruction %lld reads outside the weights, or not on a multiple of 4 bytes", n);
    }
    if (!In(offset, 1, header_.weights_bytes - id)) {
      return Fail("instruction %lld reads past the end of the weights", n);
    }
    operand.weights_offset = id;
    operand.offset = offset;
    return true;
  }
  if (operand.kind == OperandKind::kShare) return true;
  if (operand.kind == OperandKind::kUnits) return ReadUnits(at, number, operand);
  if (operand.kind == OperandKind::kFrame) {
    if (!IsClock(id)) return Fail("instruction %lld names a clock that is not there", n);
    operand.buffer = static_cast<int32_t>(id);
    return true;
  }
  if (!IsBuffer(id)) return Fail("instruction %lld names a buffer that is not there", n);
  const Buffer& buffer = program_->buffers[id];
  bool writes = operand.kind == OperandKind::kOut;
  if (writes) {
    if (!In(offset, 0, buffer.frame_bytes - 1) || offset % 4 != 0 || !In(dilation, 0, buffer.frame_bytes - offset)) {
      return Fail("instruction %lld writes outside its frame, or not on a multiple of 4 bytes", n);
    }
    if (dilation == 0) dilation = buffer.frame_bytes - offset;
    if (dilation < buffer.frame_bytes && stride != 1) {
      return Fail("instruction %lld writes parts of several frames", n);
    }
    taps = 1;
  } else if (operand.kind == OperandKind::kRun || taps == 1) {
    dilation = 1;
  }
  if (!In(stride, writes ? 1 : 0, kMaxFactor) || !In(offset, -kMaxFactor, kMaxFactor) || !In(taps, 1, kMaxTable) ||
      !In(dilation, 1, kMaxFactor)) {
    return Fail("instruction %lld has an operand with an impossible stride, offset, taps or dilation", n);
  }
  if (operand.kind == OperandKind::kLast) {
    if (offset >= 0 || stride != 0 || taps != 1 || bounds_[instruction.made] > 1) {
      return Fail("instruction %lld counts a frame from the end and is not run once, for one frame before the end", n);
    }
  }
  int64_t last = 0;  // the highest frame this operand can name
  if (__builtin_mul_overflow(bounds_[instruction.made], stride, &last) || last > kMaxCount) {
    return Fail("instruction %lld has an operand that can pass frame 2^62", n);
  }
  if (writes && (stride > buffer.slots || (buffer.slots % stride != 0 && buffer.margin < stride - 1))) {
    return Fail("instruction %lld writes %lld frames at once, which its buffer cannot hold in one piece", n,
                static_cast<long long>(stride));
  }
  if (operand.kind == OperandKind::kRing && (taps > buffer.slots || buffer.slots > INT32_MAX)) {
    return Fail("instruction %lld reads %lld frames of a ring, which does not keep so many", n,
                static_cast<long long>(taps));
  }
  if (operand.kind == OperandKind::kRun &&
      (taps > buffer.slots + buffer.margin || (buffer.space == Space::kState && buffer.margin < taps - 1))) {
    return Fail("instruction %lld reads %lld frames as one run; its buffer's margin is too small", n,
                static_cast<long long>(taps));
  }
  operand.buffer = static_cast<int32_t>(id);
  operand.stride = stride;
  operand.offset = offset;
  operand.taps = static_cast<int32_t>(taps);
  operand.dilation = dilation;
  return true;
}

bool Decoder::ReadRepeat(int64_t at, int64_t size, int64_t number, int64_t count, bool in_repeat,
                         Instruction& instruction) {
  if (size != 5) return Fail("instruction %lld has a wrong size", static_cast<long long>(number));
  if (in_repeat) return Fail("instruction %lld is a REPEAT inside a REPEAT", static_cast<long long>(number));
  int64_t body = Code(at + 4);
  if (!In(body, 1, count - number - 1)) {
    return Fail("instruction %lld repeats more than what follows it", static_cast<long long>(number));
  }
  instruction.op = InstructionOp::kRepeat;
  instruction.body = static_cast<int32_t>(body);
  return ReadRange(at, number, instruction);
}

bool Decoder::ReadSkip(int64_t at, int64_t size, int64_t number, int64_t count, Instruction& instruction) {
  auto n = static_cast<long long>(number);
  if (size != 7) return Fail("instruction %lld has a wrong size", n);
  const int64_t source = Code(at + 4), wanted = Code(at + 5), covered = Code(at + 6);
  if (!In(covered, 1, count - number - 1)) return Fail("instruction %lld skips more than what follows it", n);
  if (!ReadRange(at, number, instruction)) return false;
  if (!IsBuffer(source) || !In(wanted, 0, 1) || program_->buffers[source].made != instruction.made) {
    return Fail("instruction %lld skips by what is no flag of its frames", n);
  }
  instruction.op = InstructionOp::kSkipIf;
  instruction.source = static_cast<int32_t>(source);
  instruction.wanted = static_cast<uint8_t>(wanted);
  instruction.covered = static_cast<int32_t>(covered);
  return true;
}

bool Decoder::Guard(const Span<Instruction>& code, int64_t number, bool in_repeat) {
  Instruction& instruction = code[number];
  int32_t guard =
      number ? code[number - 1].op == InstructionOp::kSkipIf ? static_cast<int32_t>(number - 1) : code[number - 1].guard
             : -1;
  while (guard >= 0 && number > guard + code[guard].covered) guard = code[guard].guard;
  if (guard < 0) return true;
  auto n = static_cast<long long>(number);
  if (in_repeat || (instruction.op != InstructionOp::kCall && instruction.op != InstructionOp::kSkipIf)) {
    return Fail("instruction %lld may be skipped and is no CALL", n);
  }
  if (instruction.made != code[guard].made) return Fail("instruction %lld is skipped by other frames' flags", n);
  if (instruction.op == InstructionOp::kSkipIf && number + instruction.covered > guard + code[guard].covered) {
    return Fail("instruction %lld skips more than what it lies in", n);
  }
  instruction.guard = guard;
  instruction.plain = instruction.together = false;
  return true;
}

bool Decoder::ReadCopy(int64_t at, int64_t size, int64_t number, int32_t top_level, Instruction& instruction) {
  auto n = static_cast<long long>(number);
  if (size != 10) return Fail("instruction %lld has a wrong size", n);
  if (!ReadRange(at, number, instruction)) return false;
  int64_t source = Code(at + 4), target = Code(at + 5), offset = Code(at + 6), mode = Code(at + 7);
  int64_t source_length = Code(at + 8), fill = Code(at + 9);
  if (!IsBuffer(source) || !IsBuffer(target) || source == target) {
    return Fail("instruction %lld does not copy between two buffers", n);
  }
  if (program_->buffers[source].frame_bytes != program_->buffers[target].frame_bytes) {
    return Fail("instruction %lld copies between buffers of unlike frames", n);
  }
  if (!IsClock(source_length)) return Fail("instruction %lld names a clock that is not there", n);
  if (!In(mode, 0, 2)) return FailWith(RN_UNSUPPORTED, "instruction %lld copies in an unknown mode", n);
  if (!In(offset, -kMaxCount / 4, kMaxCount / 4)) return Fail("instruction %lld has an impossible offset", n);
  instruction.op = InstructionOp::kCopy;
  instruction.source = static_cast<int32_t>(source);
  instruction.target = static_cast<int32_t>(target);
  instruction.offset = offset;
  instruction.mode = static_cast<CopyMode>(mode);
  instruction.source_length = static_cast<int32_t>(source_length);
  instruction.fill = static_cast<uint32_t>(fill);
  Writes(target, top_level);
  return true;
}

}  // namespace runnel
