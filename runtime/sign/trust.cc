#include "trust.h"

#include <sys/stat.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "../core/files.h"
#include "ed25519.h"

namespace runnel_sign {
namespace {

constexpr size_t kMostText = 8192;
constexpr char kAlgorithm[] = "ed25519 ";

int Digit(char c) { return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1; }

bool ReadDigits(const char* text, size_t n, uint8_t* bytes) {
  for (size_t i = 0; i < n; ++i) {
    const int high = Digit(text[2 * i]), low = high < 0 ? -1 : Digit(text[2 * i + 1]);
    if (low < 0) return false;
    bytes[i] = static_cast<uint8_t>(high << 4 | low);
  }
  return true;
}

// Takes the line at *at; false at the end.
bool NextLine(const char* text, size_t n, size_t* at, const char** line, size_t* size) {
  if (*at >= n) return false;
  *line = text + *at;
  const auto* stop = static_cast<const char*>(memchr(*line, '\n', n - *at));
  *size = stop ? static_cast<size_t>(stop - *line) : n - *at;
  *at += *size + 1;
  return true;
}

size_t Trimmed(const char* line, size_t size) {
  if (const void* mark = memchr(line, '#', size)) size = static_cast<size_t>(static_cast<const char*>(mark) - line);
  while (size && (line[size - 1] == ' ' || line[size - 1] == '\r')) --size;
  return size;
}

}  // namespace

void Keys::Read(const char* path) {
  struct stat about;
  if (stat(path, &about) != 0 && errno == ENOENT) return;
  told = true;
  char text[kMostText];
  const size_t n = runnel::ReadSmallFile(path, text, sizeof text);
  const char* line;
  for (size_t at = 0, size; NextLine(text, n, &at, &line, &size);) {
    if (count < kMostKeys && Trimmed(line, size) == 64 && ReadDigits(line, 32, key[count])) ++count;
  }
}

bool Keys::Signed(const char* role, const void* bytes, size_t n, const char* signatures, size_t signature_bytes) const {
  char before[64];
  const size_t role_bytes = strlen(role),
               before_bytes = static_cast<size_t>(snprintf(before, sizeof before, "runnel %s 1\n", role));
  const char* line;
  for (size_t at = 0, size; NextLine(signatures, signature_bytes, &at, &line, &size);) {
    const size_t head = sizeof kAlgorithm - 1;
    uint8_t by[32], signature[64];
    if (size != head + role_bytes + 1 + 64 + 1 + 128 || memcmp(line, kAlgorithm, head) != 0) continue;
    const char* words = line + head;
    if (memcmp(words, role, role_bytes) != 0 || words[role_bytes] != ' ' || words[role_bytes + 65] != ' ') continue;
    words += role_bytes + 1;
    if (!ReadDigits(words, sizeof by, by) || !ReadDigits(words + 65, sizeof signature, signature)) continue;
    for (int i = 0; i < count; ++i) {
      if (memcmp(key[i], by, sizeof by) == 0 && Verify(by, signature, before, before_bytes, bytes, n)) return true;
    }
  }
  return false;
}

bool AreKeys(const char* text, size_t n) {
  const char* line;
  int found = 0;
  uint8_t key[32];
  for (size_t at = 0, size; NextLine(text, n, &at, &line, &size);) {
    const size_t kept = Trimmed(line, size);
    if (kept && (kept != 64 || !ReadDigits(line, sizeof key, key))) return false;
    found += kept > 0;
  }
  return n < kMostText && found > 0 && found <= kMostKeys;
}

}  // namespace runnel_sign
