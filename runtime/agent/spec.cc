#include "spec.h"

#include <cstdio>

#include "../core/sha256.h"

namespace runnel_agent {
namespace {

constexpr char kHead[] = "runnel-version 1\n";
constexpr size_t kHashLine = 65;

}  // namespace

bool Spec::Read(const void* text, size_t n) {
  text_.Clear();
  hashes_.Clear();
  id_[0] = 0;
  size_t at = sizeof kHead - 1;
  if (n < at || memcmp(text, kHead, at) != 0) return false;
  text_.Put(text, n);
  if (!ReadFile(&at, kModel, 0644, &files_[0]) || !ReadFile(&at, kProgram, 0755, &files_[1]) || at != n) return false;
  uint8_t digest[32];
  char hex[64];
  runnel::Sha256(text_.data(), n, digest);
  runnel::WriteHex(digest, hex);
  memcpy(id_, hex, kId);
  id_[kId] = 0;
  return true;
}

bool Spec::ReadFile(size_t* at, const char* name, uint32_t mode, File* file) {
  char head[64];
  const int head_bytes = snprintf(head, sizeof head, "file %s %o ", name, static_cast<unsigned>(mode));
  const auto start = static_cast<size_t>(head_bytes);
  if (text_.size() - *at < start || memcmp(text_.data() + *at, head, start) != 0) return false;
  *at += start;
  uint64_t size = 0;
  int digits = 0;
  for (; *at < text_.size() && text_.data()[*at] >= '0' && text_.data()[*at] <= '9'; ++*at, ++digits) {
    size = size * 10 + (text_.data()[*at] - '0');
    if (size > kMostFile || (digits && size < 10)) return false;
  }
  if (!digits || !size || *at == text_.size() || text_.data()[(*at)++] != '\n') return false;
  const uint64_t chunks = (size + kChunk - 1) / kChunk;
  if (chunks > (text_.size() - *at) / kHashLine) return false;
  *file = {name, mode, size, static_cast<uint32_t>(hashes_.size() / 32), static_cast<uint32_t>(chunks)};
  for (uint64_t i = 0; i < chunks; ++i, *at += kHashLine) {
    if (text_.data()[*at + 64] != '\n' || !runnel::ReadHex(text_.text() + *at, 64, hashes_.Add(32))) return false;
  }
  return true;
}

bool IsId(const char* text) {
  size_t n = 0;
  while (text[n] && ((text[n] >= '0' && text[n] <= '9') || (text[n] >= 'a' && text[n] <= 'f'))) ++n;
  return n == kId && !text[n];
}

}  // namespace runnel_agent
