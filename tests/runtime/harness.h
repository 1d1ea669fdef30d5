// What the C++ test programs share: reading a seed and running a program whose kernels do nothing.
#ifndef RUNNEL_TESTS_HARNESS_H_
#define RUNNEL_TESTS_HARNESS_H_

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "runnel.h"

static int32_t Nothing(void) { return 0; }

struct Block {
  uint8_t* data;
  size_t size;
};

static Block ReadFile(const char* path) {
  FILE* file = fopen(path, "rb");
  if (!file) exit(3);
  fseek(file, 0, SEEK_END);
  Block block = {nullptr, static_cast<size_t>(ftell(file))};
  rewind(file);
  block.data = static_cast<uint8_t*>(aligned_alloc(64, (block.size + 127) & ~size_t{63}));
  if (fread(block.data, 1, block.size, file) != block.size) exit(3);
  fclose(file);
  return block;
}

static Block Room(size_t size) {
  Block block = {static_cast<uint8_t*>(aligned_alloc(64, (size + 127) & ~size_t{63})), size};
  memset(block.data, 0, size);
  return block;
}

#endif  // RUNNEL_TESTS_HARNESS_H_
