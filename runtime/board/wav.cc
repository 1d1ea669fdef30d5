// Follows "Multimedia Programming Interface and Data Specifications 1.0" (1991) and WAVEFORMATEXTENSIBLE.
#include "wav.h"

#include <cmath>
#include <cstring>

#include "say.h"

namespace runnel_run {
namespace {

constexpr int kPcm = 1, kFloat = 3, kExtensible = 0xfffe;
constexpr uint64_t kUnknownSize = 0xffffffff;  // of a writer that could not seek back: up to the end of the file
constexpr int64_t kHighestRate = 1000000;
constexpr uint8_t kGuidTail[14] = {0, 0, 0, 0, 0x10, 0, 0x80, 0, 0, 0xaa, 0, 0x38, 0x9b, 0x71};

uint64_t Number(const uint8_t* at, int bytes) {
  uint64_t value = 0;
  for (int i = bytes - 1; i >= 0; --i) value = value << 8 | at[i];
  return value;
}

void ReadFormat(const uint8_t* body, uint64_t bytes, const char* path, Wav* wav) {
  if (bytes < 16) {
    Refuse("'%s' is damaged: its format part has %llu bytes and at least 16 are needed.", path,
           static_cast<unsigned long long>(bytes));
  }
  auto tag = static_cast<int>(Number(body, 2));
  if (tag == kExtensible) {
    if (bytes < 40 || memcmp(body + 26, kGuidTail, sizeof kGuidTail) != 0) {
      Refuse("'%s' has an extensible format that is not known.", path);
    }
    tag = static_cast<int>(Number(body + 24, 2));
  }
  wav->channels = static_cast<int>(Number(body + 2, 2));
  wav->rate = static_cast<int64_t>(Number(body + 4, 4));
  wav->bits = static_cast<int>(Number(body + 14, 2));
  wav->is_float = tag == kFloat;
  const int block = static_cast<int>(Number(body + 12, 2)), bits = wav->bits;
  const bool known =
      tag == kPcm ? bits == 8 || bits == 16 || bits == 24 || bits == 32 : tag == kFloat && (bits == 32 || bits == 64);
  if (!known) {
    Refuse("'%s' holds samples of a kind that is not read (format tag %d, %d bits).", path, tag, bits);
  }
  if (wav->channels == 0 || wav->rate <= 0 || wav->rate > kHighestRate || block != wav->channels * bits / 8) {
    Refuse("'%s' is damaged: %d channels, %lld Hz and %d bytes a frame cannot be.", path, wav->channels,
           static_cast<long long>(wav->rate), block);
  }
}

}  // namespace

Wav ReadWav(const uint8_t* bytes, size_t size, const char* path) {
  if (size < 12 || memcmp(bytes, "RIFF", 4) != 0 || memcmp(bytes + 8, "WAVE", 4) != 0) {
    Refuse("'%s' is not a wav file: it does not begin with RIFF and WAVE.", path);
  }
  Wav wav;
  for (uint64_t at = 12; at + 8 <= size;) {
    const uint64_t length = Number(bytes + at + 4, 4), left = size - at - 8;
    const uint8_t* body = bytes + at + 8;
    if (memcmp(bytes + at, "data", 4) == 0) {
      if (!wav.channels) Refuse("'%s' has its data before its format.", path);
      if (length > left && length != kUnknownSize) {
        Refuse("'%s' is truncated: its header promises %llu bytes of samples and %llu are there.", path,
               static_cast<unsigned long long>(length), static_cast<unsigned long long>(left));
      }
      wav.data = body;
      wav.frames = (length < left ? length : left) / static_cast<uint64_t>(wav.channels * wav.bits / 8);
      return wav;
    }
    if (length > left) {
      Refuse("'%s' is truncated or damaged: a part of %llu bytes goes past the end of the file.", path,
             static_cast<unsigned long long>(length));
    }
    if (memcmp(bytes + at, "fmt ", 4) == 0) ReadFormat(body, length, path, &wav);
    at += 8 + length + length % 2;  // chunks begin at even offsets
  }
  Refuse("'%s' has no samples: the file ends before its data.", path);
}

float Wav::At(uint64_t frame, int channel) const {
  const auto bytes = static_cast<uint64_t>(bits / 8);
  const uint8_t* at = data + (frame * static_cast<uint64_t>(channels) + static_cast<uint64_t>(channel)) * bytes;
  if (is_float) {
    float single;
    double wide;
    if (bits == 32) return memcpy(&single, at, 4), single;
    return memcpy(&wide, at, 8), static_cast<float>(wide);
  }
  if (bits == 8) return (static_cast<float>(*at) - 128.0f) / 128.0f;
  // In the upper bytes of a word, so that the sign is in place.
  const auto word = static_cast<int32_t>(static_cast<uint32_t>(Number(at, bits / 8)) << (32 - bits));
  return static_cast<float>(static_cast<double>(word) / 2147483648.0);
}

void WriteWavHeader(int channels, int64_t rate, uint64_t data_bytes, uint8_t header[kWavHeader]) {
  auto put = [header](size_t at, uint64_t value, int bytes) {
    for (int i = 0; i < bytes; ++i) header[at + static_cast<size_t>(i)] = static_cast<uint8_t>(value >> (8 * i));
  };
  const auto block = static_cast<uint64_t>(channels) * 2;
  memcpy(header, "RIFF", 4);
  put(4, 36 + data_bytes + data_bytes % 2, 4);
  memcpy(header + 8, "WAVEfmt ", 8);
  put(16, 16, 4);
  put(20, kPcm, 2);
  put(22, static_cast<uint64_t>(channels), 2);
  put(24, static_cast<uint64_t>(rate), 4);
  put(28, static_cast<uint64_t>(rate) * block, 4);
  put(32, block, 2);
  put(34, 16, 2);
  memcpy(header + 36, "data", 4);
  put(40, data_bytes, 4);
}

int32_t ToCode(float sample, int bits, bool* clipped) {
  *clipped = sample > 1 || sample < -1;
  if (sample != sample) return 0;
  const double full = static_cast<double>(int64_t{1} << (bits - 1)), scaled = rint(static_cast<double>(sample) * full);
  return static_cast<int32_t>(scaled > full - 1 ? full - 1 : scaled < -full ? -full : scaled);
}

}  // namespace runnel_run
