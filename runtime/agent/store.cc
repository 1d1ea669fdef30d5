#include "store.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <initializer_list>

#include "../core/sha256.h"
#include "known.h"

namespace runnel_agent {
namespace {

bool IsFull(int error) { return error == ENOSPC || error == EFBIG || error == EDQUOT; }

}  // namespace

bool Store::Fail(const char* format, ...) {
  char text[1024];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  channel_.Say(kRefused, "%s", text);
  return false;
}

// Keeps a serial line going; false where the other side is gone or began anew.
bool Store::Alive() {
  channel_.Pump(0);
  return !channel_.gone();
}

void Store::Begin(const uint8_t* text, size_t n) {
  begun_ = there_ = false;
  if (!spec_.Read(text, n)) {
    Fail("what was sent is not the list of a version's files; update runnel on the laptop and push again.");
    return;
  }
  have_.Clear();
  memset(have_.Add(spec_.chunks()), 0, spec_.chunks());
  char whole[64];
  snprintf(whole, sizeof whole, "versions/%s", spec_.id());
  snprintf(folder_, sizeof folder_, "incoming/%s", spec_.id());
  for (const char* folder : {"versions", "incoming"}) {
    if (const int error = MakeFolder(folder)) {
      Fail("the folder '%s' cannot be made on the board: %s.", folder, strerror(error));
      return;
    }
  }
  Clean(nullptr);
  if (IsWhole(whole, spec_)) {
    there_ = true;
    memcpy(folder_, whole, sizeof folder_);
    memset(have_.data(), 1, have_.size());
  } else if (channel_.gone() || !Fill()) {
    return;
  }
  begun_ = true;
  Bytes missing;
  for (uint32_t i = 0; i < spec_.chunks(); ++i) {
    if (!have_.data()[i]) missing.Put32(i);
  }
  channel_.Send(kFine, missing.data(), missing.size());
}

// Makes the files of the version in their full size and takes what the board has already.
bool Store::Fill() {
  if (const int error = MakeFolder(folder_)) {
    return Fail("the folder '%s' cannot be made on the board: %s.", folder_, strerror(error));
  }
  static uint8_t bytes[kChunk];
  Known known;
  known.Read();
  for (int i = 0; i < Spec::kFiles; ++i) {
    const File& about = spec_.file(i);
    char path[96];
    snprintf(path, sizeof path, "%s/%s", folder_, about.name);
    const int file = open(path, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (file < 0) return Fail("'%s' cannot be written on the board: %s.", path, strerror(errno));
    if (!Reserve(file, about, path)) {
      close(file);
      return false;
    }
    for (uint32_t chunk = 0; chunk < about.chunks; ++chunk) {
      const size_t n = about.ChunkBytes(chunk);
      const uint8_t* hash = spec_.hash(about.first + chunk);
      uint8_t digest[32];
      bool good = false;
      if (ReadChunk(file, chunk, bytes, n)) {
        runnel::Sha256(bytes, n, digest);
        good = memcmp(digest, hash, sizeof digest) == 0;
      }
      if (!good && known.Find(hash, bytes, n)) {
        good = pwrite(file, bytes, n, static_cast<off_t>(uint64_t{chunk} * kChunk)) == static_cast<ssize_t>(n);
      }
      have_.data()[about.first + chunk] = good;
      if (!Alive()) {
        close(file);
        return false;
      }
    }
    close(file);
  }
  return true;
}

// Takes the room that a file needs before anything of it is sent.
bool Store::Reserve(int file, const File& about, const char* path) {
  struct stat now;
  if (fstat(file, &now) != 0 || !S_ISREG(now.st_mode)) return Fail("'%s' on the board is not a file.", path);
  const auto size = static_cast<off_t>(about.size);
  int error = 0;
  if (now.st_size != size && ftruncate(file, size) != 0) error = errno;
  if (!error) error = posix_fallocate(file, 0, size);
  if (error == EOPNOTSUPP || error == ENOSYS || error == EINVAL) error = 0;  // then a write says so
  if (!error) return true;
  RemoveFolder(folder_);
  if (!IsFull(error)) return Fail("'%s' cannot be written on the board: %s.", path, strerror(error));
  struct statvfs disk;
  const bool known = statvfs(".", &disk) == 0;
  const uint64_t free = known ? uint64_t{disk.f_bavail} * disk.f_frsize : 0;
  return Fail("the board's disk is full: %s needs %llu bytes and %llu are free there (%s); make room and push again.",
              about.name, static_cast<unsigned long long>(about.size), static_cast<unsigned long long>(free),
              strerror(error));
}

void Store::Put(const uint8_t* body, size_t n) {
  const uint32_t index = n < 4 ? 0 : Number32(body);
  if (n < 4 || !begun_ || there_ || index >= spec_.chunks()) {
    Fail("a part came that was not asked for; push again.");
    return;
  }
  int i = 0;
  while (index >= spec_.file(i).first + spec_.file(i).chunks) ++i;
  const File& about = spec_.file(i);
  const uint32_t chunk = index - about.first;
  uint8_t digest[32];
  runnel::Sha256(body + 4, n - 4, digest);
  if (n - 4 != about.ChunkBytes(chunk) || memcmp(digest, spec_.hash(index), sizeof digest) != 0) {
    Fail("part %u of %s came damaged; push again.", static_cast<unsigned>(chunk), about.name);
    return;
  }
  char path[96];
  snprintf(path, sizeof path, "%s/%s", folder_, about.name);
  const int file = open(path, O_WRONLY | O_NOFOLLOW | O_CLOEXEC);
  ssize_t put = -1;
  if (file >= 0) put = pwrite(file, body + 4, n - 4, static_cast<off_t>(uint64_t{chunk} * kChunk));
  const int error = put < 0 ? errno : ENOSPC;
  if (file >= 0) close(file);
  if (put == static_cast<ssize_t>(n - 4)) {
    have_.data()[index] = 1;
    channel_.Send(kFine, nullptr, 0);
    return;
  }
  if (IsFull(error)) RemoveFolder(folder_);
  begun_ = false;
  Fail(IsFull(error) ? "the board's disk is full: '%s' cannot be written (%s); make room and push again."
                     : "'%s' cannot be written on the board: %s.",
       path, strerror(error));
}

}  // namespace runnel_agent
