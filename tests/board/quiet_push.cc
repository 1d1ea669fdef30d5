// Pushes frames through a bundle in memory that is locked and touched, under a filter that ends the process at any
// system call but its end. Prints the page faults of the pushes before the filter; `loud` makes a call under it.
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../runtime/harness.h"
#include "runnel_bundle.h"

namespace {

constexpr int kMostPorts = 8, kWarm = 20, kPushes = 300;
constexpr int64_t kMostFrames = 7, kRoom = 1 << 20;

void Forbid() {
  sock_filter program[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_exit_group, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
  };
  sock_fprog filter = {sizeof program / sizeof *program, program};
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) != 0) {
    _exit(77);
  }
}

int64_t Faults() {
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_minflt + usage.ru_majflt;
}

}  // namespace

int main(int count, char** arguments) {
  rn_bundle* bundle = nullptr;
  char message[300];
  if (rn_load(arguments[1], &bundle, message, sizeof message) != RN_OK) {
    fprintf(stderr, "%s\n", message);
    return 2;
  }
  const rn_program* program = rn_bundle_program(bundle);
  Block state = Room(rn_state_bytes(program)), scratch = Room(rn_scratch_bytes(program));
  if (rn_init(program, state.data, 0) != RN_OK) return 2;
  const void* inputs[kMostPorts] = {};
  void* outputs[kMostPorts] = {};
  int64_t capacity[kMostPorts] = {}, written[kMostPorts] = {};
  for (int32_t i = 0; i < rn_input_count(program); ++i) {
    const int64_t rate = rn_input_rate(program, i), frames = rate ? rate * kMostFrames : 1;
    inputs[i] = Room(static_cast<size_t>(frames * rn_input_frame_bytes(program, i))).data;
    if (!rate && rn_set(program, state.data, i, inputs[i]) != RN_OK) return 2;
  }
  for (int32_t i = 0; i < rn_output_count(program); ++i) {
    outputs[i] = Room(kRoom).data;
    capacity[i] = kRoom / rn_output_frame_bytes(program, i);
  }
  auto push = [&](int times) {
    for (int i = 0; i < times; ++i) {
      if (rn_push(program, state.data, scratch.data, inputs, 1 + i % kMostFrames, outputs, capacity, written, 0)) {
        syscall(SYS_exit_group, 3);
      }
    }
  };
  push(kWarm);
  if (mlockall(MCL_CURRENT | MCL_FUTURE) != 0) return 78;
  Faults();
  const int64_t before = Faults();
  push(kPushes);
  printf("%lld\n", static_cast<long long>(Faults() - before));
  fflush(stdout);
  Forbid();
  push(kPushes);
  if (count > 2) syscall(SYS_getppid);
  syscall(SYS_exit_group, 0);
}
