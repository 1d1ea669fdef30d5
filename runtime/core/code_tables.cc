// Instructions that take parts of tables: rows of numbers, units that were chosen.
#include <initializer_list>

#include "decoder.h"

namespace runnel {

bool Decoder::ReadFetch(int64_t at, int64_t size, int64_t number, int32_t top_level, Instruction& instruction) {
  auto n = static_cast<long long>(number);
  if (size != 12) return Fail("instruction %lld has a wrong size", n);
  if (!ReadRange(at, number, instruction)) return false;
  int64_t source = Code(at + 4), target = Code(at + 5), stride = Code(at + 6), offset = Code(at + 7);
  int64_t table = Code(at + 8), row_bytes = Code(at + 9), rows = Code(at + 10), apart = Code(at + 11);
  if (!IsBuffer(source) || !IsBuffer(target)) return Fail("instruction %lld names a buffer that is not there", n);
  const Buffer& from = program_->buffers[source];
  if (source == target || from.frame_bytes > 8 || row_bytes > program_->buffers[target].frame_bytes) {
    return Fail("instruction %lld fetches rows by what is no number, or into too small a frame", n);
  }
  if (!In(stride, 0, kMaxFactor) || !In(offset, -kMaxFactor, kMaxFactor) || !In(row_bytes, 4, kMaxFactor) ||
      row_bytes % 4 != 0 || !In(rows, 1, kMaxFactor) || !In(apart, 1, kMaxFactor)) {
    return Fail("instruction %lld fetches from an impossible table", n);
  }
  int64_t last = 0, block = 0, bytes = 0;
  if (__builtin_mul_overflow(bounds_[instruction.made], stride, &last) || last > kMaxCount) {
    return Fail("instruction %lld has an operand that can pass frame 2^62", n);
  }
  if (__builtin_mul_overflow(apart, row_bytes, &block) || block > kMaxFactor ||
      __builtin_mul_overflow((block + kPage - 1) / kPage * kPage, (rows + apart - 1) / apart, &bytes) ||
      !In(table, 0, header_.weights_bytes) || bytes > header_.weights_bytes - table || table % 4 != 0) {
    return Fail("instruction %lld fetches from outside the weights", n);
  }
  instruction.op = InstructionOp::kFetch;
  instruction.source = static_cast<int32_t>(source);
  instruction.target = static_cast<int32_t>(target);
  instruction.stride = stride;
  instruction.offset = offset;
  instruction.table = table;
  instruction.row_bytes = row_bytes;
  instruction.rows = rows;
  instruction.in_block = apart;
  instruction.block_bytes = (block + kPage - 1) / kPage * kPage;
  program_->buffers[target].last_writer = top_level;
  return true;
}

bool Decoder::ReadChoose(int64_t at, int64_t size, int64_t number, int32_t top_level, bool in_repeat,
                         Instruction& instruction) {
  auto n = static_cast<long long>(number);
  const bool told = size > kChooseWords, kept = size > kChooseWords + kMissPoints;
  if (size != kChooseWords + (told ? kMissPoints : 0) + (kept ? 1 : 0)) {
    return Fail("instruction %lld has a wrong size", n);
  }
  if (kept && Code(at + size - 1) != 1) return Fail("instruction %lld keeps its units in an unknown way", n);
  for (int64_t i = kChooseWords; i < size - kept; ++i) {
    if (!In(Code(at + i), 0, kMaxFactor)) return Fail("instruction %lld misses an impossible number of units", n);
  }
  if (!ReadRange(at, number, instruction)) return false;
  int64_t source = Code(at + 4), target = Code(at + 5), table = Code(at + 6), units = Code(at + 7);
  int64_t unit_bytes = Code(at + 8), sums = Code(at + 9), most = Code(at + 10);
  if (!IsBuffer(source) || (target != -1 && (!IsBuffer(target) || target == source))) {
    return Fail("instruction %lld names a buffer that is not there", n);
  }
  if (target != -1 && !in_repeat) return Fail("instruction %lld chooses outside a REPEAT", n);
  if (!In(units, 1, kMaxTable) || !In(most, 1, kMaxTable) || !In(unit_bytes, 64, kMaxFactor) || unit_bytes % 64 != 0) {
    return Fail("instruction %lld chooses from an impossible table", n);
  }
  const auto pinned = static_cast<int32_t>(most < units ? most : units);
  UnitTable found = {table, units, unit_bytes, sums, pinned, told, told && !kept, {}};
  for (int64_t i = kChooseWords; i < size - kept; ++i) found.misses[i - kChooseWords] = Code(at + i);
  if (!In(table, 0, header_.weights_bytes) || table % 64 != 0 || units > (header_.weights_bytes - table) / unit_bytes ||
      !In(sums, 0, header_.weights_bytes) || sums % 4 != 0 ||
      units > (header_.weights_bytes - sums) / (4 * found.Pieces())) {
    return Fail("instruction %lld chooses from outside the weights", n);
  }
  for (int64_t buffer : {source, target}) {
    if (buffer != -1 && program_->buffers[buffer].frame_bytes < 4 * (1 + most)) {
      return Fail("instruction %lld chooses more than its buffers hold", n);
    }
  }
  int32_t known = 0;
  for (; known < program_->tables.size && program_->tables[known].offset != table; ++known) {
  }
  if (known == program_->tables.size) program_->tables[program_->tables.size++] = found;
  UnitTable& same = program_->tables[known];
  if (same.units != units || same.unit_bytes != unit_bytes || same.sums != sums) {
    return Fail("instruction %lld names a table that another one describes otherwise", n);
  }
  if (same.most < pinned) same.most = pinned;
  instruction.op = InstructionOp::kChoose;
  instruction.source = static_cast<int32_t>(source);
  instruction.target = static_cast<int32_t>(target);
  instruction.units = known;
  instruction.chooses = target != -1;
  instruction.rows = most;
  if (target == -1) return true;
  Writes(target, top_level);
  Join();
  return true;
}

// Makes the CHOOSE that was read last one with those directly before it, where all are of units of unlike sizes.
void Decoder::Join() {
  const Span<Instruction>& code = in_prefill_ ? program_->prefill : program_->instructions;
  const int32_t last = code.size - 1;
  int32_t first = last;
  while (first > repeat_at_ && code[first - 1].op == InstructionOp::kChoose && code[first - 1].chooses) --first;
  for (int32_t i = first; i < last; ++i) {
    const Instruction& other = code[i];
    const int64_t bytes = program_->tables[code[last].units].unit_bytes;
    const bool apart = other.made != code[last].made || other.length != code[last].length;
    if (apart || program_->tables[other.units].unit_bytes == bytes) return;
  }
  if (first == last || code[first].joined != last - 1 - first) return;
  ++code[first].joined;
  code[last].joined = -1;
}

bool Decoder::ReadUnits(int64_t at, int64_t number, Operand& operand) {
  const int64_t id = Code(at + 1), offset = Code(at + 3), place = Code(at + 4), bytes = Code(at + 5);
  auto n = static_cast<long long>(number);
  const Span<Instruction>& code = in_prefill_ ? program_->prefill : program_->instructions;
  const auto chooses = [&](int32_t at) { return code[at].op == InstructionOp::kChoose && code[at].target != -1; };
  int32_t i = code.size - 1;
  while (i >= repeat_at_ && !(chooses(i) && code[i].target == id)) --i;
  bool last = i >= repeat_at_;
  for (int32_t k = i + 1; last && k < code.size; ++k) {
    last = !chooses(k) || program_->tables[code[k].units].unit_bytes != program_->tables[code[i].units].unit_bytes;
  }
  if (!last) return Fail("instruction %lld reads other units than its REPEAT chose last", n);
  const UnitTable& table = program_->tables[code[i].units];
  if (!In(place, -1, code[i].rows - 1) || !In(offset, 0, table.unit_bytes - 1) || offset % 4 != 0 ||
      !In(bytes, 1, table.unit_bytes - offset)) {
    return Fail("instruction %lld reads outside a unit", n);
  }
  operand.buffer = static_cast<int32_t>(id);
  operand.offset = offset;
  operand.taps = place;
  operand.dilation = bytes;
  operand.table = code[i].units;
  return true;
}

}  // namespace runnel
