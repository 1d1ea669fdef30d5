// The directory of a bundle's zip, read strictly: stored entries of plain names that do not overlap.
#ifndef RUNNEL_ZIPFILE_H_
#define RUNNEL_ZIPFILE_H_

#include "arena.h"
#include "files.h"
#include "report.h"

namespace runnel {

struct ZipEntry {
  Text name;  // in the mapped file
  uint64_t header, offset, bytes;
};

struct Directory {
  ZipEntry* entries = nullptr;  // by name
  int32_t size = 0;
  const ZipEntry* Find(Text name) const;
  const ZipEntry* Find(const char* name) const { return Find(Text{name, strlen(name)}); }
};

bool ReadDirectory(const Mapped& file, Arena& arena, const Report& report, Directory* directory);

}  // namespace runnel

#endif  // RUNNEL_ZIPFILE_H_
