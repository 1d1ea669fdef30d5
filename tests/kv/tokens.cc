// Goes on with a saved stream of a decoder, some tokens a push, so that a tool can count what a token takes.
#include <vector>

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
  Block state = Room(rn_state_bytes(program)), scratch = Room(rn_scratch_bytes(program));
  const int64_t most = atoi(arguments[3]), chunk = atoi(arguments[4]);
  Block logits = Room(static_cast<size_t>(rn_output_frame_bytes(program, 0) * chunk));
  FILE* file = fopen(arguments[2], "rb");
  const size_t bytes = file ? fread(state.data, 1, state.size, file) : 0;
  if (rn_check_state(program, state.data, bytes) != RN_OK) return 3;
  for (int64_t i = 0; i < most; i += chunk) {
    std::vector<int64_t> tokens;
    for (int64_t k = i; k < i + chunk; ++k) tokens.push_back(3 + k * 7 % 500);
    const void* inputs[] = {tokens.data()};
    void* outputs[] = {logits.data};
    int64_t capacity[] = {chunk}, written[1];
    if (rn_push(program, state.data, scratch.data, inputs, chunk, outputs, capacity, written, 0) != RN_OK) return 4;
  }
  return 0;
}
