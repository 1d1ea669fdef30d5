// Pushes a number of steps of the bundle's hop into one stream, so that a tool can count what a step takes.
#include "harness.h"
#include "runnel_bundle.h"

int main(int, char** arguments) {
  rn_bundle* bundle = nullptr;
  char message[300];
  if (rn_load(arguments[1], &bundle, message, sizeof message) != RN_OK) {
    fprintf(stderr, "%s\n", message);
    return 2;
  }
  const rn_program* program = rn_bundle_program(bundle);
  const int64_t hop = rn_hop(program);
  Block input = Room(static_cast<size_t>(rn_input_frame_bytes(program, 0) * rn_input_rate(program, 0) * hop));
  for (size_t i = 0; i < input.size / 4; ++i) {
    const float value = static_cast<float>(i % 13) / 8 - 0.75f;
    memcpy(input.data + i * 4, &value, 4);
  }
  Block state = Room(rn_state_bytes(program)), scratch = Room(rn_scratch_bytes(program));
  constexpr int kMost = 8;
  const void* inputs[] = {input.data};
  void* outputs[kMost];
  int64_t capacity[kMost], written[kMost], counters[4];
  for (int i = 0; i < rn_output_count(program); ++i) {
    capacity[i] = 4 * hop;
    outputs[i] = Room(static_cast<size_t>(rn_output_frame_bytes(program, i) * capacity[i])).data;
  }
  rn_init(program, state.data, 0);
  for (int i = 0; i < atoi(arguments[2]); ++i) {
    const int code = rn_push(program, state.data, scratch.data, inputs, hop, outputs, capacity, written, 0);
    if (code != RN_OK) {
      fprintf(stderr, "%s\n", rn_message(code));
      return 3;
    }
  }
  rn_counters(state.data, counters);
  printf("%lld %lld %lld\n", (long long)counters[0], (long long)counters[1], (long long)counters[3]);
  return 0;
}
