// Inputs for measuring: a chunk of noise that is pushed again and again.
#ifndef RUNNEL_BOARD_NOISE_H_
#define RUNNEL_BOARD_NOISE_H_

#include "options.h"
#include "player.h"

namespace runnel_run {

// Frames of the stream's clock in a step, by --chunk or the hop; never more than a stream may have.
int64_t BenchChunk(const Options& options, const Player& player);

inline double SecondsOr(const Options& options, double usual) { return options.seconds > 0 ? options.seconds : usual; }

class Noise {
 public:
  // Gives static inputs theirs.
  Noise(Player* player, int64_t chunk);
  const void* const* data() const { return pointers_; }

 private:
  const void* pointers_[kMostPorts] = {};
};

}  // namespace runnel_run

#endif  // RUNNEL_BOARD_NOISE_H_
