#include "known.h"

#include <dirent.h>
#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>

#include "../core/sha256.h"
#include "channel.h"
#include "store.h"

namespace runnel_agent {

bool ReadChunk(int file, uint32_t chunk, uint8_t* bytes, size_t n) {
  for (size_t have = 0; have < n;) {
    const ssize_t got = pread(file, bytes + have, n - have, static_cast<off_t>(uint64_t{chunk} * kChunk + have));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    have += static_cast<size_t>(got);
  }
  return true;
}

void Known::Read() {
  DIR* listing = opendir("versions");
  if (!listing) return;
  while (const struct dirent* entry = readdir(listing)) {
    char path[64];
    Bytes text;
    Spec spec;
    if (!IsId(entry->d_name)) continue;
    snprintf(path, sizeof path, "versions/%.32s/spec", entry->d_name);
    if (!ReadText(path, kMostMessage, &text) || !spec.Read(text.data(), text.size())) continue;
    for (int i = 0; i < Spec::kFiles; ++i) {
      const File& file = spec.file(i);
      for (uint32_t chunk = 0; chunk < file.chunks; ++chunk) {
        Place place;
        memcpy(place.hash, spec.hash(file.first + chunk), sizeof place.hash);
        memcpy(place.version, spec.id(), sizeof place.version);
        place.file = static_cast<uint8_t>(i);
        place.chunk = chunk;
        places_.Put(&place, sizeof place);
      }
    }
  }
  closedir(listing);
  qsort(places_.data(), places_.size() / sizeof(Place), sizeof(Place),
        [](const void* a, const void* b) { return memcmp(a, b, 32); });
}

bool Known::Find(const uint8_t hash[32], uint8_t* bytes, size_t n) const {
  const void* found = bsearch(hash, places_.data(), places_.size() / sizeof(Place), sizeof(Place),
                              [](const void* a, const void* b) { return memcmp(a, b, 32); });
  if (!found) return false;
  Place place;
  memcpy(&place, found, sizeof place);
  char path[96];
  snprintf(path, sizeof path, "versions/%s/%s", place.version, place.file ? kProgram : kModel);
  const int file = open(path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
  if (file < 0) return false;
  uint8_t digest[32];
  const bool read = ReadChunk(file, place.chunk, bytes, n);
  close(file);
  if (read) runnel::Sha256(bytes, n, digest);
  return read && memcmp(digest, hash, sizeof digest) == 0;
}

}  // namespace runnel_agent
