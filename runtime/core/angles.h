// Angles of positions: exact for any position, and the same bits on every machine.
#ifndef RUNNEL_ANGLES_H_
#define RUNNEL_ANGLES_H_

#include <cstdint>

namespace runnel {

// The cosine and the sine of `position` times a part of a turn, `turn` being that part in 2^-128, low word first.
void Turn(int64_t position, const uint64_t turn[2], double* cosine, double* sine);

}  // namespace runnel

#endif  // RUNNEL_ANGLES_H_
