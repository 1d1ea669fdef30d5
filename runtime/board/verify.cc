// Plays a bundle's golden input in several chunkings and compares with what the offline model gave.
#include <cmath>
#include <cstdio>
#include <initializer_list>

#include "npy.h"
#include "options.h"
#include "player.h"

namespace runnel_run {
namespace {

constexpr int64_t kFewFrames = 200000;  // up to here a recording is also played frame by frame
constexpr double kSmallestRange = 1e-6, kLargestCode = 255;
constexpr int kRandomSizes = 64;

struct Golden {
  Npy inputs[kMostPorts], outputs[kMostPorts];
  int64_t ticks = INT64_MAX;
};

void ReadGolden(const Player& player, const char* kind, int32_t count, Npy* arrays) {
  for (int32_t i = 0; i < count; ++i) {
    char name[64], message[512];
    snprintf(name, sizeof name, "golden/%s_%d.npy", kind, i);
    const void* bytes = nullptr;
    size_t size = 0;
    if (rn_bundle_entry(player.bundle(), name, &bytes, &size, message, sizeof message) != RN_OK) Refuse("%s", message);
    const char* wrong = ReadNpy(static_cast<const uint8_t*>(bytes), size, &arrays[i]);
    if (wrong) Refuse("entry '%s' is not an array (%s); compile the model again.", name, wrong);
  }
}

// What a whole stream gave of each output, frame by frame.
struct Played {
  Array<uint8_t> bytes[kMostPorts];
  int64_t frames[kMostPorts] = {};
};

void Take(const Player& player, Played* played) {
  for (int32_t i = 0; i < player.outputs(); ++i) {
    const rn_port& port = *rn_bundle_output(player.bundle(), i);
    const Layout layout(port);
    const auto frame_bytes = static_cast<size_t>(rn_output_frame_bytes(player.program(), i));
    const int64_t frames = player.written(i);
    if (frames == 0) continue;
    if (port.axis < 0) {
      memcpy(played->bytes[i].Add(static_cast<size_t>(frames) * frame_bytes), player.output(i),
             static_cast<size_t>(frames) * frame_bytes);
      continue;
    }
    const auto inner = static_cast<size_t>(layout.inner_bytes);
    for (int64_t n = 0; n < frames; ++n) {
      for (int64_t o = 0; o < layout.outer; ++o) {
        memcpy(played->bytes[i].Add(inner), player.output(i) + static_cast<size_t>(o * player.pitch(i) + n) * inner,
               inner);
      }
    }
    played->frames[i] += frames;
  }
}

void Play(const rn_bundle* bundle, const Golden& golden, const int64_t* sizes, int count, Played* played) {
  Player player(bundle, RN_NONFINITE_ERROR);
  const void* pointers[kMostPorts] = {};
  Array<uint8_t> chunks[kMostPorts];
  for (int32_t i = 0; i < player.inputs(); ++i) {
    if (!rn_bundle_input(bundle, i)->per_tick) player.Set(i, golden.inputs[i].data);
  }
  int turn = 0;
  for (int64_t at = 0; at < golden.ticks;) {
    int64_t size = sizes[turn++ % count];
    if (size > golden.ticks - at) size = golden.ticks - at;
    for (int32_t i = 0; i < player.inputs(); ++i) {
      const rn_port& port = *rn_bundle_input(bundle, i);
      if (!port.per_tick) continue;
      const Layout layout(port);
      const int64_t total = port.axis < 0 ? golden.ticks * port.per_tick : golden.inputs[i].shape[port.axis];
      const int64_t frames = size * port.per_tick;
      const auto part = static_cast<size_t>(frames * layout.inner_bytes);
      chunks[i].size = 0;
      for (int64_t o = 0; o < layout.outer; ++o) {
        memcpy(chunks[i].Add(part), golden.inputs[i].data + (o * total + at * port.per_tick) * layout.inner_bytes,
               part);
      }
      pointers[i] = chunks[i].data;
    }
    player.Push(pointers, size);
    Take(player, played);
    at += size;
  }
  char message[256];
  if (!player.MayEnd(message, sizeof message)) Refuse("%s", message);
  player.Flush();
  Take(player, played);
  for (Array<uint8_t>& chunk : chunks) free(chunk.data);
}

double Float(const uint8_t* at, const rn_port& port) {
  float single;
  double wide;
  if (port.item_bytes == 8) return memcpy(&wide, at, 8), wide;
  if (port.item_bytes == 4) return memcpy(&single, at, 4), static_cast<double>(single);
  const unsigned bits = at[0] | static_cast<unsigned>(at[1]) << 8, exponent = bits >> 10 & 31, fraction = bits & 1023;
  const double value = exponent == 31
                           ? (fraction ? NAN : HUGE_VAL)
                           : ldexp(fraction + (exponent ? 1024 : 0), static_cast<int>(exponent ? exponent : 1) - 25);
  return bits >> 15 ? -value : value;
}

// How far apart floats are; float16 by what is beyond their last place.
double Apart(double x, double y, const rn_port& port) {
  if (x == y || (x != x && y != y)) return 0;
  const double difference = fabs(x - y), size = fmax(fabs(x), fabs(y));
  if (port.item_bytes != 2 || !std::isfinite(difference)) return difference;
  const int exponent = ilogb(size);
  return fmax(difference - ldexp(1, (exponent > -14 ? exponent : -14) - 10), 0);
}

// The largest difference, of the expected output's largest value; infinite for a wrong shape or a NaN. Codes of 8 bits
// deviate by 255ths, other integers by 0 or 1.
double Deviation(const rn_port& port, const Npy& expected, const Array<uint8_t>& got, int64_t frames) {
  const Layout layout(port);
  if (!FitsPort(expected, port)) return HUGE_VAL;
  const int64_t wanted = port.axis < 0 ? 1 : expected.shape[port.axis];
  if (got.size != static_cast<size_t>(wanted * layout.frame_bytes()) || (port.axis >= 0 && frames != wanted)) {
    return HUGE_VAL;
  }
  const bool is_float = strncmp(port.dtype, "float", 5) == 0;
  const bool is_code = strcmp(port.dtype, "int8") == 0 || strcmp(port.dtype, "uint8") == 0;
  double worst = 0, scale = 0;
  const int64_t item = port.item_bytes, inner = layout.inner_bytes / item;
  for (int64_t o = 0; o < layout.outer; ++o) {
    for (int64_t n = 0; n < wanted; ++n) {
      for (int64_t i = 0; i < inner; ++i) {
        const uint8_t* a = got.data + ((n * layout.outer + o) * inner + i) * item;
        const uint8_t* b = expected.data + ((o * wanted + n) * inner + i) * item;
        double difference = 0;
        if (is_float) {
          const double x = Float(a, port), y = Float(b, port);
          if (std::isfinite(y) && fabs(y) > scale) scale = fabs(y);
          difference = Apart(x, y, port);
          if (!std::isfinite(difference)) return HUGE_VAL;
        } else if (is_code) {
          const bool is_signed = port.dtype[0] == 'i';
          difference = is_signed ? abs(static_cast<int8_t>(*a) - static_cast<int8_t>(*b)) : abs(*a - *b);
        } else {
          difference = memcmp(a, b, static_cast<size_t>(item)) != 0;
        }
        if (difference > worst) worst = difference;
      }
    }
  }
  if (is_float) return worst / (scale > kSmallestRange ? scale : kSmallestRange);
  return is_code ? worst / kLargestCode : worst;
}

int64_t PrimeOver(int64_t hop) {
  for (const int64_t prime : {7, 13, 101, 499, 1009}) {
    if (prime > hop) return prime;
  }
  return 4999;
}

}  // namespace

int Verify(const Options& options) {
  rn_bundle* bundle = OpenBundle(options);
  char message[512];
  if (rn_bundle_verify(bundle, message, sizeof message) != RN_OK) Refuse("%s", message);
  Golden golden;
  {
    const Player player(bundle, RN_NONFINITE_ERROR);
    if (player.inputs() > kMostPorts || player.outputs() > kMostPorts) Refuse("the bundle has more than 64 ports.");
    ReadGolden(player, "input", player.inputs(), golden.inputs);
    ReadGolden(player, "output", player.outputs(), golden.outputs);
    for (int32_t i = 0; i < player.inputs(); ++i) {
      const rn_port& port = *rn_bundle_input(bundle, i);
      if (!FitsPort(golden.inputs[i], port)) Refuse("the golden input %d does not fit its port; compile again.", i);
      if (!port.per_tick) continue;
      const int64_t frames = port.axis < 0 ? golden.inputs[i].shape[0] : golden.inputs[i].shape[port.axis];
      if (frames / port.per_tick < golden.ticks) golden.ticks = frames / port.per_tick;
    }
  }
  const int64_t hop = rn_hop(rn_bundle_program(bundle));
  int64_t random[kRandomSizes], prime = PrimeOver(hop), whole = golden.ticks > 0 ? golden.ticks : 1, one = 1;
  uint64_t seed = 88172645463325252u;
  for (int64_t& size : random) {
    seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
    size = 1 + static_cast<int64_t>(seed % static_cast<uint64_t>(3 * hop > 3 ? 3 * hop - 1 : 2));
  }
  const struct {
    const char* name;
    const int64_t* sizes;
    int count;
  } kPlans[] = {
      {"prime", &prime, 1}, {"random", random, kRandomSizes}, {"whole", &whole, 1}, {"frame by frame", &one, 1}};
  const double tolerance = rn_bundle_facts(bundle)->tolerance;
  static Played first;
  bool good = true;
  if (options.json) printf("{\"results\": [");
  for (const auto& plan : kPlans) {
    if (plan.sizes == &one && golden.ticks > kFewFrames) continue;
    static Played played;
    for (int i = 0; i < kMostPorts; ++i) played.bytes[i].size = 0, played.frames[i] = 0;
    const bool is_first = &plan == kPlans;
    Played& mine = is_first ? first : played;
    Play(bundle, golden, plan.sizes, plan.count, &mine);
    double error = 0;
    bool same = true;
    for (int32_t i = 0; rn_bundle_output(bundle, i); ++i) {
      const double each = Deviation(*rn_bundle_output(bundle, i), golden.outputs[i], mine.bytes[i], mine.frames[i]);
      if (each > error) error = each;
      same &= mine.bytes[i].size == first.bytes[i].size &&
              (!mine.bytes[i].size || memcmp(mine.bytes[i].data, first.bytes[i].data, first.bytes[i].size) == 0);
    }
    const bool holds = same && error <= tolerance;
    good &= holds;
    if (options.json) {
      const bool finite = std::isfinite(error);
      printf("%s{\"chunking\": \"%s\", \"frames\": %lld, \"error\": ", is_first ? "" : ", ", plan.name,
             static_cast<long long>(golden.ticks));
      printf(finite ? "%.9g" : "null", error);
      printf(", \"tolerance\": %.9g, \"same_bits\": %s, \"ok\": %s}", tolerance, same ? "true" : "false",
             holds ? "true" : "false");
    } else {
      printf("%-15s same bits: %-4s error %.2e, allowed %.1e: %s\n", plan.name, same ? "yes" : "NO", error, tolerance,
             holds ? "holds" : "DOES NOT HOLD");
    }
  }
  if (options.json) {
    printf("], \"ok\": %s}\n", good ? "true" : "false");
  } else {
    printf(good ? "verified: the stream gives what the offline model gives\n" : "NOT verified\n");
  }
  rn_unload(bundle);
  return good ? 0 : 1;
}

}  // namespace runnel_run
