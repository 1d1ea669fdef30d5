// Measures a bundle on one thread, on noise.
#include <cstdio>

#include "figures.h"
#include "forecast.h"
#include "noise.h"
#include "options.h"
#include "player.h"
#include "realtime.h"

namespace runnel_run {
namespace {

constexpr size_t kMostSteps = 1 << 16;
constexpr int kWarm = 20;  // pushes, or as many as a second has

}  // namespace

int Bench(const Options& options) {
  const int64_t begun = Now();
  rn_bundle* bundle = OpenBundle(options);
  const rn_facts& facts = *rn_bundle_facts(bundle);
  Player player(bundle, RN_NONFINITE_ERROR);
  const int64_t chunk = BenchChunk(options, player);
  const Noise noise(&player, chunk);
  player.Prepare(chunk);
  const double rate = options.rate > 0 ? options.rate : facts.rate;
  if (options.realtime && rate <= 0) Refuse("--realtime needs the rate of the input; give --rate.");
  if (options.core >= 0) UseCore(options.core);
  if (options.priority) UsePriority(options.priority);
  player.UseThreads(options.threads);
  player.Push(noise.data(), chunk);
  const double first = static_cast<double>(Now() - begun) * 1e-9;
  ForecastStorage(options, player, chunk, rate);
  Times times(kMostSteps);
  if (options.realtime) LockMemory(options.ram > 0);
  CatchSignals();
  auto room = [&] {
    if (facts.max_frames && player.position() > facts.max_frames - chunk) player.Reset();
  };
  for (int64_t i = 0, end = Now() + 1000000000; i < kWarm && Now() < end; ++i) room(), player.Push(noise.data(), chunk);
  const double period = rate > 0 ? static_cast<double>(chunk) / rate * 1e9 : 0;
  const int64_t start = Now(), stop = start + static_cast<int64_t>(SecondsOr(options, 2) * 1e9), faults = PageFaults();
  int64_t misses = 0, steps = 0;
  while (!Stopped() && Now() < stop) {
    room();
    const int64_t due = start + static_cast<int64_t>(period * static_cast<double>(++steps));
    if (options.realtime) SleepUntil(due);
    const int64_t from = Now();
    player.Push(noise.data(), chunk);
    const int64_t to = Now();
    times.Put(to - from);
    misses +=
        period > 0 && (options.realtime ? static_cast<double>(to - due) : static_cast<double>(to - from)) > period;
  }
  const int64_t faulted = PageFaults() - faults, resident = ResidentBytes();
  const double mean = times.total() / static_cast<double>(steps ? steps : 1);
  times.Sort();
  const double rtf = period > 0 ? mean / (period * 1e-9) : 0;
  const auto own = resident - static_cast<int64_t>(facts.weights_bytes) - static_cast<int64_t>(player.state_bytes());
  printf(
      options.json
          ? "{\"steps\": %lld, \"chunk_frames\": %lld, \"p50\": %.9f, \"p99\": %.9f, \"p999\": %.9f, \"worst\": %.9f, "
            "\"mean\": %.9f, \"rtf\": %.6f, \"deadline_misses\": %lld, \"page_faults\": %lld, \"state_bytes\": %zu, "
            "\"weights_bytes\": %llu, \"resident_bytes\": %lld, \"resident_beyond_bytes\": %lld, "
            "\"first_step\": %.6f"
          : "steps %lld of %lld frames: p50 %.9f s, p99 %.9f s, p99.9 %.9f s, worst %.9f s, mean %.9f s\n"
            "real-time factor %.6f, deadline misses %lld, page faults in steps %lld\n"
            "state %zu bytes, weights %llu, resident %lld, of which beyond weights and state %lld\n"
            "first step done %.6f s after the start\n",
      static_cast<long long>(steps), static_cast<long long>(chunk), times.Percentile(50), times.Percentile(99),
      times.Percentile(99.9), times.Percentile(100), mean, rtf, static_cast<long long>(misses),
      static_cast<long long>(faulted), player.state_bytes(), static_cast<unsigned long long>(facts.weights_bytes),
      static_cast<long long>(resident), static_cast<long long>(own), first);
  SayPaging(rn_bundle_program(bundle), options.json, static_cast<double>(Now() - begun) * 1e-9);
  if (options.json) puts("}");
  return 0;
}

}  // namespace runnel_run
