// Refuses what a board that is told keys does not trust.
#ifndef RUNNEL_BOARD_SIGNATURE_H_
#define RUNNEL_BOARD_SIGNATURE_H_

#include "runnel_bundle.h"

namespace runnel_run {

// Keys are told in /etc/runnel/trusted.pub, and in trusted.pub of the store that this program lies in. Exits with a
// sentence where there is such a file and none of its keys signed the bundle.
void RequireSignature(const rn_bundle* bundle, const char* path);

}  // namespace runnel_run

#endif  // RUNNEL_BOARD_SIGNATURE_H_
