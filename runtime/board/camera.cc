// Follows include/uapi/linux/videodev2.h of Linux; YUYV as ITU-R BT.601 with 219 steps of luma.
#include "camera.h"

#include <errno.h>
#include <linux/videodev2.h>
#include <sys/ioctl.h>

#include <cmath>
#include <cstdio>
#include <cstring>

#include "device.h"
#include "realtime.h"
#include "say.h"

namespace runnel_run {
namespace {

constexpr int kMostFailures = 100;  // one after the other
constexpr uint32_t kColours[] = {V4L2_PIX_FMT_RGB24, V4L2_PIX_FMT_BGR24, V4L2_PIX_FMT_YUYV};
constexpr uint32_t kGreys[] = {V4L2_PIX_FMT_GREY, V4L2_PIX_FMT_YUYV};

int BytesOfPixel(uint32_t format) { return format == V4L2_PIX_FMT_GREY ? 1 : format == V4L2_PIX_FMT_YUYV ? 2 : 3; }

uint8_t Clip(float value) { return static_cast<uint8_t>(value < 0 ? 0 : value > 255 ? 255 : lrintf(value)); }

// A line of the camera's pixels as the model's.
void TakeLine(uint32_t format, const uint8_t* from, int width, int channels, uint8_t* to) {
  if (format == V4L2_PIX_FMT_GREY || format == V4L2_PIX_FMT_RGB24) {
    memcpy(to, from, static_cast<size_t>(width * channels));
    return;
  }
  for (int x = 0; x < width; ++x, to += channels) {
    if (format == V4L2_PIX_FMT_BGR24) {
      for (int c = 0; c < 3; ++c) to[c] = from[3 * x + 2 - c];
      continue;
    }
    const uint8_t* pair = from + x / 2 * 4;  // Y0 U Y1 V
    const float y = 255.0f / 219.0f * static_cast<float>(from[2 * x] - 16);
    const float u = 255.0f / 224.0f * static_cast<float>(pair[1] - 128);
    const float v = 255.0f / 224.0f * static_cast<float>(pair[3] - 128);
    if (channels == 1) {
      to[0] = Clip(y);
    } else {
      to[0] = Clip(y + 1.402f * v);
      to[1] = Clip(y - 0.344136f * u - 0.714136f * v);
      to[2] = Clip(y + 1.772f * u);
    }
  }
}

}  // namespace

Camera::Camera(const char* path) : path_(path), device_(OpenDevice(path)) {
  if (device_ < 0 && errno == EBUSY) Refuse("the camera '%s' is in use by another program; end that.", path);
  if (device_ < 0) Refuse("the camera '%s' cannot be opened: %s.", path, strerror(errno));
}

bool Camera::Control(unsigned long request, void* argument) const {
  int done;
  do {
    done = ControlDevice(device_, request, argument);
  } while (done != 0 && errno == EINTR && !Stopped());
  return done == 0;
}

void Camera::Start(int width, int height, int channels) {
  width_ = width, height_ = height, channels_ = channels;
  v4l2_capability can = {};
  if (!Control(VIDIOC_QUERYCAP, &can)) Refuse("'%s' is no camera; give one of /dev/video*.", path_);
  const uint32_t caps = can.capabilities & V4L2_CAP_DEVICE_CAPS ? can.device_caps : can.capabilities;
  if (!(caps & V4L2_CAP_VIDEO_CAPTURE) || !(caps & V4L2_CAP_STREAMING)) {
    Refuse("'%s' gives no stream of frames; give the camera's other device of /dev/video*.", path_);
  }
  ChooseFormat();
  MapBuffers();
  int type = V4L2_BUF_TYPE_VIDEO_CAPTURE;
  if (!Control(VIDIOC_STREAMON, &type)) Refuse("the camera '%s' cannot be started: %s.", path_, strerror(errno));
}

void Camera::ChooseFormat() {
  const uint32_t* wanted = channels_ == 3 ? kColours : kGreys;
  const size_t count = channels_ == 3 ? sizeof kColours / sizeof *kColours : sizeof kGreys / sizeof *kGreys;
  for (size_t i = 0; i < count; ++i) {
    v4l2_format format = {};
    format.type = V4L2_BUF_TYPE_VIDEO_CAPTURE;
    v4l2_pix_format& pixels = format.fmt.pix;
    pixels.width = static_cast<uint32_t>(width_);
    pixels.height = static_cast<uint32_t>(height_);
    pixels.pixelformat = wanted[i];
    pixels.field = V4L2_FIELD_NONE;
    if (!Control(VIDIOC_S_FMT, &format)) {
      if (errno == EBUSY) Refuse("the camera '%s' is in use by another program; end that.", path_);
      continue;
    }
    const auto least = static_cast<uint32_t>(width_ * BytesOfPixel(wanted[i]));
    if (pixels.pixelformat != wanted[i] || pixels.width != static_cast<uint32_t>(width_) ||
        pixels.height != static_cast<uint32_t>(height_) || (wanted[i] == V4L2_PIX_FMT_YUYV && width_ % 2)) {
      continue;
    }
    format_ = wanted[i];
    line_ = pixels.bytesperline > least ? pixels.bytesperline : least;
    return;
  }
  RefuseFormats();
}

void Camera::RefuseFormats() const {
  char given[200] = "";
  size_t used = 0;
  v4l2_fmtdesc format = {};
  for (format.type = V4L2_BUF_TYPE_VIDEO_CAPTURE; used + 16 < sizeof given; ++format.index) {
    if (!Control(VIDIOC_ENUM_FMT, &format)) break;
    const uint32_t code = format.pixelformat;
    used += static_cast<size_t>(snprintf(given + used, sizeof given - used, "%s%c%c%c%c", used ? ", " : "", code & 127,
                                         code >> 8 & 127, code >> 16 & 127, code >> 24 & 127));
  }
  Refuse(
      "the camera '%s' gives no frames of %d x %d in %s; it has the formats %s: use another camera, or raw:- with a "
      "program that converts.",
      path_, width_, height_, channels_ == 3 ? "RGB, BGR or YUYV" : "grey or YUYV", used ? given : "none");
}

void Camera::MapBuffers() {
  v4l2_requestbuffers wanted = {};
  wanted.count = kMostBuffers;
  wanted.type = V4L2_BUF_TYPE_VIDEO_CAPTURE;
  wanted.memory = V4L2_MEMORY_MMAP;
  if (!Control(VIDIOC_REQBUFS, &wanted) || wanted.count < 2) Refuse("the camera '%s' shares no memory.", path_);
  buffers_ = wanted.count < kMostBuffers ? static_cast<int>(wanted.count) : kMostBuffers;
  for (int i = 0; i < buffers_; ++i) {
    v4l2_buffer buffer = {};
    buffer.type = V4L2_BUF_TYPE_VIDEO_CAPTURE;
    buffer.memory = V4L2_MEMORY_MMAP;
    buffer.index = static_cast<uint32_t>(i);
    void* data = Control(VIDIOC_QUERYBUF, &buffer) ? MapDevice(device_, buffer.length, buffer.m.offset) : nullptr;
    if (!data) Refuse("the camera '%s' shares no memory.", path_);
    data_[i] = static_cast<const uint8_t*>(data);
    bytes_[i] = buffer.length;
    if (!Control(VIDIOC_QBUF, &buffer)) Refuse("the camera '%s' takes no buffer: %s.", path_, strerror(errno));
  }
}

bool Camera::Read(uint8_t* pixels) {
  const size_t whole = static_cast<size_t>(line_) * static_cast<size_t>(height_ - 1) +
                       static_cast<size_t>(width_ * BytesOfPixel(format_));
  for (int failures = 0; !Stopped();) {
    v4l2_buffer buffer = {};
    buffer.type = V4L2_BUF_TYPE_VIDEO_CAPTURE;
    buffer.memory = V4L2_MEMORY_MMAP;
    if (!Control(VIDIOC_DQBUF, &buffer)) {
      if (Stopped()) break;
      if ((errno == EAGAIN || errno == EIO) && ++failures < kMostFailures) {  // a frame that did not arrive
        ++lost_;
        continue;
      }
      Refuse("the camera '%s' is gone: %s.", path_, strerror(errno));
    }
    if (buffer.index >= static_cast<uint32_t>(buffers_)) Refuse("the camera '%s' gives an unknown buffer.", path_);
    if (begun_) lost_ += static_cast<int64_t>(buffer.sequence - next_);
    begun_ = true;
    next_ = buffer.sequence + 1;
    const bool good =
        !(buffer.flags & V4L2_BUF_FLAG_ERROR) && buffer.bytesused >= whole && bytes_[buffer.index] >= whole;
    for (int y = 0; good && y < height_; ++y) {
      TakeLine(format_, data_[buffer.index] + static_cast<size_t>(y) * line_, width_, channels_,
               pixels + static_cast<size_t>(y) * static_cast<size_t>(width_ * channels_));
    }
    if (!Control(VIDIOC_QBUF, &buffer)) Refuse("the camera '%s' is gone: %s.", path_, strerror(errno));
    if (good) return true;
    ++lost_;
  }
  return false;
}

void Camera::Finish() {
  if (device_ < 0) return;
  int type = V4L2_BUF_TYPE_VIDEO_CAPTURE;
  Control(VIDIOC_STREAMOFF, &type);
  CloseDevice(device_);
  device_ = -1;
}

}  // namespace runnel_run
