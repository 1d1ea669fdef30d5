#include "sink.h"

#include <cmath>
#include <cstdio>
#include <new>

namespace runnel_run {
namespace {

double Float16(const uint8_t* at) {
  const unsigned bits = at[0] | static_cast<unsigned>(at[1]) << 8;
  const unsigned exponent = bits >> 10 & 31, fraction = bits & 1023;
  double value = exponent == 31 ? (fraction ? __builtin_nan("") : __builtin_inf())
                                : __builtin_ldexp(fraction + (exponent ? 1024 : 0),
                                                  static_cast<int>(exponent ? exponent : 1) - 25);
  return bits >> 15 ? -value : value;
}

// One number as text, so that it reads back the same. JSON has no NaN: null.
int Number(const rn_port& port, const uint8_t* at, bool json, char text[32]) {
  double value = 0;
  int digits = 17;
  if (strcmp(port.dtype, "float32") == 0) {
    float single;
    memcpy(&single, at, 4);
    value = static_cast<double>(single), digits = 9;
  } else if (strcmp(port.dtype, "float64") == 0) {
    memcpy(&value, at, 8);
  } else if (strcmp(port.dtype, "float16") == 0) {
    value = Float16(at), digits = 5;
  } else if (strcmp(port.dtype, "uint8") == 0 || strcmp(port.dtype, "bool") == 0) {
    return snprintf(text, 32, "%u", *at);
  } else {
    uint64_t bits = 0;
    memcpy(&bits, at, static_cast<size_t>(port.item_bytes));
    const int shift = 64 - 8 * port.item_bytes;
    return snprintf(text, 32, "%lld", static_cast<long long>(static_cast<int64_t>(bits << shift) >> shift));
  }
  if (json && !__builtin_isfinite(value)) return snprintf(text, 32, "null");
  return snprintf(text, 32, "%.*g", digits, value);
}

}  // namespace

Sink::Sink(const rn_port& port, int32_t output, const char* uri, int64_t rate, int64_t chunk)
    : port_(port), output_(output), layout_(port), place_(ReadPlace(uri)), rate_(rate) {
  frame_.Add(static_cast<size_t>(layout_.frame_bytes()));
  if (place_.scheme == Scheme::kWav) {
    if (rate <= 0) Refuse("the rate of the output is not known; give it with --rate, or write .npy or .raw.");
    Channels(port);
  }
  if (place_.scheme == Scheme::kPcm && Channels(port) != 1) {
    Refuse("output '%s' is not mono; write it to a file in .npy or .raw.", port.name);
  }
  if (standard() && (place_.scheme == Scheme::kWav || place_.scheme == Scheme::kNpy)) {
    Refuse("wav and npy are written to files; give raw:- or - for what goes on.");
  }
  if (place_.scheme == Scheme::kCamera) Refuse("'%s' is a camera; outputs go to files, alsa:CARD,DEVICE or -.", uri);
  if (place_.scheme == Scheme::kCard) {
    const int64_t own = port.rate > 0 ? llround(port.rate) : rate;
    if (own <= 0) Refuse("the rate of the output is not known; give it with --rate.");
    card_ = new (Allocate(sizeof(Card))) Card(place_.path, false);
    card_->Start(own, Channels(port), chunk);
    return;
  }
  file_.Open(place_.path);
  const char header[kNpyHeader] = {};
  if (place_.scheme == Scheme::kWav) file_.Write(header, kWavHeader);
  if (place_.scheme == Scheme::kNpy) file_.Write(header, kNpyHeader);
}

void Sink::Write(const uint8_t* data, int64_t frames, int64_t pitch, int64_t frame_bytes) {
  if (port_.axis < 0) {  // whole, at the end
    if (frames == 0) return;
    if (frames * frame_bytes != layout_.frame_bytes()) Fail("output '%s' has another size than its shape.", port_.name);
    frames = pitch = 1;
  }
  const auto inner = static_cast<size_t>(layout_.inner_bytes);
  for (int64_t n = 0; n < frames; ++n) {
    for (int64_t o = 0; o < layout_.outer; ++o) {
      memcpy(frame_.data + static_cast<size_t>(o) * inner, data + static_cast<size_t>(o * pitch + n) * inner, inner);
    }
    if (card_) {
      memcpy(kept_.Add(frame_.size), frame_.data, frame_.size);
    } else {
      WriteFrame(frame_.data);
    }
    ++frames_;
  }
  if (card_) {
    card_->Write(reinterpret_cast<const float*>(kept_.data), frames);
    kept_.size = 0;
  }
  if (frames && standard()) file_.Flush();
}

void Sink::WriteFrame(const uint8_t* frame) {
  const auto bytes = static_cast<size_t>(layout_.frame_bytes());
  const size_t elements = bytes / static_cast<size_t>(port_.item_bytes);
  char text[32];
  switch (place_.scheme) {
    case Scheme::kRaw:
      file_.Write(frame, bytes);
      return;
    case Scheme::kNpy:
      if (layout_.outer == 1) {
        file_.Write(frame, bytes);
      } else {
        memcpy(kept_.Add(bytes), frame, bytes);
      }
      return;
    case Scheme::kWav:
    case Scheme::kPcm:
      for (size_t i = 0; i < elements; ++i) {
        float value;
        bool clipped;
        memcpy(&value, frame + 4 * i, 4);
        const auto sample = static_cast<uint16_t>(ToCode(value, 16, &clipped));
        const uint8_t out[2] = {static_cast<uint8_t>(sample), static_cast<uint8_t>(sample >> 8)};
        file_.Write(out, 2);
        clipped_ += clipped;
      }
      return;
    case Scheme::kJson:
    case Scheme::kText:
    case Scheme::kCard:
    case Scheme::kCamera:
      break;
  }
  const bool json = place_.scheme == Scheme::kJson;
  if (json) {
    file_.Write("{\"output\": \"", 12);
    for (const char* c = port_.name; *c; ++c) {
      const auto byte = static_cast<unsigned char>(*c);
      const bool plain = byte >= 0x20 && byte != '"' && byte != '\\';
      if (plain) {
        file_.Write(c, 1);
      } else {
        file_.Write(text, static_cast<size_t>(snprintf(text, sizeof text, "\\u%04x", byte)));
      }
    }
    file_.Write(text, static_cast<size_t>(
                          snprintf(text, sizeof text, "\", \"frame\": %lld, ", static_cast<long long>(frames_))));
    file_.Write("\"values\": [", 11);
  }
  for (size_t i = 0; i < elements; ++i) {
    if (i) file_.Write(json ? ", " : " ", json ? 2 : 1);
    const auto n = static_cast<size_t>(Number(port_, frame + i * static_cast<size_t>(port_.item_bytes), json, text));
    file_.Write(text, n);
  }
  file_.Write(json ? "]}\n" : "\n", json ? 3 : 1);
}

void Sink::Finish() {
  if (place_.scheme == Scheme::kWav) {
    const auto bytes = static_cast<uint64_t>(frames_ * Channels(port_) * 2);
    if (bytes > 0xffffffffu - 64) Refuse("a wav file holds at most 4 GiB; write raw:PATH instead.");
    uint8_t header[kWavHeader];
    WriteWavHeader(Channels(port_), rate_, bytes, header);
    file_.WriteAt(0, header, sizeof header);
  } else if (place_.scheme == Scheme::kNpy) {
    const auto inner = static_cast<size_t>(layout_.inner_bytes);
    for (int64_t o = 0; o < layout_.outer && kept_.size; ++o) {
      for (int64_t n = 0; n < frames_; ++n) {
        file_.Write(kept_.data + static_cast<size_t>(n * layout_.outer + o) * inner, inner);
      }
    }
    char header[kNpyHeader];
    WriteNpyHeader(port_, frames_, header);
    file_.WriteAt(0, header, sizeof header);
  }
  if (card_) {
    card_->Finish();
    clipped_ = card_->clipped();
  } else {
    file_.Finish();
  }
  if (clipped_) {
    fprintf(stderr, "runnel-run: %lld output samples were beyond full scale and clipped.\n",
            static_cast<long long>(clipped_));
  }
}

}  // namespace runnel_run
