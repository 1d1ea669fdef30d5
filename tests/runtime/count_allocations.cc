// Counts the blocks that the core asks for, of a plan or a bundle, with a budget where bytes are given: linked with
// --wrap, so that every allocation passes here.
#include "harness.h"
#include "runnel_bundle.h"
#include "runnel_paging.h"

static int allocations = 0;

extern "C" {
void* __real_malloc(size_t);
void* __real_calloc(size_t, size_t);
void* __real_realloc(void*, size_t);
int __real_posix_memalign(void**, size_t, size_t);
void* __real_aligned_alloc(size_t, size_t);
void* __wrap_malloc(size_t n) { return ++allocations, __real_malloc(n); }
void* __wrap_calloc(size_t n, size_t m) { return ++allocations, __real_calloc(n, m); }
void* __wrap_realloc(void* p, size_t n) { return ++allocations, __real_realloc(p, n); }
int __wrap_posix_memalign(void** p, size_t a, size_t n) { return ++allocations, __real_posix_memalign(p, a, n); }
void* __wrap_aligned_alloc(size_t a, size_t n) { return ++allocations, __real_aligned_alloc(a, n); }
void* __wrap__Znwm(size_t n) { return ++allocations, __real_malloc(n); }
}

int main(int count, char** arguments) {
  const uint8_t hash[32] = {};
  Block file = ReadFile(arguments[1]), out = Room(1 << 20), in = Room(1 << 16);
  rn_program* own_program = nullptr;
  rn_bundle* bundle = nullptr;
  if (memcmp(file.data, "PK", 2) == 0) {
    allocations = 0;
    rn_paging paging = {};
    paging.streams = 4;
    if (count > 2) paging.ram = strtoull(arguments[2], nullptr, 10);
    if (rn_load_paged(arguments[1], count > 2 ? &paging : nullptr, &bundle, nullptr, 0) != RN_OK) return 2;
  } else {
    int64_t weights_bytes;
    memcpy(&weights_bytes, file.data + 96, 8);
    Block weights = Room(static_cast<size_t>(weights_bytes));
    allocations = 0;
    if (rn_open(file.data, file.size, weights.data, weights.size, reinterpret_cast<const void*>(&Nothing), 1, hash,
                &own_program, nullptr, 0) != RN_OK) {
      return 2;
    }
  }
  const int at_open = allocations;
  const rn_program* program = bundle ? rn_bundle_program(bundle) : own_program;
  Block state = Room(rn_state_bytes(program)), scratch = Room(rn_scratch_bytes(program));
  void* outputs[4] = {out.data, out.data, out.data, out.data};
  const void* inputs[4] = {in.data, in.data, in.data, in.data};
  int64_t capacity[4] = {1024, 1024, 1024, 1024}, written[4];
  allocations = 0;
  for (int stream = 0; stream < 3; ++stream) {
    if (rn_init(program, state.data, stream == 0) != RN_OK) return 2;
    for (int i = 0; i < 50; ++i) {
      if (rn_due(program, state.data, i % 9, 1, written) != RN_OK) return 2;
      if (rn_push(program, state.data, scratch.data, inputs, i % 9, outputs, capacity, written, 0) != RN_OK) return 2;
    }
    if (rn_flush(program, state.data, scratch.data, outputs, capacity, written) != RN_OK) return 2;
  }
  int many = allocations;
  constexpr int32_t kLanes = 3;
  allocations = 0;
  Block batch = Room(rn_batch_scratch_bytes(program, kLanes)), states[kLanes];
  void* pointers[kLanes];
  for (int32_t i = 0; i < kLanes; ++i) {
    states[i] = Room(rn_state_bytes(program));
    pointers[i] = states[i].data;
    if (rn_init(program, pointers[i], 0) != RN_OK) return 2;
  }
  const int own = allocations;
  const void* many_in[4 * kLanes];
  void* many_out[4 * kLanes];
  int64_t many_capacity[4 * kLanes], many_written[4 * kLanes];
  for (int32_t i = 0; i < 4 * kLanes; ++i) many_in[i] = in.data, many_out[i] = out.data, many_capacity[i] = 1024;
  const int nonfinite[kLanes] = {0, 1, 2};
  for (int i = 0; i < 50; ++i) {
    const int64_t frames[kLanes] = {i % 9, i % 3 - 1, i % 5};
    int32_t failed;
    if (rn_push_many(program, kLanes, pointers, batch.data, many_in, frames, many_out, many_capacity, many_written,
                     nonfinite, &failed) != RN_OK) {
      return 2;
    }
  }
  many += allocations - own;
  printf("%d %d\n", at_open, many);
  rn_close(own_program);
  rn_unload(bundle);
  return 0;
}
