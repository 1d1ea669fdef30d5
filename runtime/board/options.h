// The words of the command line.
#ifndef RUNNEL_BOARD_OPTIONS_H_
#define RUNNEL_BOARD_OPTIONS_H_

#include <cstdint>

namespace runnel_run {

constexpr int kMostNamed = 64;

struct Options {
  const char* bundle = nullptr;
  const char* in[kMostNamed] = {};
  const char* out[kMostNamed] = {};
  const char* set[kMostNamed] = {};
  int ins = 0, outs = 0, sets = 0;
  const char* chunk = nullptr;
  const char* load_state = nullptr;
  const char* save_state = nullptr;
  double rate = 0, seconds = 0;                // 0: not given
  double pixel_offset = 0, pixel_scale = 255;  // a pixel p is (p - offset) / scale
  uint64_t ram = 0;                            // bytes; 0: no budget
  int experts = 2;                             // RN_UNITS_COST
  int experts_ahead = 0;                       // an rn_ahead
  double patience = 0;
  int io = 0, io_threads = 0, slow = 0;
  int threads = 1;
  int nonfinite = 0, priority = 0, core = -1;
  bool realtime = false, drop = false, json = false;
};

// What follows the command's name; exits with a sentence for what is not known.
Options ReadOptions(int count, char** words);

// The value behind NAME= where the name is `name`; null otherwise.
const char* ValueOf(const char* text, const char* name);

int Run(const Options& options);
int Verify(const Options& options);
int Bench(const Options& options);
int Profile(const Options& options);

}  // namespace runnel_run

#endif  // RUNNEL_BOARD_OPTIONS_H_
