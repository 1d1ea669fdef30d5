// Where an output's frames go: wav of 16 bits, npy, raw numbers, PCM s16le, JSON lines or text.
#ifndef RUNNEL_BOARD_SINK_H_
#define RUNNEL_BOARD_SINK_H_

#include "source.h"

namespace runnel_run {

class Sink {
 public:
  // rate: of the frames, 0 where it is not known.
  // chunk: frames that are written at once, about.
  Sink(const rn_port& port, int32_t output, const char* uri, int64_t rate, int64_t chunk);

  int32_t output() const { return output_; }
  bool standard() const { return strcmp(place_.path, "-") == 0; }
  // Takes `frames` frames of [outer, pitch, inner].
  void Write(const uint8_t* data, int64_t frames, int64_t pitch, int64_t frame_bytes);
  // Finishes the file; says on stderr what was done to the samples.
  void Finish();
  // Underruns of a sound card.
  int64_t underruns() const { return card_ ? card_->broken() : 0; }

 private:
  void WriteFrame(const uint8_t* frame);

  const rn_port& port_;
  int32_t output_;
  Layout layout_;
  Place place_;
  int64_t rate_, frames_ = 0, clipped_ = 0;
  OutputFile file_;
  Card* card_ = nullptr;
  Array<uint8_t> kept_;   // of npy with outer parts: frame by frame
  Array<uint8_t> frame_;  // [outer, inner]
};

}  // namespace runnel_run

#endif  // RUNNEL_BOARD_SINK_H_
