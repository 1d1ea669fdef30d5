#include "device.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

namespace runnel_run {

int OpenDevice(const char* path) {
  const int device = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);  // a device in use is told instead of waited for
  if (device >= 0) fcntl(device, F_SETFL, fcntl(device, F_GETFL) & ~O_NONBLOCK);
  return device;
}

int ControlDevice(int device, unsigned long request, void* argument) {
  return ioctl(device, static_cast<decltype(_IO(0, 0))>(request), argument);
}

void* MapDevice(int device, size_t bytes, int64_t offset) {
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, device, static_cast<off_t>(offset));
  return data == MAP_FAILED ? nullptr : data;
}

void CloseDevice(int device) { close(device); }

}  // namespace runnel_run
