// Counts each instruction of some steps of a bundle by the processor's trap flag: single_step BUNDLE WARM FRAMES prints
// "address count bytes" a line. x86-64 on Linux.
#include <ucontext.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "runnel.h"
#include "runnel_bundle.h"

namespace {

constexpr size_t kSlots = size_t{1} << 20;  // of a hash table that open addressing keeps
constexpr int64_t kMostOutput = 512;        // frames of an output for one of the clock
uint64_t address[kSlots];
uint64_t count[kSlots];

void Trapped(int, siginfo_t*, void* context) {
  const auto at = static_cast<uint64_t>(static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_RIP]);
  size_t slot = (at * 0x9E3779B97F4A7C15u) >> 44;
  while (address[slot] && address[slot] != at) slot = (slot + 1) % kSlots;
  address[slot] = at;
  ++count[slot];
}

void Trap(bool on) {
  if (on) {
    __asm__ volatile("pushfq\n orq $0x100, (%%rsp)\n popfq" ::: "cc", "memory");
  } else {
    __asm__ volatile("pushfq\n andq $~0x100, (%%rsp)\n popfq" ::: "cc", "memory");
  }
}

char* Room(int64_t bytes) {
  const size_t size = (static_cast<size_t>(bytes) / 64 + 1) * 64;
  void* memory = aligned_alloc(64, size);
  if (!memory) abort();
  return static_cast<char*>(memset(memory, 0, size));
}

}  // namespace

int main(int words, char** word) {
  if (words != 4) return 2;
  rn_bundle* bundle = nullptr;
  char message[300];
  if (rn_load(word[1], &bundle, message, sizeof message) != RN_OK) {
    fprintf(stderr, "%s\n", message);
    return 2;
  }
  const rn_program* program = rn_bundle_program(bundle);
  const int64_t hop = rn_hop(program), warm = atoll(word[2]), all = warm + atoll(word[3]);
  char* state = Room(rn_state_bytes(program));
  char* scratch = Room(rn_scratch_bytes(program));
  std::vector<const void*> inputs;
  for (int32_t i = 0; i < rn_input_count(program); ++i) {
    const int64_t bytes = rn_input_frame_bytes(program, i) * rn_input_rate(program, i) * hop;
    char* data = Room(bytes);
    for (int64_t k = 0; k + 4 <= bytes; k += 4) {
      const float value = static_cast<float>(k / 4 % 13) / 8 - 0.75f;
      memcpy(data + k, &value, 4);
    }
    inputs.push_back(data);
  }
  std::vector<void*> outputs;
  std::vector<int64_t> room, written;
  for (int32_t i = 0; i < rn_output_count(program); ++i) {
    room.push_back(kMostOutput * hop);
    written.push_back(0);
    outputs.push_back(Room(rn_output_frame_bytes(program, i) * room.back()));
  }
  struct sigaction action = {};
  action.sa_sigaction = Trapped;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGTRAP, &action, nullptr);
  rn_init(program, state, 0);
  for (int64_t done = 0; done < all; done += hop) {
    if (done >= warm) Trap(true);
    const int code =
        rn_push(program, state, scratch, inputs.data(), hop, outputs.data(), room.data(), written.data(), 0);
    if (done >= warm) Trap(false);
    if (code != RN_OK) {
      fprintf(stderr, "%s\n", rn_message(code));
      return 3;
    }
  }
  for (size_t i = 0; i < kSlots; ++i) {
    if (!address[i]) continue;
    printf("%llx %llu ", static_cast<unsigned long long>(address[i]), static_cast<unsigned long long>(count[i]));
    for (int k = 0; k < 16; ++k) printf("%02x", reinterpret_cast<const uint8_t*>(address[i])[k]);
    printf("\n");
  }
  return 0;
}
