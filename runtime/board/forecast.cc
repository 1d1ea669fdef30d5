#include "forecast.h"

#include <sys/stat.h>

#include <cstdio>

#include "say.h"

namespace runnel_run {
namespace {

constexpr uint64_t kRead = 256 << 10, kSmall = 4 << 10;
constexpr int32_t kReads = 32, kDepth = 4, kTries = 3;
constexpr int32_t kSmallReads = 64, kSmallDepth = 8;

// Nanoseconds of some reads anywhere in the bundle, 0 where they fail: the best of a few tries, since what others read
// meanwhile is not the storage's fault.
int64_t Spent(const Options& options, uint64_t bytes, int32_t depth, int32_t count) {
  struct stat about;
  if (stat(options.bundle, &about) != 0 || static_cast<uint64_t>(about.st_size) < bytes) return 0;
  const auto span = static_cast<uint64_t>(about.st_size);
  int64_t best = 0;
  for (int32_t i = 0; i < kTries; ++i) {
    int64_t spent = 0;
    int32_t direct = 0;
    if (rn_read_speed(options.bundle, options.io, options.io_threads, span, bytes, depth, count, &spent, &direct) !=
        RN_OK) {
      return 0;
    }
    if (!i || spent < best) best = spent;
  }
  return best;
}

}  // namespace

uint64_t ReadCost(const Options& options) {
  const auto large = static_cast<double>(Spent(options, kRead, kDepth, kReads / 4));
  const auto small = static_cast<double>(Spent(options, kSmall, kSmallDepth, kSmallReads));
  if (large <= 0 || small <= 0) return 0;
  const double bytes = static_cast<double>(kRead * kReads / 4) / large * small / kSmallReads;
  return bytes > kSmall ? static_cast<uint64_t>(bytes) - kSmall : 1;
}

void ForecastStorage(const Options& options, const Player& player, int64_t chunk, double rate) {
  rn_paging_facts facts;
  if (rate <= 0 || rn_paging_status(player.program(), &facts) != RN_OK || !facts.streamed) return;
  const int64_t nanoseconds = Spent(options, kRead, kDepth, kReads);
  if (!nanoseconds) return;
  const int64_t hop = rn_hop(player.program()), passes = (chunk + hop - 1) / hop;
  const double speed = static_cast<double>(kRead * kReads) / (static_cast<double>(nanoseconds) * 1e-9);
  const double bytes = static_cast<double>(facts.streamed) * static_cast<double>(passes);
  const double period = static_cast<double>(chunk) / rate, reading = bytes / speed;
  const bool fits = reading <= period;
  fprintf(stderr, "storage: a chunk of %.3f ms reads %.1f MiB of weights, which takes %.3f ms at %.0f MB/s: %s\n",
          period * 1e3, bytes / 1048576, reading * 1e3, speed * 1e-6,
          fits ? "fast enough for real time" : "too slow for real time");
  if (!options.realtime || fits || options.slow) return;
  Refuse("storage is too slow for --realtime; give more --ram, a larger hop, or --slow warn --patience S to go on.");
}

}  // namespace runnel_run
