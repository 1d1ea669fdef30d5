// One call of a kernel: the pointers that it gets, for one row or several.
#ifndef RUNNEL_CALL_H_
#define RUNNEL_CALL_H_

#include "step.h"

namespace runnel {

// kNobody: it reads a unit of a place where none was chosen, so it is not made.
enum class Binding { kBound, kBroken, kNotInOnePiece, kNobody };

// The pointers of one call.
struct Arguments {
  void* pointer[kMaxArguments];
  int64_t frame[kMaxArguments][2];  // of kFrame operands
  struct {
    const Buffer* buffer;
    int64_t slot, frames;
  } written[kMaxArguments];
  int32_t written_count;

  // The two words of a kFrame operand whose pointer is `at`.
  void* Number(void* const* at, const Step& step, const Operand& operand, int64_t q) {
    int64_t* words = frame[at - pointer];
    words[0] = q;
    words[1] = step.lengths ? step.lengths[operand.buffer] : -1;
    return words;
  }
};

// Resolves the operands of rows [q, q + rows). Several rows need each operand's frames in one piece.
Binding Bind(const Step& step, const Instruction& instruction, int64_t q, int64_t rows, Arguments& arguments);

// Calls a kernel, on all workers where they may share it, and counts that. Margins are not yet kept: see Written.
int CallKernels(const Step& step, const Instruction& instruction, const Entry& kernel, const Arguments& arguments);

// Keeps the margins of what the call wrote.
void Written(const Step& step, const Arguments& arguments);

// Runs one row of a plain CALL, all of whose weights are in memory: the same as RunCall, in a third of its
// instructions.
int RunPlain(const Step& step, const Instruction& instruction, int64_t q);

// Runs a CALL for rows [low, high).
int RunCall(const Step& step, const Instruction& instruction, int64_t low, int64_t high);

}  // namespace runnel

#endif  // RUNNEL_CALL_H_
