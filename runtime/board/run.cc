// Streams an input through a bundle in chunks.
#include <cmath>
#include <cstdio>
#include <new>

#include "figures.h"
#include "forecast.h"
#include "notify.h"
#include "options.h"
#include "player.h"
#include "realtime.h"
#include "sink.h"
#include "source.h"

namespace runnel_run {
namespace {

constexpr size_t kMostTimes = 1 << 16;

// The inputs with time, read a chunk of ticks at once.
class Inputs {
 public:
  Inputs(const Player& player, const Options& options) {
    const rn_bundle* bundle = player.bundle();
    const rn_facts& facts = *rn_bundle_facts(bundle);
    while (count_ < kMostPorts && rn_bundle_input(bundle, count_) && rn_bundle_input(bundle, count_)->per_tick)
      ++count_;
    for (int32_t i = 0; i < count_; ++i) {
      const rn_port& port = *rn_bundle_input(bundle, i);
      const char* uri = nullptr;
      for (int k = 0; k < options.ins; ++k) {
        if (const char* named = ValueOf(options.in[k], port.name)) uri = named;
      }
      if (!uri && count_ == 1 && options.ins == 1) uri = options.in[0];
      if (!uri) Refuse("input '%s' is given nothing; say --in %s=URI.", port.name, port.name);
      const double rate = port.rate > 0 ? port.rate : count_ == 1 ? facts.rate : 0;
      sources_[i] = new (Allocate(sizeof(Source))) Source(port, uri, rate, options);
    }
  }

  int64_t rate() const { return sources_[0]->rate(); }
  int64_t total() const { return sources_[0]->total(); }
  // Whether frames come at the pace of a card or camera.
  bool live() const {
    return Sum([](const Source& source) -> int64_t { return source.live(); }) > 0;
  }
  int64_t overruns() const {
    return Sum([](const Source& source) { return source.overruns(); });
  }
  int64_t lost() const {
    return Sum([](const Source& source) { return source.lost(); });
  }
  int64_t waiting() const { return sources_[0]->waiting(); }
  void Finish() const {
    for (int32_t i = 0; i < count_; ++i) sources_[i]->Finish();
  }

  void Prepare(const Player& player, int64_t ticks) {
    for (int32_t i = 0; i < count_; ++i) {
      const int64_t each = rn_bundle_input(player.bundle(), i)->per_tick;
      data_[i] = Allocate(static_cast<size_t>(ticks * each * rn_input_frame_bytes(player.program(), i)));
      sources_[i]->Start(ticks * each);
    }
  }

  // How many ticks came; 0 at the end. They do not end inside a tick, and all end together.
  int64_t Read(const Player& player, int64_t ticks) {
    int64_t came = 0;
    for (int32_t i = 0; i < count_; ++i) {
      const rn_port& port = *rn_bundle_input(player.bundle(), i);
      const int64_t frames = sources_[i]->Read(ticks * port.per_tick, static_cast<uint8_t*>(data_[i]));
      const bool whole = frames % port.per_tick == 0;
      if (i == 0) came = frames / port.per_tick;
      if (Stopped() && (!whole || frames / port.per_tick != came)) return 0;
      if (!whole || frames / port.per_tick != came) {
        Refuse("the inputs do not end together: input '%s' brought %lld frames where %lld were due.", port.name,
               static_cast<long long>(frames), static_cast<long long>((came + !whole) * port.per_tick));
      }
    }
    return came;
  }

  const void* const* data() const { return data_; }

 private:
  template <typename Figure>
  int64_t Sum(Figure figure) const {
    int64_t sum = 0;
    for (int32_t i = 0; i < count_; ++i) sum += figure(*sources_[i]);
    return sum;
  }

  int32_t count_ = 0;
  Source* sources_[kMostPorts] = {};
  void* data_[kMostPorts] = {};
};

void SetStatics(Player* player, const Options& options) {
  for (int32_t i = 0; i < player->inputs(); ++i) {
    const rn_port& port = *rn_bundle_input(player->bundle(), i);
    if (port.per_tick) continue;
    const char* given = nullptr;
    for (int k = 0; k < options.sets; ++k) {
      if (const char* value = ValueOf(options.set[k], port.name)) given = value;
    }
    if (!given && options.load_state) continue;  // the snapshot brings it
    if (!given) Refuse("the static input '%s' has no value; say --set %s=VALUE.", port.name, port.name);
    auto* value = static_cast<uint8_t*>(Allocate(static_cast<size_t>(Layout(port).frame_bytes())));
    ReadStatic(port, given, value);
    player->Set(i, value);
    free(value);
  }
}

struct Outputs {
  Sink* sinks[kMostPorts] = {};
  int size = 0;

  Outputs(const Player& player, const Options& options, int64_t rate, int64_t chunk) {
    for (int k = 0; k < options.outs; ++k) {
      int32_t output = 0;
      const char* uri = options.out[k];
      for (int32_t i = 0; i < player.outputs(); ++i) {
        if (const char* named = ValueOf(options.out[k], rn_bundle_output(player.bundle(), i)->name)) {
          output = i, uri = named;
        }
      }
      for (int i = 0; i < size; ++i) {
        if (sinks[i]->output() == output) Refuse("output %d is given two places; name one.", output);
      }
      const rn_port& port = *rn_bundle_output(player.bundle(), output);
      sinks[size++] = new (Allocate(sizeof(Sink))) Sink(port, output, uri, rate, chunk);
    }
  }

  void Take(const Player& player) const {
    for (int i = 0; i < size; ++i) {
      const int32_t output = sinks[i]->output();
      sinks[i]->Write(player.output(output), player.written(output), player.pitch(output),
                      rn_output_frame_bytes(player.program(), output));
    }
  }

  int64_t underruns() const {
    int64_t sum = 0;
    for (int i = 0; i < size; ++i) sum += sinks[i]->underruns();
    return sum;
  }

  bool standard() const {
    for (int i = 0; i < size; ++i) {
      if (sinks[i]->standard()) return true;
    }
    return false;
  }
};

int64_t ChunkOf(const Options& options, const Player& player, int64_t total, double rate, int64_t hop) {
  if (options.chunk && strcmp(options.chunk, "all") == 0) {
    if (!total) Refuse("--chunk all needs a file in .wav or .npy with frames in it.");
    const int64_t each = rn_bundle_input(player.bundle(), 0)->per_tick;
    return (total + each - 1) / each;
  }
  if (options.chunk) return static_cast<int64_t>(strtod(options.chunk, nullptr));
  return rate >= 1000 ? static_cast<int64_t>(rate) / 100 : hop;
}

}  // namespace

int Run(const Options& options) {
  const int64_t begun = Now();
  rn_bundle* bundle = OpenBundle(options);
  const rn_facts& facts = *rn_bundle_facts(bundle);
  Player player(bundle, options.nonfinite);
  if (options.load_state) player.Load(options.load_state);
  SetStatics(&player, options);
  Inputs inputs(player, options);
  const double rate = options.rate > 0 ? options.rate
                      : facts.rate > 0 ? facts.rate
                                       : static_cast<double>(inputs.rate());
  if (options.realtime && rate <= 0) Refuse("--realtime needs the rate of the input; give --rate.");
  const int64_t chunk = ChunkOf(options, player, inputs.total(), rate, facts.hop);
  const Outputs outputs(player, options, static_cast<int64_t>(llround(rate)), chunk);
  inputs.Prepare(player, chunk);
  player.Prepare(chunk);
  ForecastStorage(options, player, chunk, rate);
  Times times(kMostTimes);
  if (options.core >= 0) UseCore(options.core);
  if (options.priority) UsePriority(options.priority);
  player.UseThreads(options.threads);
  CatchSignals();
  Notifier notifier;
  if (options.realtime) LockMemory(options.ram > 0);
  notifier.Ready();
  const bool live = inputs.live();
  if (options.seconds > 0 && rate <= 0) Refuse("--seconds needs the rate of the input; give --rate.");
  const int64_t most = options.seconds > 0 ? llround(options.seconds * rate) : INT64_MAX;
  const double period = rate > 0 ? static_cast<double>(chunk) / rate * 1e9 : 0;
  const int64_t start = Now(), begins = player.position();
  int64_t misses = 0, dropped = 0, faults = 0, first = 0, chunks = 0;
  auto due = [&](int64_t n) { return start + static_cast<int64_t>(period * static_cast<double>(n)); };
  for (int64_t left = most; left > 0 && !Stopped();) {
    const int64_t ticks = inputs.Read(player, left < chunk ? left : chunk);
    if (ticks == 0) break;
    notifier.Alive(Now());
    ++chunks;
    left -= ticks;
    if (options.realtime && live) {
      if (options.drop && inputs.waiting() >= chunk) {  // the next chunk is complete already
        ++dropped;
        continue;
      }
    } else if (options.realtime) {
      // The last frame of this chunk would have been recorded then; the next chunk is complete a period later.
      if (options.drop && Now() > due(chunks + 1)) {
        ++dropped;
        continue;
      }
      SleepUntil(due(chunks));
    }
    const int64_t faults_before = PageFaults(), from = Now();
    player.Push(inputs.data(), ticks);
    const int64_t to = Now();
    faults += PageFaults() - faults_before;
    if (!first) first = to;
    times.Put(to - from);
    const int64_t limit = live ? from + static_cast<int64_t>(period) : due(chunks + 1);
    if (options.realtime && to > limit) ++misses;
    outputs.Take(player);
  }
  notifier.Stopping();
  const int64_t frames = player.position() - begins;
  if (frames == 0) Refuse("no frames came in.");
  char message[256];
  if (options.save_state) {  // the stream goes on from there
    player.Save(options.save_state);
  } else if (player.MayEnd(message, sizeof message)) {
    const int64_t from = Now();
    player.Flush();
    times.Put(Now() - from);
    outputs.Take(player);
  } else if (!Stopped()) {
    Refuse("%s", message);
  } else {
    fprintf(stderr, "runnel-run: stopped; the rest is left out, since %s\n", message);
  }
  for (int i = 0; i < outputs.size; ++i) outputs.sinks[i]->Finish();
  inputs.Finish();
  times.Sort();
  FILE* page = outputs.standard() ? stderr : stdout;
  const double seconds = rate > 0 ? static_cast<double>(frames) / rate : 0;
  const double rtf = seconds > 0 ? times.total() / seconds : 0;
  fprintf(page,
          options.json ? "{\"frames\": %lld, \"steps\": %zu, \"chunk_frames\": %lld, \"p50\": %.9f, \"p99\": %.9f, "
                         "\"worst\": %.9f, \"rtf\": %.6f, \"deadline_misses\": %lld, \"dropped_chunks\": %lld, "
                         "\"page_faults\": %lld, \"overruns\": %lld, \"underruns\": %lld, \"lost_frames\": %lld, "
                         "\"state_bytes\": %zu, \"first_step\": %.6f, \"stopped\": %s}\n"
                       : "frames %lld in %zu steps of %lld; a step takes p50 %.6f s, p99 %.6f s, worst %.6f s; "
                         "real-time factor %.4f; deadline misses %lld, dropped chunks %lld, page faults in steps %lld; "
                         "overruns %lld, underruns %lld, lost frames %lld; "
                         "state %zu bytes; first step %.4f s after the start; stopped: %s\n",
          static_cast<long long>(frames), times.size(), static_cast<long long>(chunk), times.Percentile(50),
          times.Percentile(99), times.Percentile(100), rtf, static_cast<long long>(misses),
          static_cast<long long>(dropped), static_cast<long long>(faults), static_cast<long long>(inputs.overruns()),
          static_cast<long long>(outputs.underruns()), static_cast<long long>(inputs.lost()), player.state_bytes(),
          static_cast<double>(first - begun) * 1e-9, Stopped() ? "true" : "false");
  return 0;
}

}  // namespace runnel_run
