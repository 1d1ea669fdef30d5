// Files of the machine, mapped.
#ifndef RUNNEL_FILES_H_
#define RUNNEL_FILES_H_

#include <cstddef>
#include <cstdint>

namespace runnel {

struct Mapped {
  const uint8_t* data = nullptr;
  size_t bytes = 0;
};

// Each returns 0 or an errno.
int OpenFile(const char* path, int* file, uint64_t* bytes);
void CloseFile(int file);
int MapFile(int file, uint64_t offset, size_t bytes, bool executable, Mapped* mapped);
// Tells the system that pages around those that are touched will not be needed.
void ReadSparsely(const Mapped& mapped);
void Unmap(Mapped* mapped);
// What an errno means.
const char* ErrorText(int error);
// Up to `room` bytes of a file that has no size of its own, such as those in /proc; how many there were.
size_t ReadSmallFile(const char* path, char* text, size_t room);

}  // namespace runnel

#endif  // RUNNEL_FILES_H_
