// Whether storage is fast enough for real time, said before it matters.
#ifndef RUNNEL_BOARD_FORECAST_H_
#define RUNNEL_BOARD_FORECAST_H_

#include "options.h"
#include "player.h"

namespace runnel_run {

// Measures the storage of a bundle whose weights pass through memory, and says how long a chunk's weights take. Where
// that is longer than the chunk lasts, --realtime is refused, unless --slow warn says to go on.
void ForecastStorage(const Options& options, const Player& player, int64_t chunk, double rate);

// How many bytes the bundle's storage reads in the time that one more small read takes; 0 where it cannot be measured.
uint64_t ReadCost(const Options& options);

}  // namespace runnel_run

#endif  // RUNNEL_BOARD_FORECAST_H_
