// A camera by the kernel's video interface (Video4Linux 2), its frames in memory that the driver shares.
#ifndef RUNNEL_BOARD_CAMERA_H_
#define RUNNEL_BOARD_CAMERA_H_

#include <cstddef>
#include <cstdint>

namespace runnel_run {

class Camera {
 public:
  explicit Camera(const char* path);

  // channels: 3 for red, green, blue; 1 for grey. Exits where the camera gives no frames of that size.
  void Start(int width, int height, int channels);
  // The next frame, [height, width, channels] of 0 to 255; false where the program is asked to end.
  bool Read(uint8_t* pixels);
  void Finish();
  // Frames that the driver lost or that came damaged.
  int64_t lost() const { return lost_; }

 private:
  bool Control(unsigned long request, void* argument) const;
  void ChooseFormat();
  void MapBuffers();
  [[noreturn]] void RefuseFormats() const;

  static constexpr int kMostBuffers = 4;
  const char* path_;
  int device_ = -1, width_ = 0, height_ = 0, channels_ = 0;
  uint32_t format_ = 0, line_ = 0;
  int buffers_ = 0;
  const uint8_t* data_[kMostBuffers] = {};
  size_t bytes_[kMostBuffers] = {};
  int64_t lost_ = 0;
  uint32_t next_ = 0;
  bool begun_ = false;
};

}  // namespace runnel_run

#endif  // RUNNEL_BOARD_CAMERA_H_
