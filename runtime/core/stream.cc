// The C ABI: streams over caller-owned memory.
#include "stream.h"

#include "frames.h"
#include "plan.h"
#include "platform.h"
#include "runnel.h"
#include "state.h"

using runnel::StateHeader;

namespace runnel {
namespace {

int PushOne(const rn_program* program, void* state, void* scratch, const Arrays& arrays, int nonfinite,
            const Help& help) {
  if (!program || !arrays.inputs || !arrays.outputs || !arrays.capacity || !arrays.written || arrays.frames < 0) {
    return RN_BAD_ARGUMENT;
  }
  if (nonfinite < RN_NONFINITE_ERROR || nonfinite > RN_NONFINITE_RESET) return RN_BAD_ARGUMENT;
  if (int code = CheckCall(*program, state, scratch)) return code;
  FlushDenormals mode;
  Stream stream(*program, state, scratch, help, arrays);
  if (int code = stream.Check(nonfinite)) return code;
  if (int code = stream.Room()) return code;
  stream.Begin();
  return stream.Push();
}

}  // namespace
}  // namespace runnel

extern "C" {

int rn_due(const rn_program* program, const void* state, int64_t frames, int end, int64_t* counts) {
  if (!program || !state || !counts || frames < 0) return RN_BAD_ARGUMENT;
  const auto& header = *static_cast<const StateHeader*>(state);
  if (!runnel::IsStateOf(*program, header)) return RN_BAD_STATE;
  const bool flushed = header.flags & runnel::kFlushed;
  if (flushed && frames > 0) return RN_FLUSHED;
  if (frames > program->most_frames - header.t) return RN_TOO_LONG;
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
  return rn_push_on(nullptr, program, state, scratch, inputs, frames, outputs, capacity, written, nonfinite);
}

int rn_push_on(rn_workers* workers, const rn_program* program, void* state, void* scratch, const void* const* inputs,
               int64_t frames, void* const* outputs, const int64_t* capacity, int64_t* written, int nonfinite) {
  return runnel::PushOne(program, state, scratch, {inputs, frames, outputs, capacity, written}, nonfinite,
                         {workers, nullptr});
}

int rn_push_profiled(const rn_program* program, void* state, void* scratch, const void* const* inputs, int64_t frames,
                     void* const* outputs, const int64_t* capacity, int64_t* written, int nonfinite,
                     const rn_profile* profile) {
  if (!profile || !profile->now || !profile->spent || !profile->calls || !profile->macs) return RN_BAD_ARGUMENT;
  return runnel::PushOne(program, state, scratch, {inputs, frames, outputs, capacity, written}, nonfinite,
                         {nullptr, profile});
}

int rn_prefill(rn_workers* workers, const rn_program* program, void* state, void* scratch, const void* const* inputs,
               int64_t frames, int64_t first, int nonfinite) {
  if (!program || !inputs || first < 0 || first > frames || !program->prefill.size) return RN_BAD_ARGUMENT;
  if (nonfinite < RN_NONFINITE_ERROR || nonfinite > RN_NONFINITE_RESET) return RN_BAD_ARGUMENT;
  if (int code = runnel::CheckCall(*program, state, scratch)) return code;
  runnel::FlushDenormals mode;
  runnel::Stream stream(*program, state, scratch, {workers, nullptr}, {inputs, frames, nullptr, nullptr, nullptr});
  if (int code = stream.Check(nonfinite)) return code;
  return stream.Prefill(first);
}

int rn_flush(const rn_program* program, void* state, void* scratch, void* const* outputs, const int64_t* capacity,
             int64_t* written) {
  if (!program || !outputs || !capacity || !written) return RN_BAD_ARGUMENT;
  if (int code = runnel::CheckCall(*program, state, scratch)) return code;
  runnel::FlushDenormals mode;
  return runnel::Stream(*program, state, scratch, {}, {nullptr, 0, outputs, capacity, written}).Flush();
}

int rn_has_nonfinite(const rn_program* program, const void* const* inputs, int64_t frames) {
  for (int32_t i = 0; i < program->inputs.size; ++i) {
    const runnel::Input& input = program->inputs[i];
    const int64_t values = frames * input.rate * input.outer * input.inner_bytes / 4;
    if (input.is_float32 && input.rate != 0 && runnel::HasNonfinite(inputs[i], values)) return 1;
  }
  return 0;
}

}  // extern "C"
