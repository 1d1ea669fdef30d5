// RIFF WAVE files: PCM of 8, 16, 24 and 32 bits, float of 32 and 64, plain or WAVE_FORMAT_EXTENSIBLE.
#ifndef RUNNEL_BOARD_WAV_H_
#define RUNNEL_BOARD_WAV_H_

#include <cstddef>
#include <cstdint>

namespace runnel_run {

struct Wav {
  const uint8_t* data = nullptr;
  uint64_t frames = 0;
  int channels = 0, bits = 0;
  int64_t rate = 0;
  bool is_float = false;

  // Sample `channel` of a frame, full scale 1.
  float At(uint64_t frame, int channel) const;
};

// Finds the samples in a mapped file; exits with a sentence for what is not a whole wav file.
Wav ReadWav(const uint8_t* bytes, size_t size, const char* path);

constexpr size_t kWavHeader = 44;
// The bytes before samples of 16 bits.
void WriteWavHeader(int channels, int64_t rate, uint64_t data_bytes, uint8_t header[kWavHeader]);

// A sample of full scale 1 as an integer of 16, 24 or 32 bits; NaN is 0.
int32_t ToCode(float sample, int bits, bool* clipped);

}  // namespace runnel_run

#endif  // RUNNEL_BOARD_WAV_H_
