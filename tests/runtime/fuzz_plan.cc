// Mutates plans and runs those that are accepted. Kernels do nothing; memory has exactly the sizes that were asked for.
// Prints how many plans were accepted and how many of those ran to their end.
#include "harness.h"

namespace {

uint64_t seed = 88172645463325252u;

uint64_t Random() {
  seed ^= seed << 13;
  seed ^= seed >> 7;
  return seed ^= seed << 17;
}

int64_t OddValue() {
  static const int64_t kOdd[] = {0,  1,         -1,        2,         3,         64,        127,          INT64_MAX,
                                 16, INT64_MIN, INT32_MAX, INT32_MIN, 1LL << 33, 1LL << 44, -(1LL << 62), 1LL << 62};
  return Random() % 2 ? kOdd[Random() % (sizeof kOdd / sizeof *kOdd)] : static_cast<int64_t>(Random() % 40) - 8;
}

// Two new streams in one call, one of them with fewer frames.
void Together(const rn_program* program, const void* const* inputs, int64_t frames) {
  const size_t bytes = rn_state_bytes(program);
  const int32_t in = rn_input_count(program), out = rn_output_count(program);
  Block scratch = Room(rn_batch_scratch_bytes(program, 2)), states[2] = {Room(bytes), Room(bytes)};
  void *pointers[2] = {states[0].data, states[1].data}, *outputs[8] = {};
  const void* given[8] = {};
  const int64_t each[2] = {frames, frames / 2};
  int64_t capacity[8] = {}, written[8] = {};
  const int policies[2] = {RN_NONFINITE_ZERO, RN_NONFINITE_RESET};
  int32_t failed = 0;
  for (int32_t lane = 0; lane < 2; ++lane) {
    rn_init(program, pointers[lane], lane);
    for (int32_t i = 0; i < in; ++i) {
      given[lane * in + i] = inputs[i];
      if (rn_input_rate(program, i) == 0) rn_set(program, pointers[lane], i, inputs[i]);
    }
  }
  int code = RN_CAPACITY;
  for (int turn = 0; turn < 2 && code == RN_CAPACITY; ++turn) {
    code = rn_push_many(program, 2, pointers, scratch.data, given, each, outputs, capacity, written, policies, &failed);
    if (code != RN_CAPACITY) break;
    for (int32_t i = 0; i < 2 * out; ++i) {
      if (written[i] < capacity[i]) abort();
      capacity[i] = written[i];
      free(outputs[i]);
      outputs[i] = Room(static_cast<size_t>(capacity[i] * rn_output_frame_bytes(program, i % out))).data;
    }
  }
  if (code == RN_CAPACITY) abort();
  for (void* output : outputs) free(output);
  free(scratch.data);
  for (Block& state : states) free(state.data);
}

// A snapshot with a few words changed: refused, or stepped as it is.
void Restored(const rn_program* program, const Block& state, void* scratch, const void* const* inputs, int64_t frames,
              void* const* outputs, const int64_t* capacity) {
  Block changed = Room(state.size);
  int64_t written[4] = {};
  for (int round = 0; round < 8; ++round) {
    memcpy(changed.data, state.data, state.size);
    for (uint64_t i = Random() % 3; i < 3; ++i) {
      const int64_t value = OddValue();
      memcpy(static_cast<uint8_t*>(changed.data) + 64 + Random() % ((state.size - 64) / 8) * 8, &value, 8);
    }
    if (rn_check_state(program, changed.data, state.size) != RN_OK) continue;
    rn_rollback(program, changed.data, static_cast<int64_t>(Random() % 4));
    rn_push(program, changed.data, scratch, inputs, frames, outputs, capacity, written, 1);
  }
  free(changed.data);
}

bool Run(const rn_program* program) {
  const size_t state_bytes = rn_state_bytes(program), scratch_bytes = rn_scratch_bytes(program);
  if (state_bytes > 1u << 22 || scratch_bytes > 1u << 22 || rn_hop(program) > 64) return false;
  if (rn_input_count(program) > 4 || rn_output_count(program) > 4) return false;
  Block state = Room(state_bytes), scratch = Room(scratch_bytes);
  constexpr int64_t kFrames = 7, kMost = 1 << 16;
  void* outputs[4] = {};
  const void* inputs[4] = {};
  int64_t capacity[4] = {}, written[4] = {};
  bool fits = true;
  for (int i = 0; i < rn_input_count(program) && fits; ++i) {
    const int64_t rate = rn_input_rate(program, i) ? rn_input_rate(program, i) : 1;
    fits = rn_input_frame_bytes(program, i) < kMost && rate < 64;
    if (fits) inputs[i] = Room(static_cast<size_t>(rn_input_frame_bytes(program, i) * rate * kFrames)).data;
  }
  rn_init(program, state.data, static_cast<int>(Random() % 2));
  for (int i = 0; i < rn_input_count(program) && fits; ++i) {
    if (rn_input_rate(program, i) == 0 && rn_set(program, state.data, i, inputs[i]) != RN_OK) abort();
  }
  auto room = [&](int64_t frames, int end) {
    if (rn_due(program, state.data, frames, end, capacity) != RN_OK) fits = false;
    for (int i = 0; i < rn_output_count(program) && fits; ++i) {
      free(outputs[i]);
      outputs[i] = nullptr;
      fits = capacity[i] < kMost && rn_output_frame_bytes(program, i) < 4096;
      if (fits) outputs[i] = Room(static_cast<size_t>(capacity[i] * rn_output_frame_bytes(program, i))).data;
    }
    return fits;
  };
  bool ran = false;
  if (fits && room(kFrames, 0)) {
    int code = rn_push(program, state.data, scratch.data, inputs, kFrames, outputs, capacity, written, 0);
    if (code == RN_OK && rn_check_state(program, state.data, state_bytes) != RN_OK) abort();
    if (code == RN_OK) Restored(program, state, scratch.data, inputs, kFrames, outputs, capacity);
    if (code == RN_OK && room(0, 1)) {
      code = rn_flush(program, state.data, scratch.data, outputs, capacity, written);
      for (int i = 0; i < rn_output_count(program) && code == RN_OK; ++i) {
        if (written[i] != capacity[i]) abort();
      }
      ran = code == RN_OK;
    }
  }
  if (ran) Together(program, inputs, kFrames);
  for (int i = 0; i < 4; ++i) {
    free(outputs[i]);
    free(const_cast<void*>(inputs[i]));
  }
  free(state.data);
  free(scratch.data);
  return ran;
}

}  // namespace

int main(int count, char** arguments) {
  const int rounds = atoi(arguments[1]);
  int accepted = 0, ran = 0;
  const uint8_t hash[32] = {};
  for (int argument = 2; argument < count; ++argument) {
    const Block original = ReadFile(arguments[argument]);
    for (int round = 0; round < rounds; ++round) {
      size_t size = original.size;
      if (Random() % 16 == 0) size = Random() % (size + 1);
      uint8_t* plan = static_cast<uint8_t*>(malloc(size + 1));  // exact, so that a read past the end shows
      memcpy(plan, original.data, size);
      const int changes = static_cast<int>(Random() % 4);
      for (int i = 0; i < changes && size >= 8; ++i) {
        const int64_t value = OddValue();
        if (Random() % 4) {
          memcpy(plan + Random() % (size / 8) * 8, &value, 8);
        } else {
          plan[Random() % size] = static_cast<uint8_t>(value);
        }
      }
      int64_t weights_bytes = 0;
      if (size >= 128) memcpy(&weights_bytes, plan + 96, 8);
      if (weights_bytes < 0 || weights_bytes > 1 << 20) weights_bytes = 64;
      Block weights = Room(static_cast<size_t>(weights_bytes));
      rn_program* program = nullptr;
      char message[200];
      const int code = rn_open(plan, size, weights.data, weights.size, reinterpret_cast<const void*>(&Nothing), 1, hash,
                               &program, message, sizeof message);
      if ((code == RN_OK) != (program != nullptr) || (code != RN_OK && !message[0])) abort();
      if (program) {
        ++accepted;
        ran += Run(program);
        rn_close(program);
      }
      free(weights.data);
      free(plan);
    }
    free(original.data);
  }
  printf("%d %d\n", accepted, ran);
  return 0;
}
