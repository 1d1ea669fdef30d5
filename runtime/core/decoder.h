// Checks a plan and decodes it: the header and the tables in plan.cc, the instructions in code.cc.
#ifndef RUNNEL_DECODER_H_
#define RUNNEL_DECODER_H_

#include <cstdarg>
#include <cstdio>
#include <cstring>

#include "plan.h"
#include "runnel.h"

namespace runnel {

constexpr int64_t kCallWords = 10, kOperandWords = 6, kChooseWords = 11;
constexpr int64_t kMaxFactor = int64_t{1} << 31;  // strides, taps, mul, div …
constexpr int64_t kMaxTable = int64_t{1} << 20;
constexpr int64_t kMaxFramesOfStep = int64_t{1} << 24;
constexpr int64_t kCacheRuleWords = 16;
constexpr int64_t kCacheWords = 28;

struct Header {
  int64_t clocks, buffers, kernels, code, inputs, outputs, entries, state_bytes, scratch_bytes, weights_bytes, hop,
      most_frames, caches, cache_heads;
};

// Of both entry points.
struct Counts {
  int64_t instructions = 0, operands = 0, chooses = 0;
};

// One pass over the words; the first broken rule leaves its sentence in the message.
class Decoder {
 public:
  Decoder(const Sources& sources, Message message) : sources_(sources), message_(message) {}

  // Returns an rn_code; makes the program where it is RN_OK.
  int Run(Program** out);

 private:
  __attribute__((format(printf, 2, 3))) bool Fail(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    Say(RN_BAD_PLAN, format, arguments);
    va_end(arguments);
    return false;
  }
  __attribute__((format(printf, 3, 4))) bool FailWith(int code, const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    Say(code, format, arguments);
    va_end(arguments);
    return false;
  }
  void Say(int code, const char* format, va_list arguments) {
    code_ = code;
    if (message_.text && message_.bytes) vsnprintf(message_.text, message_.bytes, format, arguments);
  }

  int64_t Word(int64_t index) const {
    int64_t word;
    memcpy(&word, sources_.plan + index * 8, 8);
    return word;
  }

  static bool In(int64_t x, int64_t low, int64_t high) { return x >= low && x <= high; }
  bool IsClock(int64_t x) const { return x >= 0 && x < header_.clocks; }
  // Whether a clock's steps are small enough to be worked through.
  bool IsMade(int64_t clock) const { return growth_[clock] <= kMaxFramesOfStep && first_[clock] <= kMaxFramesOfStep; }
  bool IsBuffer(int64_t x) const { return x >= 0 && x < header_.buffers; }

  bool ReadHeader();
  bool Allocate();
  void Count(int64_t entry, Counts& counts) const;
  bool ReadClocks();
  // The most frames that a clock can gain while t gains a hop, at most 2^62.
  int64_t Growth(const Clock& clock) const;
  bool ReadBuffers();
  bool ReadKernels();
  // Whether an array's frame fits a buffer's.
  bool Fits(int64_t buffer, int64_t outer, int64_t inner) const;
  bool ReadInputs();
  // Frames of an input for one of the input clock, 0 for a static input, -1 where the buffer's clock is another.
  int64_t InputRate(const Buffer& buffer) const;
  // Finds where the static inputs' part of the state ends; nothing else may lie there.
  bool PlaceStatics();
  bool ReadOutputs();
  void Finish();

  bool ReadCaches();
  bool ReadCache(int64_t number, Cache& cache);
  // Constants of a cache in the weights, null where `offset` is -1.
  bool ReadConstants(int64_t offset, int64_t count, int64_t item_bytes, const void** at);

  bool ReadCode();
  void Writes(int64_t buffer, int32_t instruction) {
    if (!in_prefill_) program_->buffers[buffer].last_writer = instruction;
  }
  bool NumberWork(int64_t at, int64_t size, Instruction& instruction);
  bool ReadEntry(int64_t entry, Span<Instruction>& instructions);
  int64_t Code(int64_t at) const { return Word(code_at_ + at); }
  bool ReadRange(int64_t at, int64_t number, Instruction& instruction);
  bool ReadKernel(int64_t index, int64_t number, int32_t arguments, Entry* kernel);
  bool ReadCall(int64_t at, int64_t size, int64_t number, int32_t top_level, Instruction& instruction);
  // The kernel for rows apart.
  bool ReadApart(int64_t at, int64_t number, Instruction& instruction);
  bool ReadOperand(int64_t at, int64_t number, const Instruction& instruction, Operand& operand);
  bool ReadRepeat(int64_t at, int64_t size, int64_t number, int64_t count, bool in_repeat, Instruction& instruction);
  // What a SKIP_IF covers; and whether an instruction may lie under one.
  bool ReadSkip(int64_t at, int64_t size, int64_t number, int64_t count, Instruction& instruction);
  bool Guard(const Span<Instruction>& code, int64_t number, bool in_repeat);
  bool ReadCopy(int64_t at, int64_t size, int64_t number, int32_t top_level, Instruction& instruction);
  bool ReadAttend(int64_t at, int64_t size, int64_t number, int32_t top_level, Instruction& instruction);
  bool ReadChoose(int64_t at, int64_t size, int64_t number, int32_t top_level, bool in_repeat,
                  Instruction& instruction);
  void Join();
  // An operand of kind UNITS, whose slots a CHOOSE of the same REPEAT gives.
  bool ReadUnits(int64_t at, int64_t number, Operand& operand);
  bool ReadFetch(int64_t at, int64_t size, int64_t number, int32_t top_level, Instruction& instruction);

  const Sources& sources_;
  Message message_;
  int code_ = RN_OK;
  Header header_ = {};
  int64_t clocks_at_ = 0, buffers_at_ = 0, kernels_at_ = 0, inputs_at_ = 0, outputs_at_ = 0, entries_at_ = 0;
  int64_t caches_at_ = 0;
  int64_t code_at_ = 0, most_operands_ = 0, attend_work_ = 0;
  bool in_prefill_ = false;
  int32_t twin_ = 0;       // the next instruction of the first entry point that one of the second may repeat
  int32_t repeat_at_ = 0;  // the first instruction of the present REPEAT
  int64_t twin_at_ = 0;    // and its word
  Program* program_ = nullptr;
  Span<int64_t> bounds_;          // the highest value of each clock
  Span<int64_t> growth_, first_;  // the most that each clock advances in a step, and in the first
};

}  // namespace runnel

#endif  // RUNNEL_DECODER_H_
