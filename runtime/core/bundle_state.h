// A bundle while it is open.
#ifndef RUNNEL_BUNDLE_STATE_H_
#define RUNNEL_BUNDLE_STATE_H_

#include "arena.h"
#include "files.h"
#include "manifest.h"
#include "report.h"
#include "runnel_bundle.h"
#include "sha256.h"

namespace runnel {

// An entry that the manifest lists.
struct Listed {
  Text name;
  const uint8_t* data;
  uint64_t bytes;
  uint8_t sha256[32];
};

}  // namespace runnel

struct rn_bundle {
  explicit rn_bundle(size_t most) : arena(most) {}

  runnel::Arena arena;
  const char* path = nullptr;
  runnel::Mapped file, image;
  runnel::Manifest manifest = {};
  runnel::Text text, signatures;  // the manifest's and the entry manifest.sig
  runnel::Listed* entries = nullptr;
  int32_t entry_count = 0;
  rn_program* program = nullptr;

  bool CheckEntry(const runnel::Listed& entry, const runnel::Report& report) const {
    uint8_t digest[32];
    runnel::Sha256(entry.data, entry.bytes, digest);
    if (memcmp(digest, entry.sha256, sizeof digest) == 0) return true;
    return report.Say("'%s': entry '%.*s' was altered (its sha256 differs); copy the bundle again.", path,
                      runnel::Shown(entry.name), entry.name.data);
  }
  const runnel::Listed* Find(runnel::Text name) const {
    for (int32_t i = 0; i < entry_count; ++i) {
      if (entries[i].name.Is(name)) return &entries[i];
    }
    return nullptr;
  }
};

#endif  // RUNNEL_BUNDLE_STATE_H_
