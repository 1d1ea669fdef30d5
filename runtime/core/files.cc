#include "files.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

namespace runnel {

int OpenFile(const char* path, int* file, uint64_t* bytes) {
  const int opened = open(path, O_RDONLY | O_CLOEXEC);
  if (opened < 0) return errno;
  struct stat about;
  int error = fstat(opened, &about) != 0 ? errno : S_ISDIR(about.st_mode) ? EISDIR : 0;
  if (error) {
    close(opened);
    return error;
  }
  *file = opened;
  *bytes = static_cast<uint64_t>(about.st_size);
  return 0;
}

const char* ErrorText(int error) { return strerror(error); }

void CloseFile(int file) { close(file); }

int MapFile(int file, uint64_t offset, size_t bytes, bool executable, Mapped* mapped) {
  const int rights = PROT_READ | (executable ? PROT_EXEC : 0);
  void* data = mmap(nullptr, bytes, rights, executable ? MAP_PRIVATE : MAP_SHARED, file, static_cast<off_t>(offset));
  if (data == MAP_FAILED) return errno;
  *mapped = {static_cast<const uint8_t*>(data), bytes};
  return 0;
}

void ReadSparsely(const Mapped& mapped) { madvise(const_cast<uint8_t*>(mapped.data), mapped.bytes, MADV_RANDOM); }

void Unmap(Mapped* mapped) {
  if (mapped->data) munmap(const_cast<uint8_t*>(mapped->data), mapped->bytes);
  *mapped = {};
}

size_t ReadSmallFile(const char* path, char* text, size_t room) {
  const int file = open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0) return 0;
  size_t have = 0;
  while (have < room) {
    const ssize_t got = read(file, text + have, room - have);
    if (got <= 0) break;
    have += static_cast<size_t>(got);
  }
  close(file);
  return have;
}

}  // namespace runnel
