#include "plan.h"

#include <cstring>

#include "decoder.h"
#include "platform.h"

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "plans are little-endian and read in place");

namespace runnel {
namespace {

constexpr int64_t kHeaderWords = 16;
constexpr int64_t kSchema = 2;
constexpr int64_t kMaxHop = int64_t{1} << 24;
constexpr int64_t kMaxMemory = int64_t{1} << 46;
constexpr int64_t kMaxRing = int64_t{1} << 33;  // bytes: element offsets in tap tables are int32
constexpr int64_t kFloat32 = 1;                 // ONNX's number

template <typename T>
size_t Place(size_t& at, int64_t count) {
  size_t start = (at + 63) & ~size_t{63};
  at = start + sizeof(T) * static_cast<size_t>(count);
  return start;
}

template <typename T>
void Bind(Program* program, Span<T>& span, size_t at, int64_t count) {
  span.data = reinterpret_cast<T*>(reinterpret_cast<uint8_t*>(program) + at);
  span.size = static_cast<int32_t>(count);
}

}  // namespace

int Decoder::Run(Program** out) {
  if (!ReadHeader()) return code_;
  if (!Allocate()) return code_;
  if (ReadClocks() && ReadBuffers() && ReadKernels() && ReadInputs() && ReadOutputs() && ReadCaches() && ReadCode()) {
    Finish();
    *out = program_;
    return RN_OK;
  }
  PlatformFree(program_);
  return code_;
}

bool Decoder::ReadHeader() {
  int64_t words = static_cast<int64_t>(sources_.plan_bytes / 8);
  if (sources_.plan_bytes % 8 != 0 || words < kHeaderWords) return Fail("the plan is cut off");
  if (memcmp(sources_.plan, "RNLPLAN\0", 8) != 0) return Fail("this is not a plan: its first bytes are wrong");
  if (Word(1) != kSchema) {
    return FailWith(RN_UNSUPPORTED, "the plan has schema %lld and this runtime reads %lld; update runnel",
                    static_cast<long long>(Word(1)), static_cast<long long>(kSchema));
  }
  header_ = {Word(3),  Word(4),  Word(5),  Word(6),  Word(7),  Word(8),  Word(9),
             Word(10), Word(11), Word(12), Word(13), Word(14), Word(15), 0};
  if (!In(header_.caches, 0, words)) return Fail("a count in the plan's header is impossible");
  int64_t sizes[][2] = {{header_.clocks, 6}, {header_.buffers, 12}, {header_.kernels, 3}, {header_.code, 1},
                        {header_.inputs, 4}, {header_.outputs, 8},  {header_.entries, 2}};
  int64_t total = kHeaderWords;
  for (auto& size : sizes) {
    if (!In(size[0], 0, words)) return Fail("a count in the plan's header is impossible");
    total += size[0] * size[1];
  }
  caches_at_ = total - header_.code;
  if (header_.caches > 0) {
    if (!In(total, 0, words - kCacheRuleWords)) return Fail("the plan is cut off");
    header_.cache_heads = Word(caches_at_ + 2);
    if (!In(header_.cache_heads, 1, words)) return Fail("a count in the plan's header is impossible");
    total += kCacheRuleWords + header_.caches * kCacheWords + header_.cache_heads;
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
  if (!In(header_.most_frames, 0, kMaxFrames)) return Fail("a stream may have 1 to 2^44 frames, or 0 for any number");
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
  inputs_at_ = kernels_at_ + header_.kernels * 3;
  outputs_at_ = inputs_at_ + header_.inputs * 4;
  entries_at_ = outputs_at_ + header_.outputs * 8;
  code_at_ = total - header_.code;
  return true;
}

bool Decoder::Allocate() {
  Counts counts;
  for (int64_t i = 0; i < header_.entries && i < 2; ++i) Count(i, counts);
  size_t bytes = sizeof(Program);
  size_t clocks = Place<Clock>(bytes, header_.clocks);
  size_t bounds = Place<int64_t>(bytes, header_.clocks);
  size_t growth = Place<int64_t>(bytes, header_.clocks);
  size_t first = Place<int64_t>(bytes, header_.clocks);
  size_t output_clocks = Place<int32_t>(bytes, header_.clocks);
  size_t buffers = Place<Buffer>(bytes, header_.buffers);
  size_t inputs = Place<Input>(bytes, header_.inputs);
  size_t outputs = Place<Output>(bytes, header_.outputs);
  size_t operands = Place<Operand>(bytes, counts.operands);
  size_t instructions = Place<Instruction>(bytes, counts.instructions);
  size_t caches = Place<Cache>(bytes, header_.caches);
  size_t cache_heads = Place<int32_t>(bytes, header_.cache_heads);
  size_t tables = Place<UnitTable>(bytes, counts.chooses);
  void* block = PlatformAlloc(bytes);
  if (!block) return FailWith(RN_NO_MEMORY, "not enough memory for the program");
  program_ = static_cast<Program*>(block);
  *program_ = Program{};
  Bind(program_, program_->clocks, clocks, header_.clocks);
  Bind(program_, bounds_, bounds, header_.clocks);
  Bind(program_, growth_, growth, header_.clocks);
  Bind(program_, first_, first, header_.clocks);
  Bind(program_, program_->output_clocks, output_clocks, 0);
  Bind(program_, program_->buffers, buffers, header_.buffers);
  Bind(program_, program_->inputs, inputs, header_.inputs);
  Bind(program_, program_->outputs, outputs, header_.outputs);
  Bind(program_, program_->operands, operands, 0);
  Bind(program_, program_->instructions, instructions, 0);
  Bind(program_, program_->caches, caches, header_.caches);
  Bind(program_, program_->cache_heads, cache_heads, header_.cache_heads);
  Bind(program_, program_->tables, tables, 0);
  most_operands_ = counts.operands;
  program_->weights = sources_.weights;
  program_->own_bytes = bytes;
  return true;
}

bool Decoder::ReadClocks() {
  for (int64_t i = 0; i < header_.clocks; ++i) {
    int64_t at = clocks_at_ + i * 6;
    int64_t op = Word(at), a = Word(at + 1), b = Word(at + 2), mul = Word(at + 3), div = Word(at + 4);
    int64_t add = Word(at + 5);
    auto number = static_cast<long long>(i);
    if (!In(op, 0, 5)) return FailWith(RN_UNSUPPORTED, "clock %lld has the unknown op %lld", number, (long long)op);
    auto kind = static_cast<ClockOp>(op);
    bool uses_b = kind == ClockOp::kMin || kind == ClockOp::kMax || kind == ClockOp::kEnded;
    bool uses_a = uses_b || kind == ClockOp::kAffine;
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
      case ClockOp::kEnded:
        bound = 1;
        break;
    }
    bounds_[i] = bound;
    growth_[i] = Growth(clock);
    // The first step starts from nothing; it may be the one that ends the stream.
    first_[i] = kind == ClockOp::kEnded ? 1 : EvaluateClock(clock, header_.hop, nullptr, first_.data);
  }
  return true;
}

int64_t Decoder::Growth(const Clock& clock) const {
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
    case ClockOp::kEnded:
      return 1;
    default:
      return 0;
  }
}

bool Decoder::ReadBuffers() {
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
    if (!In(frame_bytes, 4, kMaxFactor) || frame_bytes % 4 != 0 || !In(slots, 1, kMaxFactor) || !In(margin, 0, slots)) {
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
                            base,
                            frame_bytes,
                            slots,
                            margin,
                            Divider::Of(slots),
                            static_cast<uint32_t>(fill),
                            static_cast<int32_t>(length),
                            lead,
                            init_offset,
                            init_frames,
                            tail > 0,
                            -1};
  }
  return true;
}

bool Decoder::ReadKernels() {
  for (int64_t i = 0; i < header_.kernels; ++i) {
    int64_t offset = Word(kernels_at_ + i * 3), arguments = Word(kernels_at_ + i * 3 + 1);
    if (offset < 0 || static_cast<uint64_t>(offset) >= sources_.image_bytes) {
      return Fail("kernel %lld lies outside the image", static_cast<long long>(i));
    }
    if (!In(arguments, 1, kMaxArguments)) {
      return Fail("kernel %lld has %lld arguments; 1 to 16 are possible", static_cast<long long>(i),
                  static_cast<long long>(arguments));
    }
    if (!In(Word(kernels_at_ + i * 3 + 2), 0, kMaxMacs)) {
      return Fail("kernel %lld has an impossible number of multiply-adds", static_cast<long long>(i));
    }
  }
  return true;
}

bool Decoder::Fits(int64_t buffer, int64_t outer, int64_t inner) const {
  int64_t bytes = 0;
  return IsBuffer(buffer) && In(outer, 1, kMaxFactor) && In(inner, 1, kMaxFactor) &&
         !__builtin_mul_overflow(outer, inner, &bytes) && bytes <= program_->buffers[buffer].frame_bytes;
}

bool Decoder::ReadInputs() {
  bool timed = false;
  for (int64_t i = 0; i < header_.inputs; ++i) {
    int64_t at = inputs_at_ + i * 4;
    int64_t buffer = Word(at), outer = Word(at + 1), inner = Word(at + 2), dtype = Word(at + 3);
    auto number = static_cast<long long>(i);
    if (!Fits(buffer, outer, inner)) return Fail("input %lld does not fit a buffer", number);
    const int64_t rate = InputRate(program_->buffers[buffer]);
    if (rate < 0) return Fail("the buffer of input %lld is not made by the input clock or a multiple of it", number);
    timed |= rate > 0;
    bool is_float32 = dtype == kFloat32;
    if (is_float32 && inner % 4 != 0) return Fail("input %lld has a broken float32 frame", number);
    program_->inputs[i] = {static_cast<int32_t>(buffer), is_float32, outer, inner, rate};
  }
  return timed ? PlaceStatics() : Fail("a plan needs an input with time");
}

int64_t Decoder::InputRate(const Buffer& buffer) const {
  const Clock& made = program_->clocks[buffer.made];
  switch (made.op) {
    case ClockOp::kInput:
      return 1;
    case ClockOp::kAffine:
      return program_->clocks[made.a].op == ClockOp::kInput && made.add == 0 && made.div.divisor == 1 && made.mul > 0
                 ? made.mul
                 : -1;
    case ClockOp::kConst:
      return made.add == 1 && buffer.space == Space::kState && buffer.lead == 0 ? 0 : -1;
    default:
      return -1;
  }
}

bool Decoder::PlaceStatics() {
  int64_t end = kStateHeaderBytes;
  auto is_static = [&](int64_t i) {
    for (const Input& input : program_->inputs) {
      if (input.buffer == i && input.rate == 0) return true;
    }
    return false;
  };
  for (const Input& input : program_->inputs) {
    const Buffer& buffer = program_->buffers[input.buffer];
    const int64_t after = buffer.base + buffer.frame_bytes * (buffer.slots + buffer.margin);
    if (input.rate == 0 && after > end) end = after;
  }
  for (int64_t i = 0; i < header_.buffers; ++i) {
    const Buffer& buffer = program_->buffers[i];
    if (buffer.space == Space::kState && buffer.base < end && !is_static(i)) {
      return Fail("buffer %lld lies before or among those of static inputs", static_cast<long long>(i));
    }
  }
  program_->statics_end = end;
  return true;
}

bool Decoder::ReadOutputs() {
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

void Decoder::Finish() {
  Program& program = *program_;
  memcpy(program.hash, sources_.hash, sizeof program.hash);
  uint64_t hash = 0xcbf29ce484222325u;  // FNV-1a
  for (size_t i = 0; i < sources_.plan_bytes; ++i) hash = (hash ^ sources_.plan[i]) * 0x100000001b3u;
  memcpy(&program.layout, &hash, sizeof hash);
  program.hop = header_.hop;
  program.most_frames = header_.most_frames ? header_.most_frames : kMaxFrames;
  program.scratch_bytes = (header_.scratch_bytes + 63) & ~int64_t{63};
  program.work_at = (program.scratch_bytes + header_.clocks * 3 * 8 + program.tap_entries * 4 + 63) & ~int64_t{63};
  program.working_bytes = program.work_at + attend_work_;
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

int DecodePlan(const Sources& sources, Program** out, Message message) {
  *out = nullptr;
  return Decoder(sources, message).Run(out);
}

void EvaluateClocks(const Program& program, int64_t t, const int64_t* lengths, int64_t* values) {
  for (int32_t i = 0; i < program.clocks.size; ++i) values[i] = EvaluateClock(program.clocks[i], t, lengths, values);
}

}  // namespace runnel
