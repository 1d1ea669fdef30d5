// Plays a recording through a bundle's plan and kernels: the parts of a bundle as files, a script of pushes, an output.
//
//   replay PLAN WEIGHTS IMAGE HASH SCRIPT OUT
//
// SCRIPT: int64 pushes; for each int64 frames and the bytes of every input. OUT: for each push, and for the flush,
// every output's int64 frames and bytes.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "runnel.h"

namespace {

constexpr int kPorts = 16;

struct Mapped {
  const uint8_t* data;
  size_t size;
};

void Need(bool good, const char* what) {
  if (good) return;
  fprintf(stderr, "%s\n", what);
  exit(2);
}

Mapped Map(const char* path, int protection) {
  int file = open(path, O_RDONLY);
  struct stat facts;
  Need(file >= 0 && fstat(file, &facts) == 0, path);
  if (facts.st_size == 0) return {nullptr, 0};
  void* at = mmap(nullptr, static_cast<size_t>(facts.st_size), protection, MAP_PRIVATE, file, 0);
  Need(at != MAP_FAILED, path);
  return {static_cast<const uint8_t*>(at), static_cast<size_t>(facts.st_size)};
}

void* Room(size_t bytes) {
  void* at = aligned_alloc(64, (bytes + 127) & ~size_t{63});
  Need(at != nullptr, "no memory");
  return at;
}

int64_t Word(const uint8_t* at) {
  int64_t word;
  memcpy(&word, at, sizeof word);
  return word;
}

void Write(FILE* out, const rn_program* program, void* const* outputs, const int64_t* written) {
  for (int i = 0; i < rn_output_count(program); ++i) {
    fwrite(&written[i], sizeof written[i], 1, out);
    fwrite(outputs[i], 1, static_cast<size_t>(written[i] * rn_output_frame_bytes(program, i)), out);
    free(outputs[i]);
  }
}

}  // namespace

int main(int count, char** words) {
  Need(count == 7, "usage: replay PLAN WEIGHTS IMAGE HASH SCRIPT OUT");
  Mapped plan = Map(words[1], PROT_READ), weights = Map(words[2], PROT_READ);
  Mapped image = Map(words[3], PROT_READ | PROT_EXEC), hash = Map(words[4], PROT_READ),
         script = Map(words[5], PROT_READ);
  FILE* out = fopen(words[6], "wb");
  Need(out != nullptr && hash.size == 32, "no output or hash");
  rn_program* program;
  char message[512];
  int code = rn_open(plan.data, plan.size, weights.data, weights.size, image.data, image.size, hash.data, &program,
                     message, sizeof message);
  Need(code == RN_OK, message);
  Need(rn_input_count(program) <= kPorts && rn_output_count(program) <= kPorts, "too many ports");
  void* state = Room(rn_state_bytes(program));
  void* scratch = Room(rn_scratch_bytes(program));
  Need(rn_init(program, state, 1) == RN_OK, "rn_init");
  const uint8_t* at = script.data + sizeof(int64_t);
  const void* inputs[kPorts];
  void* outputs[kPorts];
  int64_t capacity[kPorts], written[kPorts];
  auto prepare = [&](int64_t frames, int end) {
    Need(rn_due(program, state, frames, end, capacity) == RN_OK, "rn_due");
    for (int i = 0; i < rn_output_count(program); ++i) {
      outputs[i] = Room(static_cast<size_t>(capacity[i] * rn_output_frame_bytes(program, i)));
    }
  };
  for (int64_t push = Word(script.data); push > 0; --push) {
    int64_t frames = Word(at);
    at += sizeof frames;
    for (int i = 0; i < rn_input_count(program); ++i) {
      inputs[i] = at;
      at += frames * rn_input_rate(program, i) * rn_input_frame_bytes(program, i);
    }
    prepare(frames, 0);
    code = rn_push(program, state, scratch, inputs, frames, outputs, capacity, written, RN_NONFINITE_ERROR);
    Need(code == RN_OK, rn_message(code));
    Write(out, program, outputs, written);
  }
  prepare(0, 1);
  Need(rn_flush(program, state, scratch, outputs, capacity, written) == RN_OK, "rn_flush");
  Write(out, program, outputs, written);
  fclose(out);
  rn_close(program);
  return 0;
}
