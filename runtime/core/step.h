// One step of a plan: from t0 to t1 input frames.
#ifndef RUNNEL_STEP_H_
#define RUNNEL_STEP_H_

#include "plan.h"
#include "runnel.h"

namespace runnel {

struct Counters {
  int64_t steps = 0, calls = 0, mirrored = 0, macs = 0;
};

// What a caller may lend to a step.
struct Help {
  rn_workers* workers;        // null: none
  const rn_profile* profile;  // null: nobody asks what instructions take
};

// Where frames live during one step.
struct Step {
  const Program& program;
  uint8_t* state;
  uint8_t* scratch;
  const int64_t* before;   // the clocks at t0, all 0 at the start of a stream
  const int64_t* after;    // the clocks at t1
  const int64_t* lengths;  // the clocks at T, null while T is unknown
  int32_t* table;          // room for the tap tables of one call
  bool stale;              // a static input changed: what is made of static inputs alone is made again
  Counters& counters;
  const Help& help;
  const Span<Instruction>& code;

  int64_t Limit(int64_t count, int32_t length) const {
    return lengths && lengths[length] < count ? lengths[length] : count;
  }
  uint8_t* Memory(const Buffer& buffer) const {
    return (buffer.space == Space::kState ? state : scratch) + buffer.base;
  }
  // The slot of a frame, or -1 where the buffer cannot hold it.
  int64_t Slot(const Buffer& buffer, int64_t frame) const {
    if (buffer.space == Space::kState) {
      if (frame < 0) frame += buffer.slots;
      return frame < 0 ? -1 : buffer.ring.Modulo(frame);
    }
    int64_t slot = frame - before[buffer.made];
    return slot < 0 || slot >= buffer.slots ? -1 : slot;
  }
};

// Keeps a margin equal to the slots that it repeats, after `frames` frames were written from position `slot` on.
void Mirror(const Buffer& buffer, uint8_t* memory, int64_t slot, int64_t frames, Counters& counters);

void FillFrames(uint8_t* to, int64_t bytes, uint32_t fill);

// Writes the tails of the buffers whose last writer is `writer`.
int FillTails(const Step& step, int32_t writer);

// The frames that an instruction makes in a step.
struct Range {
  int64_t low, high;
};
Range RangeOf(const Step& step, const Instruction& instruction);

// Runs a CALL, a COPY or an ATTEND for the frames [low, high).
int RunOne(const Step& step, const Instruction& instruction, int64_t low, int64_t high);

// Runs the steps' code for `count` streams of one program, each instruction for all of them before the next.
// gathered: the program's gathered_bytes, for rows of several streams in one call; null: one after the other.
// Returns an rn_code; where that is a failure, none of the steps can be used.
int RunSteps(const Step* const* steps, int32_t count, uint8_t* gathered);

}  // namespace runnel

#endif  // RUNNEL_STEP_H_
