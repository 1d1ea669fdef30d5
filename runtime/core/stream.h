// A call's view of one stream: what a push and a flush do, in parts, so that several streams can be stepped together.
#ifndef RUNNEL_STREAM_H_
#define RUNNEL_STREAM_H_

#include <cstring>
#include <new>

#include "cache.h"
#include "frames.h"
#include "plan.h"
#include "runnel.h"
#include "state.h"
#include "step.h"

namespace runnel {

inline int64_t TailFrame(int64_t length, int64_t before_end) { return length > before_end ? length - before_end : 0; }

// Frames of an output that the end gives, when `given` were made before it.
inline int64_t LeftAtEnd(const Output& output, int64_t given, int64_t length) {
  if (output.tail_start > 0) return TailFrame(length, output.tail_stop) - TailFrame(length, output.tail_start);
  return length > given ? length - given : 0;
}

// The caller's arrays of one stream and push.
struct Arrays {
  const void* const* inputs;
  int64_t frames;
  void* const* outputs;
  const int64_t* capacity;
  int64_t* written;
};

// A call's view of one stream and the memory behind it. A push is Check, Room, Begin and then, while there is More,
// Prepare, RunSteps on TheStep() and Finish, so that several streams can be stepped together.
class Stream {
 public:
  Stream(const Program& program, void* state, void* scratch, const Help& help, const Arrays& arrays)
      : program_(program),
        help_(help),
        header_(static_cast<StateHeader*>(state)),
        state_(static_cast<uint8_t*>(state)),
        scratch_(static_cast<uint8_t*>(scratch)),
        arrays_(arrays),
        stop_(arrays.frames) {
    auto* clocks = reinterpret_cast<int64_t*>(scratch_ + program.scratch_bytes);
    before_ = clocks;
    after_ = clocks + program.clocks.size;
    lengths_ = after_ + program.clocks.size;
    table_ = reinterpret_cast<int32_t*>(lengths_ + program.clocks.size);
  }

  // Whether the frames can be taken. Writes nothing.
  int Check(int nonfinite) {
    clean_ = rn_has_nonfinite(Abi(), arrays_.inputs, arrays_.frames);
    if (clean_ && nonfinite == RN_NONFINITE_ERROR) return RN_NOT_FINITE;
    restart_ = clean_ && nonfinite == RN_NONFINITE_RESET;
    if (program_.caches.size && !CachesTake(program_, state_, arrays_.frames, restart_)) return RN_CACHE_FULL;
    return arrays_.frames > program_.most_frames - Begins() ? RN_TOO_LONG : RN_OK;
  }

  // Whether the outputs have room for what is due, which is put into `written`.
  int Room() {
    Before(Begins());
    EvaluateClocks(program_, Begins() + arrays_.frames, nullptr, after_);
    int code = RN_OK;
    for (int32_t i = 0; i < program_.outputs.size; ++i) {
      const Output& output = program_.outputs[i];
      const bool none = arrays_.frames == 0 || output.tail_start > 0;
      arrays_.written[i] = none ? 0 : after_[output.made] - before_[output.made];
      if (arrays_.written[i] > arrays_.capacity[i]) code = RN_CAPACITY;
    }
    return code;
  }

  void Begin() {
    if (restart_) StartState(program_, state_, (header_->flags & kPoisoned) != 0, true);
    for (int32_t i = 0; i < program_.outputs.size; ++i) arrays_.written[i] = 0;
  }

  bool More() const { return done_ < stop_; }

  int Prepare() {
    const int64_t left = stop_ - done_;
    take_ = left < program_.hop ? left : program_.hop;
    if (take_ != stop_) EvaluateClocks(program_, header_->t + take_, nullptr, after_);
    return Load(false);
  }

  const Step& TheStep() const { return *step_; }

  int Finish(int code) {
    code = Give(code, false);
    header_->t += take_;
    done_ += take_;
    return code;
  }

  // Takes the first frames for what they leave in the state alone.
  int Prefill(int64_t frames) {
    prefill_ = true;
    stop_ = frames;
    Before(Begins());
    EvaluateClocks(program_, Begins() + stop_, nullptr, after_);
    if (restart_) StartState(program_, state_, (header_->flags & kPoisoned) != 0, true);
    return Push();
  }

  int Push() {
    while (More()) {
      int code = Prepare();
      const Step* step = &TheStep();
      if (code == RN_OK) code = RunSteps(&step, 1, nullptr);
      if ((code = Finish(code))) return code;
    }
    return RN_OK;
  }

  int Flush() {
    const int64_t t = header_->t;
    Before(t);
    EvaluateClocks(program_, t, nullptr, lengths_);
    EvaluateClocks(program_, t + program_.hop * kMaxEndSteps, lengths_, after_);
    for (int32_t i = 0; i < program_.outputs.size; ++i) {
      const Output& output = program_.outputs[i];
      if (after_[output.made] < lengths_[output.length]) return RN_BAD_PLAN;
      if (LeftAtEnd(output, before_[output.made], lengths_[output.length]) > arrays_.capacity[i]) return RN_CAPACITY;
    }
    for (int32_t i = 0; i < program_.outputs.size; ++i) arrays_.written[i] = 0;
    // What is complete already: a step from t to t, in which nothing runs.
    if (int code = GiveTails(MakeStep(before_, true), 0)) return code;
    take_ = 0;
    for (int64_t now = t; !Complete();) {
      now += program_.hop;
      EvaluateClocks(program_, now, lengths_, after_);
      int code = Load(true);
      const Step* step = &TheStep();
      if (code == RN_OK) code = RunSteps(&step, 1, nullptr);
      if ((code = Give(code, true))) return code;
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

  // The number of frames before this push.
  int64_t Begins() const { return restart_ ? 0 : header_->t; }

  const Step& MakeStep(const int64_t* after, bool ended) {
    step_ = new (step_memory_) Step{program_,
                                    state_,
                                    scratch_,
                                    before_,
                                    after,
                                    ended ? lengths_ : nullptr,
                                    table_,
                                    (header_->flags & kStale) != 0,
                                    header_->counters,
                                    help_,
                                    prefill_ ? program_.prefill : program_.instructions};
    return *step_;
  }

  // Makes the step from before_ to after_ and puts its inputs where it reads them.
  int Load(bool ended) {
    if (header_->flags & kPoisoned) FillFrames(scratch_, program_.scratch_bytes, kNaN);
    const Step& step = MakeStep(after_, ended);
    if (ended) return FillTails(step, -1);
    for (int32_t i = 0; i < program_.inputs.size; ++i) {
      const Input& input = program_.inputs[i];
      if (input.rate == 0) continue;
      const int64_t first = done_ * input.rate, at = header_->t * input.rate;
      if (int code = TakeInput(step, input, arrays_.inputs[i], arrays_.frames * input.rate, first, take_ * input.rate,
                               at, clean_)) {
        return code;
      }
    }
    return RN_OK;
  }

  // After the step ran: gives what it made, and swaps before_ and after_. `code`: of the step.
  int Give(int code, bool ended) {
    const Step& step = *step_;
    for (int32_t i = 0; i < program_.outputs.size && code == RN_OK && !prefill_; ++i) {
      const Output& output = program_.outputs[i];
      const int64_t low = step.Limit(before_[output.made], output.length);
      const int64_t high = step.Limit(after_[output.made], output.length);
      if (low >= high || output.tail_start > 0) continue;
      code = GiveOutput(step, output, arrays_.outputs[i], arrays_.capacity[i], arrays_.written[i], high - low, low);
      arrays_.written[i] += high - low;
    }
    if (ended && code == RN_OK) code = GiveTails(step, 1);
    header_->flags &= ~kStale;
    if (code != RN_OK) header_->flags |= kBroken;
    int64_t* swap = before_;
    before_ = after_;
    after_ = swap;
    return code;
  }

  // Gives the outputs that are the last frames of something: those complete before the step, or those it completes.
  int GiveTails(const Step& step, int during) {
    for (int32_t i = 0; i < program_.outputs.size; ++i) {
      const Output& output = program_.outputs[i];
      if (output.tail_start == 0) continue;
      const int64_t length = lengths_[output.length];
      const bool was = step.before[output.made] >= length, is = step.after[output.made] >= length;
      if (during ? was || !is : !was) continue;
      const int64_t low = TailFrame(length, output.tail_start), count = TailFrame(length, output.tail_stop) - low;
      if (int code = GiveOutput(step, output, arrays_.outputs[i], arrays_.capacity[i], 0, count, low)) {
        return code;
      }
      arrays_.written[i] = count;
    }
    return RN_OK;
  }

  const Program& program_;
  Help help_;
  StateHeader* header_;
  uint8_t* state_;
  uint8_t* scratch_;
  Arrays arrays_;
  int64_t stop_;
  bool clean_ = false, restart_ = false, prefill_ = false;
  int64_t done_ = 0, take_ = 0;
  Step* step_ = nullptr;
  alignas(Step) unsigned char step_memory_[sizeof(Step)];
  int64_t *before_, *after_, *lengths_;
  int32_t* table_;
};

inline int CheckCall(const Program& program, const void* state, const void* scratch) {
  if (!Aligned(state) || !Aligned(scratch)) return RN_BAD_ARGUMENT;
  const auto& header = *static_cast<const StateHeader*>(state);
  if (!IsStateOf(program, header) || (header.flags & kBroken)) return RN_BAD_STATE;
  return header.flags & kFlushed ? RN_FLUSHED : RN_OK;
}

}  // namespace runnel

#endif  // RUNNEL_STREAM_H_
