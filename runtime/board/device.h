// All that sound cards and cameras are asked for: the calls that their device files take. Tests link simulated ones.
#ifndef RUNNEL_BOARD_DEVICE_H_
#define RUNNEL_BOARD_DEVICE_H_

#include <cstddef>
#include <cstdint>

namespace runnel_run {

// Each gives -1, or null, with errno where it fails.
int OpenDevice(const char* path);
int ControlDevice(int device, unsigned long request, void* argument);
void* MapDevice(int device, size_t bytes, int64_t offset);
void CloseDevice(int device);

}  // namespace runnel_run

#endif  // RUNNEL_BOARD_DEVICE_H_
