#include "source.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <new>

#include "realtime.h"

namespace runnel_run {

Place ReadPlace(const char* uri) {
  static const struct {
    const char* name;
    Scheme scheme;
  } kSchemes[] = {{"wav", Scheme::kWav},   {"npy", Scheme::kNpy},    {"raw", Scheme::kRaw},   {"pcm", Scheme::kPcm},
                  {"json", Scheme::kJson}, {"jsonl", Scheme::kJson}, {"text", Scheme::kText}, {"txt", Scheme::kText},
                  {"alsa", Scheme::kCard}, {"v4l2", Scheme::kCamera}};
  if (strcmp(uri, "-") == 0) return {Scheme::kPcm, "-"};
  const char* dot = strrchr(uri, '.');
  for (const auto& known : kSchemes) {
    const size_t n = strlen(known.name);
    if (strcmp(uri, known.name) == 0) return {known.scheme, "-"};
    if (strncmp(uri, known.name, n) == 0 && uri[n] == ':') return {known.scheme, uri + n + 1};
  }
  for (const auto& known : kSchemes) {
    if (dot && strcmp(dot + 1, known.name) == 0) return {known.scheme, uri};
  }
  Refuse(
      "'%s' is not known; give a file in .wav, .npy, .raw or .json, a scheme such as raw:PATH, alsa:0,0, or - for PCM "
      "s16le.",
      uri);
}

int Channels(const rn_port& port) {
  const Layout layout(port);
  const int64_t channels = layout.frame_bytes() / port.item_bytes;
  if (port.axis < 0 || strcmp(port.dtype, "float32") != 0 || channels > 8) {
    Refuse("'%s' is not sound (up to 8 float32 channels with time); use npy:PATH or raw:PATH for it.", port.name);
  }
  return static_cast<int>(channels);
}

Source::Source(const rn_port& port, const char* uri, double rate, const Options& options)
    : layout_(port),
      place_(ReadPlace(uri)),
      zero_(options.nonfinite == RN_NONFINITE_ZERO),
      rate_(llround(options.rate > 0 ? options.rate : rate)),
      offset_(options.pixel_offset),
      scale_(options.pixel_scale) {
  if (port.axis < 0) Refuse("input '%s' has no time axis; give it with --set.", port.name);
  const bool standard = strcmp(place_.path, "-") == 0;
  if (place_.scheme == Scheme::kWav || place_.scheme == Scheme::kNpy) {
    size_t bytes = 0;
    if (standard) Refuse("wav and npy are read from files; give raw:- or - for what comes live.");
    const uint8_t* data = MapWhole(place_.path, &bytes);
    if (place_.scheme == Scheme::kNpy) {
      if (const char* wrong = ReadNpy(data, bytes, &npy_)) Refuse("'%s' is not read: %s.", place_.path, wrong);
      if (!FitsPort(npy_, port)) {
        Refuse("'%s' has not the type and shape of input '%s' (%s, %d dimensions).", place_.path, port.name, port.dtype,
               port.dimensions);
      }
      total_ = npy_.shape[port.axis];
      return;
    }
    channels_ = Channels(port);
    wav_ = ReadWav(data, bytes, place_.path);
    total_ = static_cast<int64_t>(wav_.frames);
    if (rate > 0 && static_cast<int64_t>(llround(rate)) != wav_.rate) {
      Refuse("'%s' is at %lld Hz and the model takes %g Hz; resample it first.", place_.path,
             static_cast<long long>(wav_.rate), rate);
    }
    if (channels_ != wav_.channels && channels_ != 1) {
      Refuse("the model takes %d channels and '%s' has %d.", channels_, place_.path, wav_.channels);
    }
    return;
  }
  if (place_.scheme == Scheme::kCamera) {
    OpenCamera(port);
    return;
  }
  if (place_.scheme == Scheme::kCard) {
    channels_ = Channels(port);
    if (rate_ <= 0) Refuse("the rate of input '%s' is not known; give --rate.", port.name);
    card_ = new (Allocate(sizeof(Card))) Card(place_.path, true);
    return;
  }
  if (place_.scheme == Scheme::kPcm) {
    if (Channels(port) != 1) Refuse("'%s' is not mono; PCM s16le is.", port.name);
    layout_.inner_bytes = 2;
  } else if (place_.scheme != Scheme::kRaw) {
    Refuse("'%s' is no input format; use wav, npy, raw or -.", uri);
  }
  file_ = standard ? STDIN_FILENO : open(place_.path, O_RDONLY | O_CLOEXEC);
  if (file_ < 0) Refuse("'%s' cannot be read: %s.", place_.path, strerror(errno));
}

void Source::OpenCamera(const rn_port& port) {
  int64_t sizes[3] = {};
  int count = 0;
  for (int32_t i = 0; i < port.dimensions; ++i) {
    if (port.shape[i] < 0 || port.shape[i] == 1) continue;
    if (count < 3) sizes[count] = port.shape[i];
    ++count;
  }
  codes_ = strcmp(port.dtype, "uint8") == 0;
  planar_ = count == 3 && sizes[0] == 3;
  const bool known = count == 2 || planar_ || (count == 3 && sizes[2] == 3);
  if (!known || (!codes_ && strcmp(port.dtype, "float32") != 0)) {
    Refuse("'%s' is no picture (3 x height x width, height x width x 3 or height x width, of float32 or uint8).",
           port.name);
  }
  channels_ = count == 2 ? 1 : 3;
  height_ = static_cast<int>(sizes[planar_ ? 1 : 0]);
  width_ = static_cast<int>(sizes[planar_ ? 2 : 1]);
  camera_ = new (Allocate(sizeof(Camera))) Camera(place_.path);
}

void Source::Start(int64_t frames) {
  if (place_.scheme == Scheme::kWav || place_.scheme == Scheme::kNpy) return;
  frame_ = static_cast<uint8_t*>(Allocate(static_cast<size_t>(frames * layout_.frame_bytes())));
  if (card_) card_->Start(rate_, channels_, frames);
  if (camera_) {
    pixels_ = static_cast<uint8_t*>(Allocate(static_cast<size_t>(width_ * height_ * channels_)));
    camera_->Start(width_, height_, channels_);
  }
}

void Source::Finish() {
  if (card_) card_->Finish();
  if (camera_) camera_->Finish();
}

int64_t Source::Read(int64_t frames, uint8_t* into) {
  if (live()) {
    const int64_t got = card_ ? card_->Read(reinterpret_cast<float*>(frame_), frames) : ReadPictures(frames);
    Spread(got, into);
    return got;
  }
  if (place_.scheme != Scheme::kWav && place_.scheme != Scheme::kNpy) return ReadRawFrames(frames, into);
  if (Stopped()) return 0;
  if (frames > total_ - at_) frames = total_ - at_;
  return place_.scheme == Scheme::kWav ? ReadWavFrames(frames, into) : ReadNpyFrames(frames, into);
}

int64_t Source::ReadWavFrames(int64_t frames, uint8_t* into) {
  auto sample = [this](int64_t frame, int channel) {
    const float value = wav_.At(static_cast<uint64_t>(frame), channel);
    return zero_ && !std::isfinite(value) ? 0.0f : value;
  };
  for (int64_t n = 0; n < frames; ++n) {
    for (int c = 0; c < channels_; ++c) {
      float value = sample(at_ + n, c);
      if (channels_ != wav_.channels) {
        double sum = 0;
        for (int k = 0; k < wav_.channels; ++k) sum += static_cast<double>(sample(at_ + n, k));
        value = static_cast<float>(sum / wav_.channels);
      }
      const int64_t inner = layout_.inner_bytes / 4;
      memcpy(into + 4 * ((c / inner * frames + n) * inner + c % inner), &value, 4);
    }
  }
  at_ += frames;
  return frames;
}

int64_t Source::ReadNpyFrames(int64_t frames, uint8_t* into) {
  for (int64_t o = 0; o < layout_.outer; ++o) {
    memcpy(into + o * frames * layout_.inner_bytes, npy_.data + (o * total_ + at_) * layout_.inner_bytes,
           static_cast<size_t>(frames * layout_.inner_bytes));
  }
  at_ += frames;
  return frames;
}

size_t Source::ReadBytes(uint8_t* into, size_t bytes) {
  size_t have = 0;
  while (have < bytes && !Stopped()) {
    const ssize_t got = read(file_, into + have, bytes - have);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) Refuse("'%s' cannot be read: %s.", place_.path, strerror(errno));
    if (got == 0) break;
    have += static_cast<size_t>(got);
  }
  return have;
}

int64_t Source::ReadRawFrames(int64_t frames, uint8_t* into) {
  const auto frame_bytes = static_cast<size_t>(layout_.frame_bytes());
  const size_t bytes = ReadBytes(frame_, static_cast<size_t>(frames) * frame_bytes);
  const auto got = static_cast<int64_t>(bytes / frame_bytes);
  if (bytes % frame_bytes && !Stopped()) {
    fprintf(stderr, "runnel-run: '%s' ended inside a frame; its last %zu bytes were dropped.\n", place_.path,
            bytes % frame_bytes);
  }
  if (place_.scheme == Scheme::kPcm) {
    for (int64_t n = 0; n < got; ++n) {
      const auto sample = static_cast<int16_t>(frame_[2 * n] | frame_[2 * n + 1] << 8);
      const float value = static_cast<float>(sample) / 32768.0f;
      memcpy(into + 4 * n, &value, 4);
    }
    return got;
  }
  Spread(got, into);
  return got;
}

// From [frames, outer, inner] to [outer, frames, inner].
void Source::Spread(int64_t frames, uint8_t* into) const {
  const auto inner = static_cast<size_t>(layout_.inner_bytes);
  for (int64_t n = 0; n < frames; ++n) {
    for (int64_t o = 0; o < layout_.outer; ++o) {
      memcpy(into + static_cast<size_t>(o * frames + n) * inner,
             frame_ + static_cast<size_t>(n * layout_.outer + o) * inner, inner);
    }
  }
}

int64_t Source::ReadPictures(int64_t frames) {
  int64_t n = 0;
  for (; n < frames && camera_->Read(pixels_); ++n) TakePicture(pixels_, frame_ + n * layout_.frame_bytes());
  return n;
}

void Source::TakePicture(const uint8_t* pixels, uint8_t* frame) const {
  const int area = width_ * height_;
  for (int i = 0; i < area; ++i) {
    for (int c = 0; c < channels_; ++c) {
      const int at = planar_ ? c * area + i : i * channels_ + c;
      const uint8_t pixel = pixels[i * channels_ + c];
      const auto value = static_cast<float>((pixel - offset_) / scale_);
      if (codes_) {
        frame[at] = pixel;
      } else {
        memcpy(frame + 4 * at, &value, 4);
      }
    }
  }
}

void ReadStatic(const rn_port& port, const char* text, uint8_t* into) {
  const Layout layout(port);
  const size_t length = strlen(text);
  if (length > 4 && strcmp(text + length - 4, ".npy") == 0) {
    size_t bytes = 0;
    Npy npy;
    const uint8_t* data = MapWhole(text, &bytes);
    if (const char* wrong = ReadNpy(data, bytes, &npy)) Refuse("'%s' is not read: %s.", text, wrong);
    if (!FitsPort(npy, port)) Refuse("'%s' has not the type and shape of input '%s'.", text, port.name);
    memcpy(into, npy.data, static_cast<size_t>(layout.frame_bytes()));
    return;
  }
  char* end = nullptr;
  const double number = strtod(text, &end);
  if (end == text || *end || layout.frame_bytes() != port.item_bytes) {
    Refuse("--set %s needs a .npy file%s.", port.name, layout.frame_bytes() == port.item_bytes ? " or a number" : "");
  }
  const auto whole = static_cast<int64_t>(number);
  const auto single = static_cast<float>(number);
  if (strcmp(port.dtype, "float32") == 0) {
    memcpy(into, &single, 4);
  } else if (strcmp(port.dtype, "float64") == 0) {
    memcpy(into, &number, 8);
  } else if (strcmp(port.dtype, "float16") == 0) {
    Refuse("--set %s needs a .npy file.", port.name);
  } else {
    memcpy(into, &whole, static_cast<size_t>(port.item_bytes));
  }
}

}  // namespace runnel_run
