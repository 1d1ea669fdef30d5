// Rows of several streams in one call of a kernel, so that its weights are read once for all of them.
#ifndef RUNNEL_TOGETHER_H_
#define RUNNEL_TOGETHER_H_

#include "step.h"

namespace runnel {

// Runs instruction `i`, a CALL or a REPEAT with a kernel for rows apart, for `count` streams. gathered: 64-byte aligned
// memory of the program's gathered_bytes, where rows are put side by side. Returns an rn_code.
int RunTogether(const Step* const* steps, int32_t count, int32_t i, uint8_t* gathered);

// The bytes that a call for rows apart needs for the rows that it gathers, 0 where one operand cannot be gathered.
int64_t GatheredBytes(const Program& program, const Instruction& instruction);

}  // namespace runnel

#endif  // RUNNEL_TOGETHER_H_
