// The C ABI: streams over caller-owned memory.
#include <cstring>

#include "frames.h"
#include "plan.h"
#include "platform.h"
#include "runnel.h"
#include "step.h"

struct rn_program : runnel::Program {};

namespace runnel {
namespace {

constexpr int64_t kStateVersion = 1;
constexpr int64_t kFlushed = 1, kBroken = 2, kPoisoned = 4;
constexpr uint32_t kNaN = 0x7fc00000u;

// At the start of every state block; a snapshot is the block.
struct StateHeader {
  char magic[8];
  int64_t version;
  uint8_t hash[32];
  int64_t layout;
  int64_t bytes;
  int64_t t;
  int64_t flags;
  Counters counters;
  int64_t zero[3];
};
static_assert(sizeof(StateHeader) == kStateHeaderBytes, "the header's size is part of the plan's contract");

const char kMagic[8] = {'R', 'N', 'L', 'S', 'T', 'A', 'T', 'E'};

bool Aligned(const void* p) { return p && (reinterpret_cast<uintptr_t>(p) & 63) == 0; }

bool IsStateOf(const Program& program, const StateHeader& header) {
  return memcmp(header.magic, kMagic, sizeof kMagic) == 0 && header.layout == program.layout &&
         memcmp(header.hash, program.hash, sizeof header.hash) == 0 && header.version == kStateVersion;
}

int64_t TailFrame(int64_t length, int64_t before_end) { return length > before_end ? length - before_end : 0; }

// Frames of an output that the end gives, when `given` were made before it.
int64_t LeftAtEnd(const Output& output, int64_t given, int64_t length) {
  if (output.tail_start > 0) return TailFrame(length, output.tail_stop) - TailFrame(length, output.tail_start);
  return length > given ? length - given : 0;
}

// A call's view of one stream and the memory behind it.
class Stream {
 public:
  Stream(const Program& program, void* state, void* scratch)
      : program_(program),
        header_(static_cast<StateHeader*>(state)),
        state_(static_cast<uint8_t*>(state)),
        scratch_(static_cast<uint8_t*>(scratch)) {
    auto* clocks = reinterpret_cast<int64_t*>(scratch_ + program.scratch_bytes);
    before_ = clocks;
    after_ = clocks + program.clocks.size;
    lengths_ = after_ + program.clocks.size;
    table_ = reinterpret_cast<int32_t*>(lengths_ + program.clocks.size);
  }

  int Push(const void* const* inputs, int64_t frames, void* const* outputs, const int64_t* capacity, int64_t* written,
           int nonfinite) {
    const bool clean = rn_has_nonfinite(Abi(), inputs, frames);
    if (clean && nonfinite == RN_NONFINITE_ERROR) return RN_NOT_FINITE;
    const bool restart = clean && nonfinite == RN_NONFINITE_RESET;
    const int64_t start = restart ? 0 : header_->t;
    if (frames > kMaxFrames - start) return RN_TOO_LONG;
    // The counts at the end first, so that nothing is written when the arrays are too small.
    Before(start);
    EvaluateClocks(program_, start + frames, nullptr, after_);
    for (int32_t i = 0; i < program_.outputs.size; ++i) {
      const Output& output = program_.outputs[i];
      if (frames == 0 || output.tail_start > 0) continue;
      if (after_[output.made] - before_[output.made] > capacity[i]) return RN_CAPACITY;
    }
    if (restart) rn_init(Abi(), state_, (header_->flags & kPoisoned) != 0);
    for (int32_t i = 0; i < program_.outputs.size; ++i) written[i] = 0;
    for (int64_t done = 0; done < frames;) {
      const int64_t take = frames - done < program_.hop ? frames - done : program_.hop;
      if (take != frames) EvaluateClocks(program_, header_->t + take, nullptr, after_);
      if (int code = StepOver(inputs, frames, done, take, clean, false, outputs, capacity, written)) return code;
      header_->t += take;
      done += take;
    }
    return RN_OK;
  }

  int Flush(void* const* outputs, const int64_t* capacity, int64_t* written) {
    const int64_t t = header_->t;
    Before(t);
    EvaluateClocks(program_, t, nullptr, lengths_);
    EvaluateClocks(program_, t + program_.hop * kMaxEndSteps, lengths_, after_);
    for (int32_t i = 0; i < program_.outputs.size; ++i) {
      const Output& output = program_.outputs[i];
      if (after_[output.made] < lengths_[output.length]) return RN_BAD_PLAN;
      if (LeftAtEnd(output, before_[output.made], lengths_[output.length]) > capacity[i]) return RN_CAPACITY;
    }
    for (int32_t i = 0; i < program_.outputs.size; ++i) written[i] = 0;
    // What is complete already: a step from t to t, in which nothing runs.
    if (int code = GiveTails(TheStep(before_, true), 0, outputs, capacity, written)) return code;
    for (int64_t now = t; !Complete();) {
      now += program_.hop;
      EvaluateClocks(program_, now, lengths_, after_);
      if (int code = StepOver(nullptr, 0, 0, 0, false, true, outputs, capacity, written)) return code;
    }
    header_->flags |= kFlushed;
    return RN_OK;
  }

 private:
  const rn_program* Abi() const { return static_cast<const rn_program*>(&program_); }

  // Before the first step nothing exists, whatever the clocks say of t = 0.
  void Before(int64_t t) {
    if (t == 0) {
      memset(before_, 0, sizeof(int64_t) * static_cast<size_t>(program_.clocks.size));
    } else {
      EvaluateClocks(program_, t, nullptr, before_);
    }
  }

  bool Complete() const {
    for (const Output& output : program_.outputs) {
      if (before_[output.made] < lengths_[output.length]) return false;
    }
    return true;
  }

  Step TheStep(const int64_t* after, bool ended) const {
    return {program_, state_, scratch_, before_, after, ended ? lengths_ : nullptr, table_, header_->counters};
  }

  // One step from before_ to after_, then swaps the two.
  int StepOver(const void* const* inputs, int64_t pitch, int64_t first, int64_t take, bool clean, bool ended,
               void* const* outputs, const int64_t* capacity, int64_t* written) {
    if (header_->flags & kPoisoned) FillFrames(scratch_, program_.scratch_bytes, kNaN);
    const Step step = TheStep(after_, ended);
    int code = RN_OK;
    for (int32_t i = 0; i < program_.inputs.size && take > 0 && code == RN_OK; ++i) {
      code = TakeInput(step, program_.inputs[i], inputs[i], pitch, first, take, header_->t, clean);
    }
    if (ended && code == RN_OK) code = FillTails(step, -1);
    if (code == RN_OK) code = RunStep(step);
    for (int32_t i = 0; i < program_.outputs.size && code == RN_OK; ++i) {
      const Output& output = program_.outputs[i];
      const int64_t low = step.Limit(before_[output.made], output.length);
      const int64_t high = step.Limit(after_[output.made], output.length);
      if (low >= high || output.tail_start > 0) continue;
      code = GiveOutput(step, output, outputs[i], capacity[i], written[i], high - low, low);
      written[i] += high - low;
    }
    if (ended && code == RN_OK) code = GiveTails(step, 1, outputs, capacity, written);
    if (code != RN_OK) header_->flags |= kBroken;
    int64_t* swap = before_;
    before_ = after_;
    after_ = swap;
    return code;
  }

  // Gives the outputs that are the last frames of something: those complete before the step, or those it completes.
  int GiveTails(const Step& step, int during, void* const* outputs, const int64_t* capacity, int64_t* written) {
    for (int32_t i = 0; i < program_.outputs.size; ++i) {
      const Output& output = program_.outputs[i];
      if (output.tail_start == 0) continue;
      const int64_t length = lengths_[output.length];
      const bool was = step.before[output.made] >= length, is = step.after[output.made] >= length;
      if (during ? was || !is : !was) continue;
      const int64_t low = TailFrame(length, output.tail_start), count = TailFrame(length, output.tail_stop) - low;
      if (int code = GiveOutput(step, output, outputs[i], capacity[i], 0, count, low)) return code;
      written[i] = count;
    }
    return RN_OK;
  }

  const Program& program_;
  StateHeader* header_;
  uint8_t* state_;
  uint8_t* scratch_;
  int64_t *before_, *after_, *lengths_;
  int32_t* table_;
};

int CheckCall(const Program& program, const void* state, const void* scratch) {
  if (!Aligned(state) || !Aligned(scratch)) return RN_BAD_ARGUMENT;
  const auto& header = *static_cast<const StateHeader*>(state);
  if (!IsStateOf(program, header) || (header.flags & kBroken)) return RN_BAD_STATE;
  return header.flags & kFlushed ? RN_FLUSHED : RN_OK;
}

}  // namespace
}  // namespace runnel

using runnel::StateHeader;

extern "C" {

int rn_abi_version(void) { return RN_ABI_VERSION; }

const char* rn_message(int code) {
  switch (code) {
    case RN_OK:
      return "no error";
    case RN_BAD_ARGUMENT:
      return "a null or unaligned pointer, a negative count or an unknown policy was passed";
    case RN_BAD_PLAN:
      return "the plan breaks its own rules; compile the model again";
    case RN_NO_MEMORY:
      return "not enough memory for the program";
    case RN_NOT_FINITE:
      return "an input sample is NaN or infinite";
    case RN_CAPACITY:
      return "an output array is too small for what is due";
    case RN_FLUSHED:
      return "the stream has ended; reset it to start again";
    case RN_BAD_STATE:
      return "the state belongs to another program, or a step on it failed; reset the stream";
    case RN_KERNEL:
      return "a kernel reported a failure; reset the stream";
    case RN_TOO_LONG:
      return "a stream has at most 2^44 frames; reset it";
    case RN_UNSUPPORTED:
      return "the plan needs a newer runtime; update runnel";
    default:
      return "unknown error";
  }
}

int rn_open(const void* plan, size_t plan_bytes, const void* weights, size_t weights_bytes, const void* image,
            size_t image_bytes, const uint8_t program_hash[32], rn_program** out, char* message, size_t message_bytes) {
  if (message && message_bytes) message[0] = 0;
  if (!out) return RN_BAD_ARGUMENT;
  *out = nullptr;
  if (!plan || !program_hash || (!weights && weights_bytes) || (!image && image_bytes)) return RN_BAD_ARGUMENT;
  runnel::Sources sources = {static_cast<const uint8_t*>(plan),
                             plan_bytes,
                             static_cast<const uint8_t*>(weights),
                             weights_bytes,
                             static_cast<const uint8_t*>(image),
                             image_bytes,
                             program_hash};
  runnel::Program* program = nullptr;
  int code = runnel::DecodePlan(sources, &program, {message, message_bytes});
  *out = static_cast<rn_program*>(program);
  return code;
}

void rn_close(rn_program* program) { runnel::PlatformFree(program); }

size_t rn_state_bytes(const rn_program* program) { return static_cast<size_t>(program->state_bytes); }
size_t rn_scratch_bytes(const rn_program* program) { return static_cast<size_t>(program->working_bytes); }
int64_t rn_hop(const rn_program* program) { return program->hop; }
int32_t rn_input_count(const rn_program* program) { return program->inputs.size; }
int32_t rn_output_count(const rn_program* program) { return program->outputs.size; }

int64_t rn_input_frame_bytes(const rn_program* program, int32_t input) {
  if (input < 0 || input >= program->inputs.size) return -1;
  return program->inputs[input].outer * program->inputs[input].inner_bytes;
}

int64_t rn_output_frame_bytes(const rn_program* program, int32_t output) {
  if (output < 0 || output >= program->outputs.size) return -1;
  return program->outputs[output].outer * program->outputs[output].inner_bytes;
}

int rn_init(const rn_program* program, void* state, int poison) {
  if (!program || !runnel::Aligned(state)) return RN_BAD_ARGUMENT;
  auto* bytes = static_cast<uint8_t*>(state);
  const int64_t rings = program->state_bytes - runnel::kStateHeaderBytes;
  auto* header = static_cast<StateHeader*>(state);
  *header = StateHeader{};
  memcpy(header->magic, runnel::kMagic, sizeof header->magic);
  memcpy(header->hash, program->hash, sizeof header->hash);
  header->version = runnel::kStateVersion;
  header->layout = program->layout;
  header->bytes = program->state_bytes;
  header->flags = poison ? runnel::kPoisoned : 0;
  memset(bytes + runnel::kStateHeaderBytes, 0, static_cast<size_t>(rings));
  if (poison) runnel::FillFrames(bytes + runnel::kStateHeaderBytes, rings & ~int64_t{3}, runnel::kNaN);
  runnel::Counters ignored;
  for (const runnel::Buffer& buffer : program->buffers) {
    uint8_t* memory = bytes + buffer.base;  // only buffers in the state have a lead
    for (int64_t i = 0; i < buffer.lead; ++i) {
      const int64_t slot = buffer.slots - buffer.lead + i, given = i - (buffer.lead - buffer.init_frames);
      uint8_t* frame = memory + slot * buffer.frame_bytes;
      if (given < 0) {
        runnel::FillFrames(frame, buffer.frame_bytes, buffer.fill);
      } else {
        memcpy(frame, program->weights + buffer.init_offset + given * buffer.frame_bytes,
               static_cast<size_t>(buffer.frame_bytes));
      }
      runnel::Mirror(buffer, memory, slot, 1, ignored);
    }
  }
  return RN_OK;
}

int rn_due(const rn_program* program, const void* state, int64_t frames, int end, int64_t* counts) {
  if (!program || !state || !counts || frames < 0) return RN_BAD_ARGUMENT;
  const auto& header = *static_cast<const StateHeader*>(state);
  if (!runnel::IsStateOf(*program, header)) return RN_BAD_STATE;
  const bool flushed = header.flags & runnel::kFlushed;
  if (flushed && frames > 0) return RN_FLUSHED;
  if (frames > runnel::kMaxFrames - header.t) return RN_TOO_LONG;
  const int64_t later = header.t + frames;
  int64_t values[runnel::kMaxClocks];  // only what the outputs need is set
  auto evaluate = [&](int64_t t, int32_t clock) {
    for (int32_t k : program->output_clocks) values[k] = runnel::EvaluateClock(program->clocks[k], t, nullptr, values);
    return values[clock];
  };
  for (int32_t i = 0; i < program->outputs.size; ++i) {
    const runnel::Output& output = program->outputs[i];
    const int64_t before = header.t == 0 ? 0 : evaluate(header.t, output.made);
    if (flushed) {
      counts[i] = 0;
    } else if (end) {
      counts[i] = runnel::LeftAtEnd(output, before, evaluate(later, output.length));
    } else {
      counts[i] = output.tail_start > 0 || later == 0 ? 0 : evaluate(later, output.made) - before;
    }
  }
  return RN_OK;
}

int rn_push(const rn_program* program, void* state, void* scratch, const void* const* inputs, int64_t frames,
            void* const* outputs, const int64_t* capacity, int64_t* written, int nonfinite) {
  if (!program || !inputs || !outputs || !capacity || !written || frames < 0) return RN_BAD_ARGUMENT;
  if (nonfinite < RN_NONFINITE_ERROR || nonfinite > RN_NONFINITE_RESET) return RN_BAD_ARGUMENT;
  if (int code = runnel::CheckCall(*program, state, scratch)) return code;
  runnel::FlushDenormals mode;
  return runnel::Stream(*program, state, scratch).Push(inputs, frames, outputs, capacity, written, nonfinite);
}

int rn_flush(const rn_program* program, void* state, void* scratch, void* const* outputs, const int64_t* capacity,
             int64_t* written) {
  if (!program || !outputs || !capacity || !written) return RN_BAD_ARGUMENT;
  if (int code = runnel::CheckCall(*program, state, scratch)) return code;
  runnel::FlushDenormals mode;
  return runnel::Stream(*program, state, scratch).Flush(outputs, capacity, written);
}

int rn_has_nonfinite(const rn_program* program, const void* const* inputs, int64_t frames) {
  for (int32_t i = 0; i < program->inputs.size; ++i) {
    const runnel::Input& input = program->inputs[i];
    if (input.is_float32 && runnel::HasNonfinite(inputs[i], frames * input.outer * input.inner_bytes / 4)) return 1;
  }
  return 0;
}

int rn_check_state(const rn_program* program, const void* bytes, size_t n) {
  StateHeader header;
  if (!program || !bytes || n != static_cast<size_t>(program->state_bytes)) return RN_BAD_STATE;
  memcpy(&header, bytes, sizeof header);
  bool ok = runnel::IsStateOf(*program, header) && header.bytes == program->state_bytes && header.t >= 0 &&
            header.t <= runnel::kMaxFrames && (header.flags & ~(runnel::kFlushed | runnel::kPoisoned)) == 0;
  for (int64_t zero : header.zero) ok = ok && zero == 0;
  return ok ? RN_OK : RN_BAD_STATE;
}

int64_t rn_position(const rn_program*, const void* state) { return static_cast<const StateHeader*>(state)->t; }

void rn_counters(const void* state, int64_t counters[3]) {
  const auto& from = static_cast<const StateHeader*>(state)->counters;
  counters[0] = from.steps;
  counters[1] = from.calls;
  counters[2] = from.mirrored;
}

}  // extern "C"
