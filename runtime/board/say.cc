#include "say.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdarg>
#include <cstdio>

namespace runnel_run {
namespace {

constexpr int kMostFiles = 32;
const char* unfinished[kMostFiles];

[[noreturn]] void End(int code, const char* format, va_list arguments) {
  fflush(stdout);
  fputs("runnel-run: ", stderr);
  vfprintf(stderr, format, arguments);
  fputc('\n', stderr);
  for (const char* path : unfinished) {
    if (path) unlink(path);
  }
  _exit(code);
}

}  // namespace

void Refuse(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  End(2, format, arguments);
}

void Fail(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  End(1, format, arguments);
}

const uint8_t* MapWhole(const char* path, size_t* bytes) {
  const int file = open(path, O_RDONLY | O_CLOEXEC);
  struct stat about;
  if (file < 0 || fstat(file, &about) != 0) Refuse("'%s' cannot be read: %s.", path, strerror(errno));
  *bytes = static_cast<size_t>(about.st_size);
  if (!*bytes) Refuse("'%s' is empty.", path);
  void* data = mmap(nullptr, *bytes, PROT_READ, MAP_PRIVATE, file, 0);
  if (data == MAP_FAILED) Refuse("'%s' cannot be read: %s.", path, strerror(errno));
  close(file);
  return static_cast<const uint8_t*>(data);
}

void UnmapWhole(const uint8_t* data, size_t bytes) { munmap(const_cast<uint8_t*>(data), bytes); }

void OutputFile::Open(const char* path) {
  path_ = path;
  if (strcmp(path, "-") == 0) {
    file_ = stdout;
    return;
  }
  struct stat about;
  const bool there = stat(path, &about) == 0;
  if (!there || S_ISREG(about.st_mode)) {  // else a pipe, or a device such as /dev/null, which must stay what it is
    place_ = there ? realpath(path, nullptr) : strdup(path);  // a link stays a link
    if (!place_) Refuse("'%s' cannot be written: %s.", path, strerror(errno));
    const size_t bytes = strlen(place_) + 32;
    temporary_ = static_cast<char*>(Allocate(bytes));
    snprintf(temporary_, bytes, "%s.%d.part", place_, static_cast<int>(getpid()));
  }
  file_ = fopen(temporary_ ? temporary_ : path, "wb");
  if (!file_) Refuse("'%s' cannot be written: %s.", path, strerror(errno));
  if (!temporary_) return;
  for (const char*& slot : unfinished) {
    if (slot) continue;
    slot = temporary_;
    return;
  }
  Refuse("there are more than %d outputs.", kMostFiles);
}

void OutputFile::Write(const void* bytes, size_t n) {
  if (n && fwrite(bytes, 1, n, static_cast<FILE*>(file_)) != n) {
    Refuse("'%s' cannot be written: %s.", path_, strerror(errno));
  }
}

void OutputFile::WriteAt(long offset, const void* bytes, size_t n) {
  if (fseek(static_cast<FILE*>(file_), offset, SEEK_SET) != 0) {
    Refuse("'%s' cannot be finished: %s; give a file.", path_, strerror(errno));
  }
  Write(bytes, n);
}

void OutputFile::Flush() {
  if (fflush(static_cast<FILE*>(file_)) != 0) Refuse("'%s' cannot be written: %s.", path_, strerror(errno));
}

void OutputFile::Finish() {
  Flush();
  if (file_ == stdout) return;
  if (fclose(static_cast<FILE*>(file_)) != 0 || (temporary_ && rename(temporary_, place_) != 0)) {
    Refuse("'%s' cannot be written: %s.", path_, strerror(errno));
  }
  for (const char*& slot : unfinished) {
    if (slot == temporary_) slot = nullptr;
  }
}

void* Allocate(size_t bytes) {
  void* block = nullptr;
  const size_t rounded = (bytes + 64) & ~size_t{63};
  if (rounded < bytes || posix_memalign(&block, 64, rounded) != 0) Fail("there is not enough memory.");
  memset(block, 0, rounded);
  return block;
}

}  // namespace runnel_run
