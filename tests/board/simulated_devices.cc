// A sound card and a camera that are files of text, in place of runtime/board/device.cc. The file says what the device
// can do and when it fails, one word and numbers or a path a line; what is done to it is written to FILE.log.
#include <errno.h>
#include <linux/videodev2.h>
#include <signal.h>
#include <sound/asound.h>
#include <sys/ioctl.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

#include "device.h"

namespace {

constexpr int kMost = 64, kBuffers = 3;

struct Script {
  char path[512], data[512];
  unsigned rates[2] = {8000, 48000}, channels[2] = {1, 2}, formats[kMost] = {}, periods[2] = {16, 1 << 16};
  int format_count = 0;
  int64_t broken[kMost] = {};  // frames after which a transfer fails once
  int broken_count = 0;
  int error = EPIPE;       // with which
  int64_t most = 1 << 30;  // frames of a transfer
  bool loops = false;      // at the end of the data a signal comes; else the device is gone
  int64_t waits = 0;       // frames that wait
  int64_t lies = 0;        // added to how many frames it says that it moved
  unsigned fourcc[kMost] = {};
  int fourcc_count = 0;
  unsigned width = 0, height = 0, padding = 0;
  int64_t skipped = -1, damaged = -1;  // a frame that the driver lost, and one that it marks
};

Script script;
FILE *log_file, *data_file;
enum { kClosed, kOpen, kSetUp, kPrepared, kRunning, kBroken } state = kClosed;
snd_pcm_hw_params chosen;
int64_t at = 0, start_threshold = 0, written = 0;
unsigned char* shared[kBuffers];
size_t shared_bytes;
int queued[kBuffers], queue_size;
unsigned pixel_format;
int64_t picture = 0;

int Fail(int error) { return errno = error, -1; }

snd_interval& Interval(snd_pcm_hw_params* p, int which) {
  return p->intervals[which - SNDRV_PCM_HW_PARAM_FIRST_INTERVAL];
}

bool Narrow(snd_pcm_hw_params* p, int which, unsigned least, unsigned most) {
  snd_interval& interval = Interval(p, which);
  if (interval.min < least) interval.min = least;
  if (interval.max > most) interval.max = most;
  return interval.min <= interval.max;
}

int Refine(snd_pcm_hw_params* p) {
  if (!(p->masks[SNDRV_PCM_HW_PARAM_ACCESS].bits[0] & 1u << 3)) return Fail(EINVAL);
  p->masks[SNDRV_PCM_HW_PARAM_ACCESS].bits[0] = 1u << 3;
  snd_mask own = {};
  for (int i = 0; i < script.format_count; ++i) own.bits[script.formats[i] / 32] |= 1u << script.formats[i] % 32;
  unsigned any = 0;
  for (int i = 0; i < 2; ++i) any |= p->masks[SNDRV_PCM_HW_PARAM_FORMAT].bits[i] &= own.bits[i];
  const bool fine = any && Narrow(p, SNDRV_PCM_HW_PARAM_CHANNELS, script.channels[0], script.channels[1]) &&
                    Narrow(p, SNDRV_PCM_HW_PARAM_RATE, script.rates[0], script.rates[1]) &&
                    Narrow(p, SNDRV_PCM_HW_PARAM_PERIOD_SIZE, script.periods[0], script.periods[1]) &&
                    Narrow(p, SNDRV_PCM_HW_PARAM_BUFFER_SIZE, 2 * Interval(p, SNDRV_PCM_HW_PARAM_PERIOD_SIZE).min,
                           4 * script.periods[1]);
  return fine ? 0 : Fail(EINVAL);
}

int FrameBytes() {
  const unsigned formats = chosen.masks[SNDRV_PCM_HW_PARAM_FORMAT].bits[0];
  const int bytes = formats & 1u << 2 ? 2 : formats & 1u << 10 || formats & 1u << 14 ? 4 : 3;
  return bytes * static_cast<int>(Interval(&chosen, SNDRV_PCM_HW_PARAM_CHANNELS).min);
}

int SetUp(snd_pcm_hw_params* p) {
  if (Refine(p)) return -1;
  for (int which : {SNDRV_PCM_HW_PARAM_CHANNELS, SNDRV_PCM_HW_PARAM_RATE, SNDRV_PCM_HW_PARAM_PERIOD_SIZE}) {
    Interval(p, which).max = Interval(p, which).min;
  }
  Interval(p, SNDRV_PCM_HW_PARAM_BUFFER_SIZE).min = Interval(p, SNDRV_PCM_HW_PARAM_BUFFER_SIZE).max;
  chosen = *p;
  state = kSetUp;
  fprintf(log_file, "setup rate %u channels %u frame %d period %u\n", Interval(p, SNDRV_PCM_HW_PARAM_RATE).min,
          Interval(p, SNDRV_PCM_HW_PARAM_CHANNELS).min, FrameBytes(), Interval(p, SNDRV_PCM_HW_PARAM_PERIOD_SIZE).min);
  return 0;
}

int SetLimits(const snd_pcm_sw_params* p) {
  const unsigned long room = Interval(&chosen, SNDRV_PCM_HW_PARAM_BUFFER_SIZE).min;
  if (state != kSetUp || p->boundary < room || p->boundary % room || p->avail_min == 0 || p->stop_threshold != room) {
    return Fail(EINVAL);
  }
  start_threshold = static_cast<int64_t>(p->start_threshold);
  return 0;
}

// Whether a transfer fails here; then the card has to be prepared again.
bool Breaks() {
  for (int i = 0; i < script.broken_count; ++i) {
    if (script.broken[i] < 0 || at < script.broken[i]) continue;
    script.broken[i] = -1;
    if (script.error != EINTR) state = kBroken;
    errno = script.error;
    return true;
  }
  return false;
}

int Transfer(snd_xferi* transfer, bool capture) {
  if (state == kBroken) return Fail(EPIPE);
  if (state != kPrepared && state != kRunning) return Fail(EBADFD);
  if (Breaks()) return -1;
  const auto wanted = static_cast<int64_t>(transfer->frames);
  int64_t frames = wanted < script.most ? wanted : script.most;
  const auto bytes = static_cast<size_t>(FrameBytes());
  if (capture) {
    frames = static_cast<int64_t>(fread(transfer->buf, bytes, static_cast<size_t>(frames), data_file));
    if (frames == 0) {
      if (!script.loops) return Fail(ENODEV);
      raise(SIGTERM);
      return Fail(EINTR);
    }
    state = kRunning;
  } else {
    fwrite(transfer->buf, bytes, static_cast<size_t>(frames), data_file);
    written += frames;
    if (state == kPrepared && written >= start_threshold) {
      state = kRunning;
      fprintf(log_file, "started at %lld\n", static_cast<long long>(written));
    }
  }
  at += frames;
  transfer->result = frames + script.lies;
  return 0;
}

int DequeuePicture(v4l2_buffer* buffer) {
  if (!queue_size) return Fail(EINVAL);
  const int index = queued[0];
  const size_t bytes = (script.width * (pixel_format == V4L2_PIX_FMT_GREY   ? 1u
                                        : pixel_format == V4L2_PIX_FMT_YUYV ? 2u
                                                                            : 3u) +
                        script.padding) *
                       script.height;
  if (fread(shared[index], 1, bytes, data_file) != bytes) {
    if (!script.loops) return Fail(ENODEV);
    raise(SIGTERM);
    return Fail(EINTR);
  }
  --queue_size;
  memmove(queued, queued + 1, sizeof(int) * static_cast<size_t>(queue_size));
  if (picture == script.skipped) ++picture;
  buffer->index = static_cast<unsigned>(index);
  buffer->sequence = static_cast<unsigned>(picture);
  buffer->bytesused = static_cast<unsigned>(bytes);
  buffer->flags = picture == script.damaged ? V4L2_BUF_FLAG_ERROR : 0;
  ++picture;
  return 0;
}

int SetFormat(v4l2_format* format) {
  v4l2_pix_format& pixels = format->fmt.pix;
  unsigned given = script.fourcc[0];
  for (int i = 0; i < script.fourcc_count; ++i) {
    if (script.fourcc[i] == pixels.pixelformat) given = pixels.pixelformat;
  }
  pixels.pixelformat = pixel_format = given;
  pixels.width = script.width;
  pixels.height = script.height;
  const unsigned each = given == V4L2_PIX_FMT_GREY ? 1 : given == V4L2_PIX_FMT_YUYV ? 2 : 3;
  pixels.bytesperline = script.width * each + script.padding;
  shared_bytes = pixels.bytesperline * script.height;
  return 0;
}

void ReadScript(const char* path) {
  FILE* file = fopen(path, "r");
  char line[600], word[64];
  while (file && fgets(line, sizeof line, file)) {
    int used = 0;
    if (sscanf(line, "%63s%n", word, &used) != 1) continue;
    char* rest = line + used;
    auto numbers = [&rest](auto* list, int most) {
      int n = 0;
      for (char* end = nullptr; n < most; rest = end, ++n) {
        const long long value = strtoll(rest, &end, 0);
        if (end == rest) break;
        list[n] = static_cast<decltype(*list + 0)>(value);
      }
      return n;
    };
    auto is = [&word](const char* name) { return strcmp(word, name) == 0; };
    if (is("rates")) numbers(script.rates, 2);
    if (is("channels")) numbers(script.channels, 2);
    if (is("periods")) numbers(script.periods, 2);
    if (is("formats")) script.format_count = numbers(script.formats, kMost);
    if (is("breaks")) script.broken_count = numbers(script.broken, kMost);
    if (is("error")) numbers(&script.error, 1);
    if (is("most")) numbers(&script.most, 1);
    if (is("lies")) numbers(&script.lies, 1);
    if (is("waits")) numbers(&script.waits, 1);
    if (is("ends")) script.loops = true;
    if (is("data")) sscanf(rest, "%511s", script.data);
    if (is("size")) numbers(&script.width, 1), numbers(&script.height, 1), numbers(&script.padding, 1);
    if (is("skips")) numbers(&script.skipped, 1);
    if (is("damages")) numbers(&script.damaged, 1);
    if (is("pixels")) {
      for (char code[8]; sscanf(rest, "%7s%n", code, &used) == 1; rest += used) {
        script.fourcc[script.fourcc_count++] = v4l2_fourcc(code[0], code[1], code[2], code[3]);
      }
    }
  }
  if (file) fclose(file);
}

}  // namespace

namespace runnel_run {

int OpenDevice(const char* path) {
  FILE* file = fopen(path, "r");
  if (!file) return -1;
  fclose(file);
  ReadScript(path);
  snprintf(script.path, sizeof script.path, "%s.log", path);
  log_file = fopen(script.path, "w");
  setbuf(log_file, nullptr);
  data_file = fopen(script.data, script.fourcc_count || script.loops || strstr(script.data, ".in") ? "rb" : "wb");
  state = kOpen;
  return data_file ? 100 : Fail(EBUSY);
}

int ControlDevice(int, unsigned long request, void* argument) {
  switch (request) {
    case SNDRV_PCM_IOCTL_PVERSION:
      *static_cast<int*>(argument) = 2 << 16;
      return script.format_count ? 0 : Fail(ENOTTY);
    case SNDRV_PCM_IOCTL_HW_REFINE:
      return Refine(static_cast<snd_pcm_hw_params*>(argument));
    case SNDRV_PCM_IOCTL_HW_PARAMS:
      return SetUp(static_cast<snd_pcm_hw_params*>(argument));
    case SNDRV_PCM_IOCTL_SW_PARAMS:
      return SetLimits(static_cast<snd_pcm_sw_params*>(argument));
    case SNDRV_PCM_IOCTL_PREPARE:
      if (state == kOpen) return Fail(EBADFD);
      state = kPrepared;
      written = 0;
      fprintf(log_file, "prepared\n");
      return 0;
    case SNDRV_PCM_IOCTL_READI_FRAMES:
      return Transfer(static_cast<snd_xferi*>(argument), true);
    case SNDRV_PCM_IOCTL_WRITEI_FRAMES:
      return Transfer(static_cast<snd_xferi*>(argument), false);
    case SNDRV_PCM_IOCTL_RESUME:
      return Fail(ENOSYS);
    case SNDRV_PCM_IOCTL_DELAY:
      *static_cast<snd_pcm_sframes_t*>(argument) = static_cast<snd_pcm_sframes_t>(script.waits);
      script.waits = 0;
      return 0;
    case SNDRV_PCM_IOCTL_DRAIN:
    case SNDRV_PCM_IOCTL_DROP:
      fprintf(log_file, request == SNDRV_PCM_IOCTL_DRAIN ? "drained\n" : "dropped\n");
      return 0;
    case VIDIOC_QUERYCAP:
      static_cast<v4l2_capability*>(argument)->capabilities = V4L2_CAP_VIDEO_CAPTURE | V4L2_CAP_STREAMING;
      return script.fourcc_count ? 0 : Fail(ENOTTY);
    case VIDIOC_ENUM_FMT: {
      auto* format = static_cast<v4l2_fmtdesc*>(argument);
      if (format->index >= static_cast<unsigned>(script.fourcc_count)) return Fail(EINVAL);
      format->pixelformat = script.fourcc[format->index];
      return 0;
    }
    case VIDIOC_S_FMT:
      return SetFormat(static_cast<v4l2_format*>(argument));
    case VIDIOC_REQBUFS:
      static_cast<v4l2_requestbuffers*>(argument)->count = kBuffers;
      return 0;
    case VIDIOC_QUERYBUF:
      static_cast<v4l2_buffer*>(argument)->length = static_cast<unsigned>(shared_bytes);
      static_cast<v4l2_buffer*>(argument)->m.offset = static_cast<v4l2_buffer*>(argument)->index * 4096;
      return 0;
    case VIDIOC_QBUF:
      if (queue_size == kBuffers) return Fail(EINVAL);
      queued[queue_size++] = static_cast<int>(static_cast<v4l2_buffer*>(argument)->index);
      return 0;
    case VIDIOC_STREAMON:
    case VIDIOC_STREAMOFF:
      return 0;
    case VIDIOC_DQBUF:
      return DequeuePicture(static_cast<v4l2_buffer*>(argument));
    default:
      return Fail(ENOTTY);
  }
}

void* MapDevice(int, size_t bytes, int64_t offset) {
  return shared[offset / 4096] = static_cast<unsigned char*>(malloc(bytes));
}

void CloseDevice(int) {
  fprintf(log_file, "closed\n");
  fclose(log_file);
  fclose(data_file);
}

}  // namespace runnel_run
