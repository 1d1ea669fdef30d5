// Where an input's frames come from: wav, npy, raw numbers of the port's own type, or PCM s16le.
#ifndef RUNNEL_BOARD_SOURCE_H_
#define RUNNEL_BOARD_SOURCE_H_

#include "npy.h"
#include "player.h"
#include "wav.h"

namespace runnel_run {

// A place by its scheme: wav:PATH, npy:PATH, raw:PATH, json:PATH, text:PATH, or a path that ends so; - is PCM s16le.
enum class Scheme { kWav, kNpy, kRaw, kPcm, kJson, kText };
struct Place {
  Scheme scheme;
  const char* path;  // - for standard input or output
};
Place ReadPlace(const char* uri);

// Channels of sound in a frame of a port; exits where it is not sound.
int Channels(const rn_port& port);

class Source {
 public:
  // rate: of the model, 0 where it has none; zero: NaN and infinity are silence.
  Source(const rn_port& port, const char* uri, double rate, bool zero);

  // Up to `frames` frames as [outer, frames read, inner]; how many were read. 0 is the end.
  int64_t Read(int64_t frames, uint8_t* into);
  // Frames in all; 0 for what comes live.
  int64_t total() const { return total_; }
  // Of what comes in; 0 where it does not say.
  int64_t rate() const { return wav_.rate; }

 private:
  int64_t ReadWavFrames(int64_t frames, uint8_t* into);
  int64_t ReadNpyFrames(int64_t frames, uint8_t* into);
  int64_t ReadRawFrames(int64_t frames, uint8_t* into);
  size_t ReadBytes(uint8_t* into, size_t bytes);

  Layout layout_;
  Place place_;
  bool zero_;
  Wav wav_;
  Npy npy_;
  int64_t at_ = 0, total_ = 0;
  int channels_ = 0, file_ = -1;
  uint8_t* frame_ = nullptr;
};

// The value of a static input: a number, or a .npy file.
void ReadStatic(const rn_port& port, const char* text, uint8_t* into);

}  // namespace runnel_run

#endif  // RUNNEL_BOARD_SOURCE_H_
