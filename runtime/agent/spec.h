// What a version is made of: its files and the sha256 of every 64 KiB of them.
//
//   runnel-version 1
//   file model.rnl 644 SIZE
//   SHA256 of 64 digits, for each 64 KiB
//   file runnel-run 755 SIZE
//   …
#ifndef RUNNEL_AGENT_SPEC_H_
#define RUNNEL_AGENT_SPEC_H_

#include "bytes.h"

namespace runnel_agent {

constexpr size_t kChunk = 64 << 10;
constexpr uint64_t kMostFile = uint64_t{1} << 40;
constexpr char kModel[] = "model.rnl", kProgram[] = "runnel-run";
constexpr size_t kId = 32;

struct File {
  const char* name;
  uint32_t mode;
  uint64_t size;
  uint32_t first, chunks;

  size_t ChunkBytes(uint32_t chunk) const {
    const uint64_t left = size - uint64_t{chunk} * kChunk;
    return left < kChunk ? static_cast<size_t>(left) : kChunk;
  }
};

class Spec {
 public:
  // False where the text is not exactly that of a version. A version has the model and the program, in this order.
  bool Read(const void* text, size_t n);

  const char* id() const { return id_; }
  const Bytes& text() const { return text_; }
  const File& file(int i) const { return files_[i]; }
  static constexpr int kFiles = 2;
  uint32_t chunks() const { return files_[kFiles - 1].first + files_[kFiles - 1].chunks; }
  const uint8_t* hash(uint32_t chunk) const { return hashes_.data() + size_t{32} * chunk; }

 private:
  bool ReadFile(size_t* at, const char* name, uint32_t mode, File* file);

  File files_[kFiles] = {};
  Bytes text_, hashes_;
  char id_[kId + 1] = "";
};

// Whether it is the name of a version: 32 hexadecimal digits.
bool IsId(const char* text);

}  // namespace runnel_agent

#endif  // RUNNEL_AGENT_SPEC_H_
