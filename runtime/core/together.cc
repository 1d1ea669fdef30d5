#include "together.h"

#include <cstring>

#include "call.h"
#include "runnel.h"

namespace runnel {
namespace {

int64_t RoundUp(int64_t bytes) { return (bytes + 63) & ~int64_t{63}; }

// Frames of one row.
int64_t FramesOf(const Operand& operand) { return operand.kind == OperandKind::kOut ? operand.stride : operand.taps; }

bool IsFrames(const Operand& operand) {
  return operand.kind != OperandKind::kWeights && operand.kind != OperandKind::kShare;
}

int64_t TableBytes(const Operand& operand) { return RoundUp(operand.taps * 4); }

// Collects rows of one instruction until a call is full.
class Rows {
 public:
  Rows(const Program& program, const Instruction& instruction, uint8_t* memory)
      : program_(program), instruction_(instruction), memory_(memory) {}

  int Add(const Step& step, int64_t q) {
    rows_[count_++] = {&step, q, nullptr};
    return count_ == instruction_.rows_apart ? Run() : RN_OK;
  }

  int Finish() {
    if (count_ == 0) return RN_OK;
    if (count_ > 1) return Run();
    count_ = 0;
    return RunOne(*rows_[0].step, instruction_, rows_[0].q, rows_[0].q + 1);
  }

 private:
  struct Row {
    const Step* step;
    int64_t q;
    uint8_t* out;  // where the row's frames belong
  };

  int Run() {
    Arguments gathered = {};
    Place(gathered);
    for (int32_t r = 0; r < count_; ++r) {
      Arguments own;
      if (Bind(*rows_[r].step, instruction_, rows_[r].q, 1, own) != Binding::kBound) return RN_BAD_PLAN;
      if (r == 0) Shared(own, gathered);
      Gather(own, gathered, rows_[r], r);
    }
    // The call is for all its rows: what no stream has is made of the first row once more.
    for (int32_t r = count_; r < instruction_.rows_apart; ++r) Repeat(gathered, r);
    Counters counters = rows_[0].step->counters;  // each stream's own are added below
    const Step& first = *rows_[0].step;
    const Step step{program_,    first.state, first.scratch, first.before, first.after, first.lengths,
                    first.table, false,       counters,      first.help,   first.code};
    if (int code = CallKernels(step, instruction_, instruction_.kernel_apart, gathered)) return code;
    for (int32_t r = 0; r < count_; ++r) Scatter(gathered, rows_[r], r);
    count_ = 0;
    return RN_OK;
  }

  const Operand* begin() const { return program_.operands.data + instruction_.first_operand; }
  const Operand* end() const { return begin() + instruction_.operands; }

  int64_t FrameBytes(const Operand& operand) const { return program_.buffers[operand.buffer].frame_bytes; }

  // Where each operand's rows are gathered.
  void Place(Arguments& gathered) const {
    uint8_t* next = memory_;
    void** pointer = gathered.pointer;
    for (const Operand& operand : *this) {
      if (!IsFrames(operand)) {
        ++pointer;
        continue;
      }
      const int64_t bytes = FrameBytes(operand);
      *pointer++ = next;
      next += RoundUp(instruction_.rows_apart * FramesOf(operand) * bytes);
      if (operand.Pointers() == 2) {
        auto* table = reinterpret_cast<int32_t*>(next);
        for (int64_t tap = 0; tap < operand.taps; ++tap) table[tap] = static_cast<int32_t>(tap * (bytes / 4));
        *pointer++ = table;
        next += TableBytes(operand);
      }
    }
  }

  // Weights are the same for all rows.
  void Shared(const Arguments& own, Arguments& gathered) const {
    int32_t n = 0;
    for (const Operand& operand : *this) {
      if (operand.kind == OperandKind::kWeights) gathered.pointer[n] = own.pointer[n];
      n += operand.Pointers();
    }
  }

  void Gather(const Arguments& own, const Arguments& gathered, Row& row, int32_t r) const {
    int32_t n = 0;
    for (const Operand& operand : *this) {
      const int32_t at = n;
      n += operand.Pointers();
      if (!IsFrames(operand)) continue;
      const int64_t bytes = FrameBytes(operand), all = FramesOf(operand) * bytes;
      auto* from = static_cast<uint8_t*>(own.pointer[at]);
      if (operand.kind == OperandKind::kOut) {
        row.out = from;
        continue;
      }
      uint8_t* to = static_cast<uint8_t*>(gathered.pointer[at]) + r * all;
      if (operand.Pointers() == 1) {
        memcpy(to, from, static_cast<size_t>(all));
        continue;
      }
      const auto* table = static_cast<const int32_t*>(own.pointer[at + 1]);
      for (int64_t tap = 0; tap < operand.taps; ++tap) {
        memcpy(to + tap * bytes, from + int64_t{table[tap]} * 4, static_cast<size_t>(bytes));
      }
    }
  }

  void Repeat(const Arguments& gathered, int32_t r) const {
    int32_t n = 0;
    for (const Operand& operand : *this) {
      const int32_t at = n;
      n += operand.Pointers();
      if (!IsFrames(operand) || operand.kind == OperandKind::kOut) continue;
      const int64_t all = FramesOf(operand) * FrameBytes(operand);
      auto* rows = static_cast<uint8_t*>(gathered.pointer[at]);
      memcpy(rows + r * all, rows, static_cast<size_t>(all));
    }
  }

  void Scatter(const Arguments& gathered, const Row& row, int32_t r) const {
    const Step& step = *row.step;
    ++step.counters.calls;
    step.counters.macs += instruction_.kernel.macs;
    int32_t n = 0;
    for (const Operand& operand : *this) {
      const int32_t at = n;
      n += operand.Pointers();
      if (operand.kind != OperandKind::kOut) continue;
      const Buffer& buffer = program_.buffers[operand.buffer];
      const int64_t all = operand.stride * buffer.frame_bytes;
      const int64_t made = operand.dilation < buffer.frame_bytes ? operand.dilation : all;
      memcpy(row.out, static_cast<uint8_t*>(gathered.pointer[at]) + r * all, static_cast<size_t>(made));
      if (buffer.margin == 0) continue;
      uint8_t* memory = step.Memory(buffer);
      Mirror(buffer, memory, (row.out - memory) / buffer.frame_bytes, operand.stride, step.counters);
    }
  }

  const Program& program_;
  const Instruction& instruction_;
  uint8_t* memory_;
  int32_t count_ = 0;
  Row rows_[kMaxApart];
};

// A CALL for the frames of each stream: as many as lie in one piece from where they are, what is left together.
int CallTogether(const Step* const* steps, const Range* ranges, int32_t count, const Instruction& instruction,
                 uint8_t* gathered) {
  Rows rows(steps[0]->program, instruction, gathered);
  for (int32_t k = 0; k < count; ++k) {
    const int64_t whole = instruction.kernel_rows.code ? instruction.rows : ranges[k].high - ranges[k].low + 1;
    int64_t q = ranges[k].low;
    for (; ranges[k].high - q >= whole; q += whole) {
      if (int code = RunOne(*steps[k], instruction, q, q + whole)) return code;
    }
    for (; q < ranges[k].high; ++q) {
      if (int code = rows.Add(*steps[k], q)) return code;
    }
  }
  return rows.Finish();
}

}  // namespace

int64_t GatheredBytes(const Program& program, const Instruction& instruction) {
  int64_t bytes = 0, outputs = 0;
  for (int32_t i = 0; i < instruction.operands; ++i) {
    const Operand& operand = program.operands[instruction.first_operand + i];
    switch (operand.kind) {
      case OperandKind::kWeights:
      case OperandKind::kShare:
        continue;
      case OperandKind::kOut:
        ++outputs;
        break;
      case OperandKind::kIn:
      case OperandKind::kRun:
        break;
      default:
        return 0;
    }
    int64_t rows = 0;
    const int64_t frames = FramesOf(operand) * instruction.rows_apart;
    if (__builtin_mul_overflow(frames, program.buffers[operand.buffer].frame_bytes, &rows) || rows > kMaxGathered) {
      return 0;
    }
    bytes += RoundUp(rows) + (operand.Pointers() == 2 ? TableBytes(operand) : 0);
  }
  return outputs == 1 && bytes <= kMaxGathered ? bytes : 0;
}

int RunTogether(const Step* const* steps, int32_t count, int32_t i, uint8_t* gathered) {
  const Instruction* code = steps[0]->code.data + i;
  Range ranges[RN_LANES_TOGETHER];
  for (int32_t k = 0; k < count; ++k) ranges[k] = RangeOf(*steps[k], *code);
  if (code->op == InstructionOp::kCall) {
    if (int status = CallTogether(steps, ranges, count, *code, gathered)) return status;
  } else {
    for (int64_t turn = 0;; ++turn) {
      const Step* running[RN_LANES_TOGETHER];
      Range frame[RN_LANES_TOGETHER];
      int32_t n = 0;
      for (int32_t k = 0; k < count; ++k) {
        const int64_t q = ranges[k].low + turn;
        if (q >= ranges[k].high) continue;
        running[n] = steps[k];
        frame[n++] = {q, q + 1};
      }
      if (n == 0) break;
      for (int32_t b = 1; b <= code->body; ++b) {
        if (code[b].kernel_apart.code) {
          if (int status = CallTogether(running, frame, n, code[b], gathered)) return status;
          continue;
        }
        for (int32_t k = 0; k < n; ++k) {
          if (int status = RunOne(*running[k], code[b], frame[k].low, frame[k].high)) return status;
        }
      }
    }
  }
  for (int32_t k = 0; k < count; ++k) {
    if (!steps[k]->lengths) continue;
    if (int status = FillTails(*steps[k], i)) return status;
  }
  return RN_OK;
}

}  // namespace runnel
