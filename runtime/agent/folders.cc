// What a store does with the file system.
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>

#include "store.h"

namespace runnel_agent {

int MakeFolder(const char* path) {
  if (mkdir(path, 0755) == 0) return 0;
  if (errno != EEXIST) return errno;
  struct stat about;
  if (lstat(path, &about) != 0) return errno;
  return S_ISDIR(about.st_mode) ? 0 : ENOTDIR;
}

int SyncFolder(const char* path) {
  const int folder = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (folder < 0) return errno;
  const int error = fsync(folder) != 0 && errno != EINVAL ? errno : 0;
  close(folder);
  return error;
}

int WriteSmall(const char* path, const void* bytes, size_t n) {
  char part[128];
  snprintf(part, sizeof part, "%s.part", path);
  const int file = open(part, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0644);
  if (file < 0) return errno;
  int error = 0;
  for (size_t at = 0; at < n && !error;) {
    const ssize_t put = write(file, static_cast<const char*>(bytes) + at, n - at);
    if (put > 0) at += static_cast<size_t>(put);
    if (put < 0 && errno != EINTR) error = errno;
  }
  if (!error && fsync(file) != 0) error = errno;
  if (close(file) != 0 && !error) error = errno;
  if (!error && rename(part, path) != 0) error = errno;
  if (error) unlink(part);
  return error;
}

bool ReadText(const char* path, size_t most, Bytes* text) {
  const int file = open(path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
  struct stat about;
  if (file < 0) return false;
  bool good = fstat(file, &about) == 0 && S_ISREG(about.st_mode) && static_cast<uint64_t>(about.st_size) <= most;
  text->Clear();
  for (auto left = good ? static_cast<size_t>(about.st_size) : 0; left && good;) {
    const ssize_t got = read(file, text->Add(left), left);
    text->Cut(got > 0 ? left - static_cast<size_t>(got) : left);
    good = got > 0;
    left -= good ? static_cast<size_t>(got) : 0;
  }
  close(file);
  return good;
}

void RemoveFolder(const char* path) {
  const int folder = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  DIR* listing = folder < 0 ? nullptr : fdopendir(folder);
  if (!listing) {
    if (folder >= 0) close(folder);
    return;
  }
  while (const struct dirent* entry = readdir(listing)) {
    if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0) unlinkat(folder, entry->d_name, 0);
  }
  closedir(listing);
  rmdir(path);
}

void CurrentVersion(char id[kId + 1]) {
  char target[64] = "";
  constexpr char kBefore[] = "versions/";
  constexpr size_t kStart = sizeof kBefore - 1;
  const ssize_t n = readlink("current", target, sizeof target - 1);
  const bool good = n == static_cast<ssize_t>(kStart + kId) && memcmp(target, kBefore, kStart) == 0;
  id[0] = 0;
  if (good && IsId(target + kStart)) memcpy(id, target + kStart, kId + 1);
}

void PreviousVersion(const char* id, char previous[kId + 1]) {
  char path[64];
  Bytes text;
  snprintf(path, sizeof path, "versions/%s/previous", id);
  previous[0] = 0;
  if (!id[0] || !ReadText(path, kId + 1, &text) || text.size() != kId + 1 || text.data()[kId] != '\n') return;
  text.data()[kId] = 0;
  if (IsId(text.text())) memcpy(previous, text.data(), kId + 1);
}

}  // namespace runnel_agent
