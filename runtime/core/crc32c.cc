// CRC-32C (Castagnoli, RFC 3720): the processor's instruction where the compiler may use it, else eight tables.
#include <cstring>

#include "runnel.h"

namespace runnel {
namespace {

struct Tables {
  uint32_t entry[8][256];
};

constexpr Tables MakeTables() {
  Tables tables = {};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) ? 0x82f63b78u : 0u);
    tables.entry[0][i] = crc;
  }
  for (uint32_t i = 0; i < 256; ++i) {
    for (int k = 1; k < 8; ++k) {
      uint32_t crc = tables.entry[k - 1][i];
      tables.entry[k][i] = (crc >> 8) ^ tables.entry[0][crc & 0xff];
    }
  }
  return tables;
}

constexpr Tables kTables = MakeTables();

uint32_t ByTables(const uint8_t* p, size_t n, uint32_t crc) {
  for (; n >= 8; n -= 8, p += 8) {
    uint64_t word;
    memcpy(&word, p, 8);
    word ^= crc;
    crc = 0;
    for (int k = 0; k < 8; ++k) crc ^= kTables.entry[7 - k][(word >> (8 * k)) & 0xff];
  }
  for (; n; --n, ++p) crc = (crc >> 8) ^ kTables.entry[0][(crc ^ *p) & 0xff];
  return crc;
}

#if defined(__x86_64__) && defined(__GNUC__)

#if defined(__clang__)
#define RN_SSE42 __attribute__((target("sse4.2,crc32")))
#else
#define RN_SSE42 __attribute__((target("sse4.2")))
#endif

RN_SSE42 uint32_t ByInstruction(const uint8_t* p, size_t n, uint32_t crc) {
  uint64_t wide = crc;
  for (; n >= 8; n -= 8, p += 8) {
    uint64_t word;
    memcpy(&word, p, 8);
    wide = __builtin_ia32_crc32di(wide, word);
  }
  crc = static_cast<uint32_t>(wide);
  for (; n; --n, ++p) crc = __builtin_ia32_crc32qi(crc, *p);
  return crc;
}

bool HasInstruction() {
  uint32_t a = 1, b = 0, c = 0, d = 0;
  __asm__("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
  return (c >> 20) & 1;
}

#endif

}  // namespace
}  // namespace runnel

extern "C" uint32_t rn_crc32c(const void* bytes, size_t n, uint32_t crc) {
  const auto* p = static_cast<const uint8_t*>(bytes);
#if defined(__x86_64__) && defined(__GNUC__)
  if (runnel::HasInstruction()) return ~runnel::ByInstruction(p, n, ~crc);
#endif
  return ~runnel::ByTables(p, n, ~crc);
}
