// Where an input's frames come from: wav, npy, raw numbers of the port's own type, or PCM s16le.
#ifndef RUNNEL_BOARD_SOURCE_H_
#define RUNNEL_BOARD_SOURCE_H_

#include "camera.h"
#include "card.h"
#include "npy.h"
#include "options.h"
#include "player.h"
#include "wav.h"

namespace runnel_run {

// A place by its scheme: wav:PATH, npy:PATH, raw:PATH, json:PATH, text:PATH, or a path that ends so; alsa:CARD,DEVICE
// is a sound card, v4l2:PATH a camera, - PCM s16le.
enum class Scheme { kWav, kNpy, kRaw, kPcm, kJson, kText, kCard, kCamera };
struct Place {
  Scheme scheme;
  const char* path;  // - for standard input or output
};
Place ReadPlace(const char* uri);

// Channels of sound in a frame of a port; exits where it is not sound.
int Channels(const rn_port& port);

class Source {
 public:
  // rate: of the model, 0 where it has none.
  Source(const rn_port& port, const char* uri, double rate, const Options& options);

  // To be called before frames are read, up to `frames` at once: what is live begins.
  void Start(int64_t frames);
  void Finish();

  // Up to `frames` frames as [outer, frames read, inner]; how many were read. 0 is the end.
  int64_t Read(int64_t frames, uint8_t* into);
  // Frames in all; 0 for what comes live.
  int64_t total() const { return total_; }
  // Of what comes in; 0 where it does not say.
  int64_t rate() const { return live() ? rate_ : wav_.rate; }
  // Whether frames come at a pace of their own.
  bool live() const { return card_ || camera_; }
  // Frames that have come and were not read yet, of a sound card.
  int64_t waiting() const { return card_ ? card_->Waiting() : 0; }
  // Overruns of a sound card, frames that a camera lost.
  int64_t overruns() const { return card_ ? card_->broken() : 0; }
  int64_t lost() const { return camera_ ? camera_->lost() : 0; }

 private:
  int64_t ReadWavFrames(int64_t frames, uint8_t* into);
  int64_t ReadNpyFrames(int64_t frames, uint8_t* into);
  int64_t ReadRawFrames(int64_t frames, uint8_t* into);
  size_t ReadBytes(uint8_t* into, size_t bytes);
  int64_t ReadPictures(int64_t frames);
  void Spread(int64_t frames, uint8_t* into) const;
  void TakePicture(const uint8_t* pixels, uint8_t* frame) const;
  void OpenCamera(const rn_port& port);

  Layout layout_;
  Place place_;
  bool zero_;
  Wav wav_;
  Npy npy_;
  int64_t at_ = 0, total_ = 0;
  int channels_ = 0, file_ = -1;
  uint8_t* frame_ = nullptr;  // [frames, outer, inner]
  Card* card_ = nullptr;
  Camera* camera_ = nullptr;
  int64_t rate_ = 0;
  int width_ = 0, height_ = 0;
  bool planar_ = false, codes_ = false;
  double offset_ = 0, scale_ = 1;
  uint8_t* pixels_ = nullptr;
};

// The value of a static input: a number, or a .npy file.
void ReadStatic(const rn_port& port, const char* text, uint8_t* into);

}  // namespace runnel_run

#endif  // RUNNEL_BOARD_SOURCE_H_
