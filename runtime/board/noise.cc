#include "noise.h"

namespace runnel_run {
namespace {

// Noise between -1 and 1; integers are small.
void FillNoise(const rn_port& port, uint8_t* data, int64_t items) {
  uint64_t seed = 88172645463325252u;
  const bool is_float = strcmp(port.dtype, "float32") == 0;
  for (int64_t i = 0; i < items; ++i) {
    seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
    const float value = static_cast<float>(static_cast<int32_t>(seed >> 32)) / 2147483648.0f;
    if (is_float) {
      memcpy(data + 4 * i, &value, 4);
    } else if (strncmp(port.dtype, "float", 5) != 0) {
      data[i * port.item_bytes] = static_cast<uint8_t>(seed & 1);
    }
  }
}

}  // namespace

int64_t BenchChunk(const Options& options, const Player& player) {
  if (options.chunk && strcmp(options.chunk, "all") == 0) Refuse("--chunk takes a number of frames here.");
  const int64_t chunk = options.chunk ? static_cast<int64_t>(strtod(options.chunk, nullptr)) : rn_hop(player.program());
  const int64_t most = rn_bundle_facts(player.bundle())->max_frames;
  return most && chunk > most ? most : chunk;
}

Noise::Noise(Player* player, int64_t chunk) {
  if (player->inputs() > kMostPorts) Refuse("the bundle has more than %d inputs.", kMostPorts);
  for (int32_t i = 0; i < player->inputs(); ++i) {
    const rn_port& port = *rn_bundle_input(player->bundle(), i);
    const int64_t bytes = (port.per_tick ? chunk * port.per_tick : 1) * rn_input_frame_bytes(player->program(), i);
    auto* data = static_cast<uint8_t*>(Allocate(static_cast<size_t>(bytes)));
    FillNoise(port, data, bytes / port.item_bytes);
    pointers_[i] = data;
    if (!port.per_tick) player->Set(i, data);
  }
}

}  // namespace runnel_run
