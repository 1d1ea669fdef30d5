// Many threads step one program of a bundle at once, each with a state and scratch of its own. Prints how many threads
// gave the same bytes as the first.
#include <pthread.h>

#include "harness.h"
#include "runnel_bundle.h"

namespace {

constexpr int kThreads = 8, kSteps = 200, kMostOutputs = 4;
constexpr size_t kRoom = 1 << 18;

struct Work {
  const rn_program* program;
  const void* input;
  int number;
  Block given;
};

void* Step(void* argument) {
  auto& work = *static_cast<Work*>(argument);
  const rn_program* program = work.program;
  Block state = Room(rn_state_bytes(program)), scratch = Room(rn_scratch_bytes(program));
  int64_t capacity[kMostOutputs] = {}, written[kMostOutputs] = {};
  size_t used = 0;
  if (rn_init(program, state.data, 0) != RN_OK) abort();
  const int64_t frame = rn_output_frame_bytes(program, 0);
  for (int i = 0; i < kSteps; ++i) {
    capacity[0] = static_cast<int64_t>(kRoom - used) / frame;
    void* outputs[kMostOutputs] = {work.given.data + used};
    const void* inputs[] = {work.input};
    const int64_t frames = (i * 7 + 1) % 5;
    if (rn_push(program, state.data, scratch.data, inputs, frames, outputs, capacity, written, 0) != RN_OK) abort();
    used += static_cast<size_t>(written[0] * frame);
  }
  free(state.data);
  free(scratch.data);
  return nullptr;
}

}  // namespace

int main(int, char** arguments) {
  rn_bundle* bundle = nullptr;
  char message[300];
  if (rn_load(arguments[1], &bundle, message, sizeof message) != RN_OK) {
    fprintf(stderr, "%s\n", message);
    return 2;
  }
  const rn_program* program = rn_bundle_program(bundle);
  Block input = Room(static_cast<size_t>(rn_input_frame_bytes(program, 0)) * 8);
  for (size_t i = 0; i < input.size / 4; ++i) {
    const float value = static_cast<float>(i % 13) - 6;
    memcpy(input.data + i * 4, &value, 4);
  }
  pthread_t threads[kThreads];
  Work work[kThreads];
  for (int i = 0; i < kThreads; ++i) {
    work[i] = {program, input.data, i, Room(kRoom)};
    if (pthread_create(&threads[i], nullptr, Step, &work[i]) != 0) return 3;
  }
  int same = 0;
  for (int i = 0; i < kThreads; ++i) {
    pthread_join(threads[i], nullptr);
    same += memcmp(work[i].given.data, work[0].given.data, kRoom) == 0;
  }
  printf("%d\n", same);
  for (Work& each : work) free(each.given.data);
  free(input.data);
  rn_unload(bundle);
  return 0;
}
