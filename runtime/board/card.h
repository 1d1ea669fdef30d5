// A sound card by the kernel's PCM interface (/dev/snd/pcmC0D0c and the like), without a library.
#ifndef RUNNEL_BOARD_CARD_H_
#define RUNNEL_BOARD_CARD_H_

#include "wav.h"

namespace runnel_run {

class Card {
 public:
  // name: card and device, such as 1,0, or a device file. capture: it records; otherwise it plays.
  Card(const char* name, bool capture);

  // Sets the card up for samples of the model's rate and channels that go in `period` frames; exits where it cannot.
  // A card without mono has more channels, which are mixed, or all get the same.
  void Start(int64_t rate, int channels, int64_t period);
  // [frames, channels], full scale 1; how many frames came, fewer only where the program is asked to end.
  int64_t Read(float* samples, int64_t frames);
  void Write(const float* samples, int64_t frames);
  // Frames that wait to be read.
  int64_t Waiting() const;
  // Plays what is left, or stops recording.
  void Finish();
  // How often frames came too late: overruns of a recording, underruns of what is played.
  int64_t broken() const { return broken_; }
  int64_t clipped() const { return clipped_; }

 private:
  bool Control(unsigned long request, void* argument) const;
  void SetLimits();
  void Prepare();
  // That a transfer moved some of what it was asked to.
  void CheckTransfer(int64_t done, uint64_t wanted) const;
  // Gets going again after a transfer that failed; false where the program is asked to end.
  bool Recover();

  const char* name_;
  const char* path_;
  char own_path_[32] = "";
  bool capture_;
  int device_ = -1;
  Wav form_;  // how the card's samples lie in memory
  int channels_ = 0;
  int64_t period_ = 0, room_ = 0, broken_ = 0, clipped_ = 0;
  uint8_t* data_ = nullptr;
};

}  // namespace runnel_run

#endif  // RUNNEL_BOARD_CARD_H_
