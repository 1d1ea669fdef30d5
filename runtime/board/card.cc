// Follows include/uapi/sound/asound.h of Linux, protocol 2.
#include "card.h"

#include <errno.h>
#include <sound/asound.h>
#include <sys/ioctl.h>

#include <climits>
#include <cmath>
#include <cstdio>
#include <cstring>

#include "device.h"
#include "realtime.h"
#include "say.h"

namespace runnel_run {
namespace {

constexpr int kMostChannels = 8, kMostResumes = 100;
constexpr unsigned kPeriods = 4;              // in the card's memory
constexpr int64_t kPause = 10 * 1000 * 1000;  // ns, while a card wakes up

struct Format {
  int number, bits;
  bool is_float;
};
constexpr Format kFormats[] = {{2 /* S16_LE */, 16, false},
                               {10 /* S32_LE */, 32, false},
                               {32 /* S24_3LE */, 24, false},
                               {14 /* FLOAT_LE */, 32, true}};

snd_interval& Interval(snd_pcm_hw_params* params, int which) {
  return params->intervals[which - SNDRV_PCM_HW_PARAM_FIRST_INTERVAL];
}
snd_mask& Mask(snd_pcm_hw_params* params, int which) { return params->masks[which - SNDRV_PCM_HW_PARAM_FIRST_MASK]; }

snd_pcm_hw_params Anything() {
  snd_pcm_hw_params params = {};
  for (int i = SNDRV_PCM_HW_PARAM_FIRST_MASK; i <= SNDRV_PCM_HW_PARAM_LAST_MASK; ++i) {
    memset(&Mask(&params, i), 0xff, sizeof(snd_mask));
  }
  for (int i = SNDRV_PCM_HW_PARAM_FIRST_INTERVAL; i <= SNDRV_PCM_HW_PARAM_LAST_INTERVAL; ++i) {
    Interval(&params, i).max = UINT_MAX;
  }
  params.rmask = ~0u;
  params.info = ~0u;
  return params;
}

// What a card can do, narrowed choice by choice.
class Choices {
 public:
  explicit Choices(int device) : device_(device), params_(Anything()) {}

  bool Refine(snd_pcm_hw_params* params) const {
    params->rmask = ~0u;
    return ControlDevice(device_, SNDRV_PCM_IOCTL_HW_REFINE, params) == 0;
  }
  bool Any() { return Refine(&params_); }
  bool Choose(int which, unsigned value) {
    snd_pcm_hw_params tried = params_;
    snd_mask& mask = Mask(&tried, which);
    memset(&mask, 0, sizeof mask);
    mask.bits[value / 32] = 1u << value % 32;
    return Take(tried);
  }
  bool Limit(int which, unsigned least, unsigned most) {
    snd_pcm_hw_params tried = params_;
    snd_interval& interval = Interval(&tried, which);
    interval.min = least;
    interval.max = most;
    interval.integer = 1;
    interval.openmin = interval.openmax = 0;
    return Take(tried);
  }
  unsigned least(int which) { return Interval(&params_, which).min; }
  unsigned most(int which) { return Interval(&params_, which).max; }
  snd_pcm_hw_params* params() { return &params_; }

 private:
  bool Take(snd_pcm_hw_params tried) {
    if (!Refine(&tried)) return false;
    params_ = tried;
    return true;
  }

  int device_;
  snd_pcm_hw_params params_;
};

}  // namespace

Card::Card(const char* name, bool capture) : name_(name), path_(name), capture_(capture) {
  if (!strchr(name, '/')) {
    unsigned card = 0, device = 0;
    char more = 0;
    if (sscanf(name, "%u,%u%c", &card, &device, &more) != 2 || card > 255 || device > 255) {
      Refuse("'alsa:%s' names no sound card; give card and device, such as alsa:0,0 (see /proc/asound/pcm).", name);
    }
    snprintf(own_path_, sizeof own_path_, "/dev/snd/pcmC%uD%u%c", card, device, capture ? 'c' : 'p');
    path_ = own_path_;
  }
  device_ = OpenDevice(path_);
  if (device_ < 0 && errno == EBUSY) Refuse("the sound card '%s' is in use by another program; end that.", name);
  if (device_ < 0) Refuse("the sound card '%s' cannot be opened: %s.", path_, strerror(errno));
}

bool Card::Control(unsigned long request, void* argument) const {
  return ControlDevice(device_, request, argument) == 0;
}

void Card::Start(int64_t rate, int channels, int64_t period) {
  int version = 0;
  Choices choices(device_);
  if (!Control(SNDRV_PCM_IOCTL_PVERSION, &version) || SNDRV_PROTOCOL_MAJOR(version) != 2 || !choices.Any()) {
    Refuse("'%s' is no sound card that is understood; give one of /proc/asound/pcm.", path_);
  }
  if (!choices.Choose(SNDRV_PCM_HW_PARAM_ACCESS, 3 /* RW_INTERLEAVED */)) {
    Refuse("the sound card '%s' takes no interleaved samples; use another one.", name_);
  }
  if (!choices.Limit(SNDRV_PCM_HW_PARAM_RATE, static_cast<unsigned>(rate), static_cast<unsigned>(rate))) {
    Refuse("the sound card '%s' does not go at %lld Hz but at %u to %u; use another card, or resample.", name_,
           static_cast<long long>(rate), choices.least(SNDRV_PCM_HW_PARAM_RATE), choices.most(SNDRV_PCM_HW_PARAM_RATE));
  }
  channels_ = channels;
  unsigned own = static_cast<unsigned>(channels);
  if (!choices.Limit(SNDRV_PCM_HW_PARAM_CHANNELS, own, own)) {
    own = choices.least(SNDRV_PCM_HW_PARAM_CHANNELS);
    if (channels != 1 || own > kMostChannels || !choices.Limit(SNDRV_PCM_HW_PARAM_CHANNELS, own, own)) {
      Refuse("the sound card '%s' has %u to %u channels and the model takes %d.", name_,
             choices.least(SNDRV_PCM_HW_PARAM_CHANNELS), choices.most(SNDRV_PCM_HW_PARAM_CHANNELS), channels);
    }
  }
  const Format* format = nullptr;
  for (const Format& each : kFormats) {
    if (!format && choices.Choose(SNDRV_PCM_HW_PARAM_FORMAT, static_cast<unsigned>(each.number))) format = &each;
  }
  if (!format) Refuse("the sound card '%s' has samples of no kind that is understood (16, 24, 32 bits, float).", name_);
  form_.channels = static_cast<int>(own);
  form_.bits = format->bits;
  form_.is_float = format->is_float;
  form_.rate = rate;
  // Where the card does not take these sizes it chooses its own.
  const auto wanted = static_cast<unsigned>(period < (1 << 20) ? period : 1 << 20);
  choices.Limit(SNDRV_PCM_HW_PARAM_PERIOD_SIZE, wanted, wanted);
  choices.Limit(SNDRV_PCM_HW_PARAM_BUFFER_SIZE, kPeriods * wanted, 2 * kPeriods * wanted);
  if (!Control(SNDRV_PCM_IOCTL_HW_PARAMS, choices.params())) {
    Refuse("the sound card '%s' cannot be set up: %s.", name_, strerror(errno));
  }
  period_ = choices.least(SNDRV_PCM_HW_PARAM_PERIOD_SIZE);
  room_ = choices.least(SNDRV_PCM_HW_PARAM_BUFFER_SIZE);
  if (period_ <= 0 || room_ < period_) Refuse("the sound card '%s' says that it has no memory.", name_);
  SetLimits();
  data_ = static_cast<uint8_t*>(Allocate(static_cast<size_t>(period * form_.channels * form_.bits / 8)));
  form_.data = data_;
  form_.frames = static_cast<uint64_t>(period);
  Prepare();
}

void Card::SetLimits() {
  snd_pcm_sw_params limits = {};
  const auto room = static_cast<snd_pcm_uframes_t>(room_), period = static_cast<snd_pcm_uframes_t>(period_);
  limits.period_step = 1;
  limits.avail_min = period;
  // A recording starts with the first read, playing when two periods are there.
  limits.start_threshold = capture_ ? 1 : 2 * period < room ? 2 * period : room;
  limits.stop_threshold = room;
  limits.boundary = room;
  while (limits.boundary * 2 <= static_cast<snd_pcm_uframes_t>(LONG_MAX) - room) limits.boundary *= 2;
  if (!Control(SNDRV_PCM_IOCTL_SW_PARAMS, &limits)) {
    Refuse("the sound card '%s' cannot be set up: %s.", name_, strerror(errno));
  }
}

void Card::Prepare() {
  if (!Control(SNDRV_PCM_IOCTL_PREPARE, nullptr)) {
    Refuse("the sound card '%s' cannot be started: %s.", name_, strerror(errno));
  }
}

bool Card::Recover() {
  if (errno == EINTR || errno == EAGAIN) return !Stopped();
  if (errno == ESTRPIPE) {  // the machine slept
    int turns = 0;
    while (!Control(SNDRV_PCM_IOCTL_RESUME, nullptr) && errno == EAGAIN && turns++ < kMostResumes && !Stopped()) {
      SleepUntil(Now() + kPause);
    }
  } else if (errno != EPIPE) {
    Refuse("the sound card '%s' is gone: %s.", name_, strerror(errno));
  }
  ++broken_;
  Prepare();
  return !Stopped();
}

void Card::CheckTransfer(int64_t done, uint64_t wanted) const {
  if (done > 0 && static_cast<uint64_t>(done) <= wanted) return;
  Refuse("the sound card '%s' says that it moved %lld frames of %llu; use another one.", name_,
         static_cast<long long>(done), static_cast<unsigned long long>(wanted));
}

int64_t Card::Read(float* samples, int64_t frames) {
  int64_t done = 0;
  while (done < frames && !Stopped()) {
    const int64_t left = frames - done, most = static_cast<int64_t>(form_.frames);
    snd_xferi transfer = {0, data_, static_cast<snd_pcm_uframes_t>(left < most ? left : most)};
    if (!Control(SNDRV_PCM_IOCTL_READI_FRAMES, &transfer)) {
      if (!Recover()) break;
      continue;
    }
    CheckTransfer(transfer.result, transfer.frames);
    for (int64_t n = 0; n < transfer.result; ++n, ++done) {
      for (int c = 0; c < channels_; ++c) {
        float value = form_.At(static_cast<uint64_t>(n), c);
        for (int k = 1; channels_ == 1 && k < form_.channels; ++k) value += form_.At(static_cast<uint64_t>(n), k);
        samples[done * channels_ + c] = channels_ == 1 ? value / static_cast<float>(form_.channels) : value;
      }
    }
  }
  return done;
}

void Card::Write(const float* samples, int64_t frames) {
  const int64_t bytes = form_.bits / 8, frame_bytes = bytes * form_.channels;
  for (int64_t done = 0; done < frames;) {
    int64_t count = frames - done;
    if (count > static_cast<int64_t>(form_.frames)) count = static_cast<int64_t>(form_.frames);
    uint8_t* at = data_;
    for (int64_t n = 0; n < count; ++n) {
      for (int c = 0; c < form_.channels; ++c, at += bytes) {
        const float value = samples[(done + n) * channels_ + (channels_ == 1 ? 0 : c)];
        bool over = false;
        const int32_t code = ToCode(value, form_.bits, &over);
        clipped_ += over;
        memcpy(at, form_.is_float ? static_cast<const void*>(&value) : &code, static_cast<size_t>(bytes));
      }
    }
    for (int64_t sent = 0; sent < count;) {
      snd_xferi transfer = {0, data_ + sent * frame_bytes, static_cast<snd_pcm_uframes_t>(count - sent)};
      if (Control(SNDRV_PCM_IOCTL_WRITEI_FRAMES, &transfer)) {
        CheckTransfer(transfer.result, transfer.frames);
        sent += transfer.result;
      } else if (!Recover()) {
        return;
      }
    }
    done += count;
  }
}

int64_t Card::Waiting() const {
  snd_pcm_sframes_t frames = 0;
  return Control(SNDRV_PCM_IOCTL_DELAY, &frames) && frames > 0 ? frames : 0;
}

void Card::Finish() {
  if (device_ < 0) return;
  Control(capture_ ? SNDRV_PCM_IOCTL_DROP : SNDRV_PCM_IOCTL_DRAIN, nullptr);
  CloseDevice(device_);
  device_ = -1;
}

}  // namespace runnel_run
