#include "plan.h"

#include <cstdarg>
#include <cstdio>
#include <cstring>

#include "platform.h"
#include "runnel.h"

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "plans are little-endian and read in place");

namespace runnel {
namespace {

constexpr int64_t kHeaderWords = 16;
constexpr int64_t kSchema = 1;
constexpr int64_t kMaxHop = int64_t{1} << 24;
constexpr int64_t kMaxFactor = int64_t{1} << 31;  // strides, taps, mul, div …
constexpr int64_t kMaxMemory = int64_t{1} << 46;
constexpr int64_t kMaxRing = int64_t{1} << 33;  // bytes: element offsets in tap tables are int32
constexpr int64_t kMaxTable = int64_t{1} << 20;
constexpr int64_t kMaxFramesOfStep = int64_t{1} << 24;
constexpr int64_t kFloat32 = 1;  // ONNX's number

struct Header {
  int64_t clocks, buffers, kernels, code, inputs, outputs, entries, state_bytes, scratch_bytes, weights_bytes, hop;
};

// One pass over the words; the first broken rule leaves its sentence in the message.
class Decoder {
 public:
  Decoder(const Sources& sources, Message message) : sources_(sources), message_(message) {}

  int Run(Program** out) {
    if (!ReadHeader()) return code_;
    if (!Allocate()) return code_;
    if (ReadClocks() && ReadBuffers() && ReadKernels() && ReadInputs() && ReadOutputs() && ReadCode()) {
      Finish();
      *out = program_;
      return RN_OK;
    }
    PlatformFree(program_);
    return code_;
  }

 private:
  __attribute__((format(printf, 2, 3))) bool Fail(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    Say(RN_BAD_PLAN, format, arguments);
    va_end(arguments);
    return false;
  }
  __attribute__((format(printf, 3, 4))) bool FailWith(int code, const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    Say(code, format, arguments);
    va_end(arguments);
    return false;
  }
  void Say(int code, const char* format, va_list arguments) {
    code_ = code;
    if (message_.text && message_.bytes) vsnprintf(message_.text, message_.bytes, format, arguments);
  }

  int64_t Word(int64_t index) const {
    int64_t word;
    memcpy(&word, sources_.plan + index * 8, 8);
    return word;
  }

  static bool In(int64_t x, int64_t low, int64_t high) { return x >= low && x <= high; }
  bool IsClock(int64_t x) const { return x >= 0 && x < header_.clocks; }
  // Whether a clock's steps are small enough to be worked through.
  bool IsMade(int64_t clock) const { return growth_[clock] <= kMaxFramesOfStep && first_[clock] <= kMaxFramesOfStep; }
  bool IsBuffer(int64_t x) const { return x >= 0 && x < header_.buffers; }

  bool ReadHeader() {
    int64_t words = static_cast<int64_t>(sources_.plan_bytes / 8);
    if (sources_.plan_bytes % 8 != 0 || words < kHeaderWords) return Fail("the plan is cut off");
    if (memcmp(sources_.plan, "RNLPLAN\0", 8) != 0) return Fail("this is not a plan: its first bytes are wrong");
    if (Word(1) != kSchema) {
      return FailWith(RN_UNSUPPORTED, "the plan has schema %lld and this runtime reads %lld; update runnel",
                      static_cast<long long>(Word(1)), static_cast<long long>(kSchema));
    }
    header_ = {Word(3), Word(4), Word(5), Word(6), Word(7), Word(8), Word(9), Word(10), Word(11), Word(12), Word(13)};
    int64_t sizes[][2] = {{header_.clocks, 6}, {header_.buffers, 12}, {header_.kernels, 2}, {header_.code, 1},
                          {header_.inputs, 4}, {header_.outputs, 8},  {header_.entries, 2}};
    int64_t total = kHeaderWords;
    for (auto& size : sizes) {
      if (!In(size[0], 0, words)) return Fail("a count in the plan's header is impossible");
      total += size[0] * size[1];
    }
    if (Word(2) != words || total != words) {
      return Fail("the plan should have %lld words and has %lld", static_cast<long long>(total),
                  static_cast<long long>(words));
    }
    if (!In(header_.clocks, 1, kMaxClocks)) return Fail("a plan has between 1 and 4096 clocks");
    if (header_.entries < 1 || header_.inputs < 1 || header_.outputs < 1) {
      return Fail("a plan needs an input, an output and an entry point");
    }
    if (!In(header_.hop, 1, kMaxHop)) return Fail("the hop must be 1 to 2^24 frames");
    if (!In(header_.state_bytes, kStateHeaderBytes, kMaxMemory) || !In(header_.scratch_bytes, 0, kMaxMemory)) {
      return Fail("the plan's state or scratch size is impossible");
    }
    if (header_.weights_bytes != static_cast<int64_t>(sources_.weights_bytes)) {
      return Fail("the plan needs %lld bytes of weights and got %lld", static_cast<long long>(header_.weights_bytes),
                  static_cast<long long>(sources_.weights_bytes));
    }
    clocks_at_ = kHeaderWords;
    buffers_at_ = clocks_at_ + header_.clocks * 6;
    kernels_at_ = buffers_at_ + header_.buffers * 12;
    inputs_at_ = kernels_at_ + header_.kernels * 2;
    outputs_at_ = inputs_at_ + header_.inputs * 4;
    entries_at_ = outputs_at_ + header_.outputs * 8;
    code_at_ = entries_at_ + header_.entries * 2;
    return true;
  }

  template <typename T>
  static size_t Place(size_t& at, int64_t count) {
    size_t start = (at + 15) & ~size_t{15};
    at = start + sizeof(T) * static_cast<size_t>(count);
    return start;
  }
  template <typename T>
  void Bind(Span<T>& span, size_t at, int64_t count) {
    span.data = reinterpret_cast<T*>(reinterpret_cast<uint8_t*>(program_) + at);
    span.size = static_cast<int32_t>(count);
  }

  bool Allocate() {
    int64_t most_instructions = header_.code / 5 + 1;  // REPEAT, the shortest, has 5 words
    int64_t most_operands = header_.code / 6 + 1;
    size_t bytes = sizeof(Program);
    size_t clocks = Place<Clock>(bytes, header_.clocks);
    size_t bounds = Place<int64_t>(bytes, header_.clocks);
    size_t growth = Place<int64_t>(bytes, header_.clocks);
    size_t first = Place<int64_t>(bytes, header_.clocks);
    size_t output_clocks = Place<int32_t>(bytes, header_.clocks);
    size_t buffers = Place<Buffer>(bytes, header_.buffers);
    size_t inputs = Place<Input>(bytes, header_.inputs);
    size_t outputs = Place<Output>(bytes, header_.outputs);
    size_t operands = Place<Operand>(bytes, most_operands);
    size_t instructions = Place<Instruction>(bytes, most_instructions);
    void* block = PlatformAlloc(bytes);
    if (!block) return FailWith(RN_NO_MEMORY, "not enough memory for the program");
    program_ = static_cast<Program*>(block);
    *program_ = Program{};
    Bind(program_->clocks, clocks, header_.clocks);
    Bind(bounds_, bounds, header_.clocks);
    Bind(growth_, growth, header_.clocks);
    Bind(first_, first, header_.clocks);
    Bind(program_->output_clocks, output_clocks, 0);
    Bind(program_->buffers, buffers, header_.buffers);
    Bind(program_->inputs, inputs, header_.inputs);
    Bind(program_->outputs, outputs, header_.outputs);
    Bind(program_->operands, operands, 0);
    Bind(program_->instructions, instructions, 0);
    most_operands_ = most_operands;
    program_->weights = sources_.weights;
    return true;
  }

  bool ReadClocks() {
    for (int64_t i = 0; i < header_.clocks; ++i) {
      int64_t at = clocks_at_ + i * 6;
      int64_t op = Word(at), a = Word(at + 1), b = Word(at + 2), mul = Word(at + 3), div = Word(at + 4);
      int64_t add = Word(at + 5);
      auto number = static_cast<long long>(i);
      if (!In(op, 0, 4)) return FailWith(RN_UNSUPPORTED, "clock %lld has the unknown op %lld", number, (long long)op);
      auto kind = static_cast<ClockOp>(op);
      bool uses_a = kind == ClockOp::kAffine || kind == ClockOp::kMin || kind == ClockOp::kMax;
      bool uses_b = kind == ClockOp::kMin || kind == ClockOp::kMax;
      if ((uses_a && !In(a, 0, i - 1)) || (uses_b && !In(b, 0, i - 1))) {
        return Fail("clock %lld depends on a clock that does not come before it", number);
      }
      Clock& clock = program_->clocks[i];
      clock = {kind, static_cast<int32_t>(uses_a ? a : 0), static_cast<int32_t>(uses_b ? b : 0), 0, 0, Divider::Of(1)};
      int64_t bound = 0;
      switch (kind) {
        case ClockOp::kInput:
          bound = kMaxVirtualFrames;
          break;
        case ClockOp::kAffine:
          if (!In(mul, 0, kMaxFactor) || !In(div, 1, kMaxFactor)) {
            return Fail("clock %lld needs 0 <= mul <= 2^31 and 1 <= div <= 2^31", number);
          }
          if (__builtin_mul_overflow(bounds_[a], mul, &bound) || __builtin_add_overflow(bound, add, &bound) ||
              !In(add, -kMaxCount, kMaxCount) || bound > kMaxCount) {
            return Fail("clock %lld can pass 2^62", number);
          }
          bound = bound <= 0 ? 0 : bound / div;
          clock.mul = mul;
          clock.add = add;
          clock.div = Divider::Of(div);
          break;
        case ClockOp::kMin:
          bound = bounds_[a] < bounds_[b] ? bounds_[a] : bounds_[b];
          break;
        case ClockOp::kMax:
          bound = bounds_[a] > bounds_[b] ? bounds_[a] : bounds_[b];
          break;
        case ClockOp::kConst:
          if (!In(add, 0, kMaxCount)) return Fail("clock %lld is a constant outside 0 to 2^62", number);
          clock.add = bound = add;
          break;
      }
      bounds_[i] = bound;
      growth_[i] = Growth(clock);
      first_[i] = EvaluateClock(clock, header_.hop, first_.data);  // the first step starts from nothing
    }
    return true;
  }

  // The most frames that a clock can gain while t gains a hop, at most 2^62.
  int64_t Growth(const Clock& clock) const {
    int64_t growth = 0;
    switch (clock.op) {
      case ClockOp::kInput:
        return header_.hop;
      case ClockOp::kAffine:
        if (__builtin_mul_overflow(growth_[clock.a], clock.mul, &growth) || growth >= kMaxCount) return kMaxCount;
        return growth / static_cast<int64_t>(clock.div.divisor) + 1;
      case ClockOp::kMin:
      case ClockOp::kMax:
        return growth_[clock.a] > growth_[clock.b] ? growth_[clock.a] : growth_[clock.b];
      default:
        return 0;
    }
  }

  bool ReadBuffers() {
    for (int64_t i = 0; i < header_.buffers; ++i) {
      int64_t at = buffers_at_ + i * 12;
      int64_t space = Word(at), base = Word(at + 1), frame_bytes = Word(at + 2), slots = Word(at + 3);
      int64_t margin = Word(at + 4), made = Word(at + 5), length = Word(at + 6), fill = Word(at + 7);
      int64_t lead = Word(at + 8), init_offset = Word(at + 9), init_frames = Word(at + 10), tail = Word(at + 11);
      auto number = static_cast<long long>(i);
      if (!In(space, 1, 2)) return Fail("buffer %lld lies in the unknown space %lld", number, (long long)space);
      bool in_state = space == static_cast<int64_t>(Space::kState);
      if (!IsClock(made) || !IsClock(length)) return Fail("buffer %lld names a clock that is not there", number);
      if (!IsMade(made)) return Fail("buffer %lld can get more than 2^24 frames in a step", number);
      if (!In(frame_bytes, 4, kMaxFactor) || frame_bytes % 4 != 0 || !In(slots, 1, kMaxFactor) ||
          !In(margin, 0, slots)) {
        return Fail("buffer %lld needs frames of a multiple of 4 bytes, a slot, and a margin of at most its slots",
                    number);
      }
      int64_t bytes = 0;
      if (__builtin_mul_overflow(frame_bytes, slots + margin, &bytes) || bytes > kMaxRing) {
        return Fail("buffer %lld is larger than 8 GiB", number);
      }
      int64_t low = in_state ? kStateHeaderBytes : 0;
      int64_t high = in_state ? header_.state_bytes : header_.scratch_bytes;
      if (!In(base, low, high) || base % 64 != 0 || bytes > high - base) {
        return Fail("buffer %lld does not lie inside its space, or not on a multiple of 64 bytes", number);
      }
      if (!In(lead, 0, in_state ? slots : 0) || !In(init_frames, 0, lead)) {
        return Fail("buffer %lld has more frames before its first than slots", number);
      }
      if (init_frames > 0 && (!In(init_offset, 0, header_.weights_bytes) ||
                              init_frames * frame_bytes > header_.weights_bytes - init_offset)) {
        return Fail("the first frames of buffer %lld lie outside the weights", number);
      }
      program_->buffers[i] = {static_cast<Space>(space),
                              static_cast<int32_t>(made),
                              static_cast<int32_t>(length),
                              static_cast<uint32_t>(fill),
                              base,
                              frame_bytes,
                              slots,
                              margin,
                              lead,
                              init_offset,
                              init_frames,
                              tail > 0,
                              -1,
                              Divider::Of(slots)};
    }
    return true;
  }

  bool ReadKernels() {
    for (int64_t i = 0; i < header_.kernels; ++i) {
      int64_t offset = Word(kernels_at_ + i * 2), arguments = Word(kernels_at_ + i * 2 + 1);
      if (offset < 0 || static_cast<uint64_t>(offset) >= sources_.image_bytes) {
        return Fail("kernel %lld lies outside the image", static_cast<long long>(i));
      }
      if (!In(arguments, 1, kMaxArguments)) {
        return Fail("kernel %lld has %lld arguments; 1 to 16 are possible", static_cast<long long>(i),
                    static_cast<long long>(arguments));
      }
    }
    return true;
  }

  // Whether an array's frame fits a buffer's.
  bool Fits(int64_t buffer, int64_t outer, int64_t inner) const {
    int64_t bytes = 0;
    return IsBuffer(buffer) && In(outer, 1, kMaxFactor) && In(inner, 1, kMaxFactor) &&
           !__builtin_mul_overflow(outer, inner, &bytes) && bytes <= program_->buffers[buffer].frame_bytes;
  }

  bool ReadInputs() {
    for (int64_t i = 0; i < header_.inputs; ++i) {
      int64_t at = inputs_at_ + i * 4;
      int64_t buffer = Word(at), outer = Word(at + 1), inner = Word(at + 2), dtype = Word(at + 3);
      auto number = static_cast<long long>(i);
      if (!Fits(buffer, outer, inner)) return Fail("input %lld does not fit a buffer", number);
      if (program_->clocks[program_->buffers[buffer].made].op != ClockOp::kInput) {
        return Fail("the buffer of input %lld is not made by the input clock", number);
      }
      bool is_float32 = dtype == kFloat32;
      if (is_float32 && inner % 4 != 0) return Fail("input %lld has a broken float32 frame", number);
      program_->inputs[i] = {static_cast<int32_t>(buffer), is_float32, outer, inner};
    }
    return true;
  }

  bool ReadOutputs() {
    for (int64_t i = 0; i < header_.outputs; ++i) {
      int64_t at = outputs_at_ + i * 8;
      int64_t buffer = Word(at), shift = Word(at + 1), made = Word(at + 2), length = Word(at + 3);
      int64_t outer = Word(at + 4), inner = Word(at + 5), tail_start = Word(at + 6), tail_stop = Word(at + 7);
      auto number = static_cast<long long>(i);
      if (!Fits(buffer, outer, inner)) return Fail("output %lld does not fit a buffer", number);
      if (!IsClock(made) || !IsClock(length)) return Fail("output %lld names a clock that is not there", number);
      if (!IsMade(made)) return Fail("output %lld can give more than 2^24 frames in a step", number);
      if (!In(shift, -kMaxFactor, kMaxFactor)) return Fail("output %lld is shifted too far", number);
      if (!In(tail_start, 0, kMaxFactor) || !In(tail_stop, 0, tail_start)) {
        return Fail("output %lld has an impossible tail", number);
      }
      program_->outputs[i] = {static_cast<int32_t>(buffer),
                              static_cast<int32_t>(made),
                              static_cast<int32_t>(length),
                              shift,
                              outer,
                              inner,
                              tail_start,
                              tail_stop};
    }
    return true;
  }

  bool ReadCode() {
    for (int64_t i = 0; i < header_.entries; ++i) {
      int64_t first = Word(entries_at_ + i * 2), count = Word(entries_at_ + i * 2 + 1);
      if (!In(first, 0, header_.code) || !In(count, 0, header_.code)) {
        return Fail("entry point %lld lies outside the code", static_cast<long long>(i));
      }
    }
    // Other entry points are for models of several parts (encode, predict, join); one step function needs the first.
    int64_t at = Word(entries_at_), count = Word(entries_at_ + 1);
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
      }
      int32_t n = program_->instructions.size;
      program_->instructions.size = n + 1;
      Instruction& instruction = program_->instructions[n];
      instruction = Instruction{};
      bool ok = false;
      switch (op) {
        case 1:
          ok = ReadCall(at, size, i, top_level, instruction);
          break;
        case 2:
          ok = ReadRepeat(at, size, i, count, in_repeat, instruction);
          repeat_left = instruction.body;
          break;
        case 3:
          ok = ReadCopy(at, size, i, top_level, instruction);
          break;
        case 4:
          return FailWith(RN_UNSUPPORTED, "this runtime lacks the instruction SKIP_IF; update runnel");
        case 5:
          return FailWith(RN_UNSUPPORTED, "this runtime lacks the instruction SUBGRAPH; update runnel");
        default:
          return FailWith(RN_UNSUPPORTED, "instruction %lld has the unknown op %lld; update runnel",
                          static_cast<long long>(i), static_cast<long long>(op));
      }
      if (!ok) return false;
      at += size;
    }
    return true;
  }

  int64_t Code(int64_t at) const { return Word(code_at_ + at); }

  bool ReadRange(int64_t at, int64_t number, Instruction& instruction) {
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

  bool ReadKernel(int64_t index, int64_t number, int32_t arguments, const uint8_t** kernel) {
    if (!In(index, 0, header_.kernels - 1)) {
      return Fail("instruction %lld calls a kernel that is not there", static_cast<long long>(number));
    }
    int64_t declared = Word(kernels_at_ + index * 2 + 1);
    if (declared != arguments) {
      return Fail("instruction %lld passes %d pointers to kernel %lld, which takes %lld",
                  static_cast<long long>(number), arguments, static_cast<long long>(index),
                  static_cast<long long>(declared));
    }
    *kernel = sources_.image + Word(kernels_at_ + index * 2);
    return true;
  }

  bool ReadCall(int64_t at, int64_t size, int64_t number, int32_t top_level, Instruction& instruction) {
    if (size < 8) return Fail("instruction %lld is too short", static_cast<long long>(number));
    if (!ReadRange(at, number, instruction)) return false;
    int64_t kernel = Code(at + 4), kernel_rows = Code(at + 5), rows = Code(at + 6), operands = Code(at + 7);
    if (!In(operands, 1, kMaxArguments) || size != 8 + operands * 6) {
      return Fail("instruction %lld has a wrong number of operands", static_cast<long long>(number));
    }
    if (program_->operands.size + operands > most_operands_) return Fail("the plan has too many operands");
    instruction.op = InstructionOp::kCall;
    instruction.first_operand = program_->operands.size;
    instruction.operands = static_cast<int32_t>(operands);
    instruction.rows = 1;
    int64_t taps = 0;
    for (int64_t i = 0; i < operands; ++i) {
      Operand& operand = program_->operands[program_->operands.size++];
      if (!ReadOperand(at + 8 + i * 6, number, instruction, operand)) return false;
      bool table = operand.kind == OperandKind::kIn && operand.taps > 1;
      instruction.arguments += table ? 2 : 1;
      taps += table ? operand.taps : 0;
      if (operand.kind == OperandKind::kOut) program_->buffers[operand.buffer].last_writer = top_level;
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
      return ReadKernel(kernel_rows, number, instruction.arguments, &instruction.kernel_rows);
    }
    return true;
  }

  bool ReadOperand(int64_t at, int64_t number, const Instruction& instruction, Operand& operand) {
    int64_t kind = Code(at), id = Code(at + 1), stride = Code(at + 2), offset = Code(at + 3), taps = Code(at + 4);
    int64_t dilation = Code(at + 5);
    auto n = static_cast<long long>(number);
    if (!In(kind, 0, 3)) return FailWith(RN_UNSUPPORTED, "instruction %lld has an operand of unknown kind", n);
    operand = Operand{};
    operand.kind = static_cast<OperandKind>(kind);
    if (operand.kind == OperandKind::kWeights) {
      if (!In(id, 0, header_.weights_bytes - 1) || id % 4 != 0) {
        return Fail("instruction %lld reads outside the weights, or not on a multiple of 4 bytes", n);
      }
      operand.weights_offset = id;
      return true;
    }
    if (!IsBuffer(id)) return Fail("instruction %lld names a buffer that is not there", n);
    const Buffer& buffer = program_->buffers[id];
    bool writes = operand.kind == OperandKind::kOut;
    if (writes) {
      offset = 0;
      taps = dilation = 1;
    } else if (operand.kind == OperandKind::kRun || taps == 1) {
      dilation = 1;
    }
    if (!In(stride, writes ? 1 : 0, kMaxFactor) || !In(offset, -kMaxFactor, kMaxFactor) || !In(taps, 1, kMaxTable) ||
        !In(dilation, 1, kMaxFactor)) {
      return Fail("instruction %lld has an operand with an impossible stride, offset, taps or dilation", n);
    }
    int64_t last = 0;  // the highest frame this operand can name
    if (__builtin_mul_overflow(bounds_[instruction.made], stride, &last) || last > kMaxCount) {
      return Fail("instruction %lld has an operand that can pass frame 2^62", n);
    }
    if (writes && (stride > buffer.slots || (buffer.slots % stride != 0 && buffer.margin < stride - 1))) {
      return Fail("instruction %lld writes %lld frames at once, which its buffer cannot hold in one piece", n,
                  static_cast<long long>(stride));
    }
    if (operand.kind == OperandKind::kRun &&
        (taps > buffer.slots + buffer.margin || (buffer.space == Space::kState && buffer.margin < taps - 1))) {
      return Fail("instruction %lld reads %lld frames as one run; its buffer's margin is too small", n,
                  static_cast<long long>(taps));
    }
    operand.buffer = static_cast<int32_t>(id);
    operand.stride = stride;
    operand.offset = offset;
    operand.taps = taps;
    operand.dilation = dilation;
    return true;
  }

  bool ReadRepeat(int64_t at, int64_t size, int64_t number, int64_t count, bool in_repeat, Instruction& instruction) {
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

  bool ReadCopy(int64_t at, int64_t size, int64_t number, int32_t top_level, Instruction& instruction) {
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
    program_->buffers[target].last_writer = top_level;
    return true;
  }

  void Finish() {
    Program& program = *program_;
    memcpy(program.hash, sources_.hash, sizeof program.hash);
    uint64_t hash = 0xcbf29ce484222325u;  // FNV-1a
    for (size_t i = 0; i < sources_.plan_bytes; ++i) hash = (hash ^ sources_.plan[i]) * 0x100000001b3u;
    memcpy(&program.layout, &hash, sizeof hash);
    program.hop = header_.hop;
    program.state_bytes = header_.state_bytes;
    program.scratch_bytes = (header_.scratch_bytes + 63) & ~int64_t{63};
    program.working_bytes = program.scratch_bytes + header_.clocks * 3 * 8 + program.tap_entries * 4;

    // Marks, from the outputs back, the clocks that they need; an earlier clock is visited later.
    for (int64_t i = 0; i < header_.clocks; ++i) bounds_[i] = 0;
    for (const Output& output : program.outputs) bounds_[output.made] = bounds_[output.length] = 1;
    for (int64_t i = header_.clocks - 1; i >= 0; --i) {
      const Clock& clock = program.clocks[i];
      if (!bounds_[i] || clock.op == ClockOp::kInput || clock.op == ClockOp::kConst) continue;
      bounds_[clock.a] = 1;
      if (clock.op != ClockOp::kAffine) bounds_[clock.b] = 1;
    }
    for (int64_t i = 0; i < header_.clocks; ++i) {
      if (bounds_[i]) program.output_clocks[program.output_clocks.size++] = static_cast<int32_t>(i);
    }
  }

  const Sources& sources_;
  Message message_;
  int code_ = RN_OK;
  Header header_ = {};
  int64_t clocks_at_ = 0, buffers_at_ = 0, kernels_at_ = 0, inputs_at_ = 0, outputs_at_ = 0, entries_at_ = 0;
  int64_t code_at_ = 0, most_operands_ = 0;
  Program* program_ = nullptr;
  Span<int64_t> bounds_;          // the highest value of each clock
  Span<int64_t> growth_, first_;  // the most that each clock advances in a step, and in the first
};

}  // namespace

int DecodePlan(const Sources& sources, Program** out, Message message) {
  *out = nullptr;
  return Decoder(sources, message).Run(out);
}

void EvaluateClocks(const Program& program, int64_t t, int64_t* values) {
  for (int32_t i = 0; i < program.clocks.size; ++i) values[i] = EvaluateClock(program.clocks[i], t, values);
}

}  // namespace runnel
