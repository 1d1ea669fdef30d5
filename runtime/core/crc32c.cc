// CRC-32C (Castagnoli, RFC 3720): the processor's instruction on four parts at a time, else eight tables.
//
// An instruction takes three cycles and one may start in each, so the parts of a block are summed side by side. Their
// sums are joined by moving the earlier one over as many zeros as the later part has bytes, which is linear: four
// lookups (M. Adler, crc32c.c, and Intel's "Fast CRC Computation Using PCLMULQDQ", 2009, section 3).
#include <cstring>

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

#include "crc32c.h"
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

inline uint64_t WordAt(const uint8_t* p) {
  uint64_t word;
  memcpy(&word, p, 8);
  return word;
}

uint32_t ByTables(const uint8_t* p, size_t n, uint32_t crc) {
  for (; n >= 8; n -= 8, p += 8) {
    const uint64_t word = WordAt(p) ^ crc;
    crc = 0;
    for (int k = 0; k < 8; ++k) crc ^= kTables.entry[7 - k][(word >> (8 * k)) & 0xff];
  }
  for (; n; --n, ++p) crc = (crc >> 8) ^ kTables.entry[0][(crc ^ *p) & 0xff];
  return crc;
}

#if defined(__x86_64__) && defined(__GNUC__)
#define RN_CRC_INSTRUCTION 1
#if defined(__clang__)
#define RN_CRC_TARGET __attribute__((target("sse4.2,crc32")))
#else
#define RN_CRC_TARGET __attribute__((target("sse4.2")))
#endif

RN_CRC_TARGET inline uint64_t Eight(uint64_t crc, uint64_t word) { return __builtin_ia32_crc32di(crc, word); }
RN_CRC_TARGET inline uint32_t One(uint32_t crc, uint8_t byte) { return __builtin_ia32_crc32qi(crc, byte); }

bool HasInstruction() {
  uint32_t a = 1, b = 0, c = 0, d = 0;
  __asm__("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
  return (c >> 20) & 1;
}

#elif defined(__aarch64__) && defined(__linux__) && defined(__GNUC__)
#define RN_CRC_INSTRUCTION 1
#define RN_CRC_TARGET

inline uint64_t Eight(uint64_t crc, uint64_t word) {
  __asm__(".arch_extension crc\n\tcrc32cx %w0, %w0, %1" : "+r"(crc) : "r"(word));
  return crc;
}
inline uint32_t One(uint32_t crc, uint8_t byte) {
  __asm__(".arch_extension crc\n\tcrc32cb %w0, %w0, %w1" : "+r"(crc) : "r"(byte));
  return crc;
}

bool HasInstruction() { return (getauxval(AT_HWCAP) >> 7) & 1; }

#endif

#ifdef RN_CRC_INSTRUCTION

constexpr size_t kLong = 8192, kShort = 1024;  // bytes of a part: of a large block, and of a page

// What each byte of a sum becomes behind `Bytes` (a power of two) zeros.
template <size_t Bytes>
struct Zeros {
  uint32_t entry[4][256] = {};

  constexpr Zeros() {
    uint32_t bits[32] = {}, twice[32] = {};  // what each bit becomes
    for (int bit = 0; bit < 32; ++bit) {
      const uint32_t crc = uint32_t{1} << bit;
      bits[bit] = (crc >> 8) ^ kTables.entry[0][crc & 0xff];
    }
    for (size_t bytes = 1; bytes < Bytes; bytes *= 2) {
      for (int bit = 0; bit < 32; ++bit) twice[bit] = Combined(bits, bits[bit]);
      for (int bit = 0; bit < 32; ++bit) bits[bit] = twice[bit];
    }
    for (int k = 0; k < 4; ++k) {
      for (uint32_t i = 0; i < 256; ++i) entry[k][i] = Combined(bits, i << (8 * k));
    }
  }

  static constexpr uint32_t Combined(const uint32_t* bits, uint32_t crc) {
    uint32_t sum = 0;
    for (int bit = 0; bit < 32; ++bit) sum ^= (crc >> bit) & 1 ? bits[bit] : 0u;
    return sum;
  }
  uint32_t After(uint32_t crc) const {
    return entry[0][crc & 0xff] ^ entry[1][(crc >> 8) & 0xff] ^ entry[2][(crc >> 16) & 0xff] ^ entry[3][crc >> 24];
  }
};

template <size_t Part>
constexpr Zeros<Part> kZeros;

// Four parts at `p`. Each is asked for a block ahead: the processor does not follow so many lines by itself.
template <size_t Part>
RN_CRC_TARGET uint32_t FourParts(const uint8_t* p, uint32_t crc) {
  uint64_t a = crc, b = 0, c = 0, d = 0;
  for (const uint8_t* line = p; line < p + Part; line += 64) {
    for (size_t k = 4; k < 8; ++k) __builtin_prefetch(line + k * Part);
    for (const uint8_t* q = line; q < line + 64; q += 8) {
      a = Eight(a, WordAt(q));
      b = Eight(b, WordAt(q + Part));
      c = Eight(c, WordAt(q + 2 * Part));
      d = Eight(d, WordAt(q + 3 * Part));
    }
  }
  const Zeros<Part>& zeros = kZeros<Part>;
  crc = zeros.After(static_cast<uint32_t>(a)) ^ static_cast<uint32_t>(b);
  crc = zeros.After(crc) ^ static_cast<uint32_t>(c);
  return zeros.After(crc) ^ static_cast<uint32_t>(d);
}

RN_CRC_TARGET uint32_t ByInstruction(const uint8_t* p, size_t n, uint32_t crc) {
  for (; n >= 4 * kLong; n -= 4 * kLong, p += 4 * kLong) crc = FourParts<kLong>(p, crc);
  for (; n >= 4 * kShort; n -= 4 * kShort, p += 4 * kShort) crc = FourParts<kShort>(p, crc);
  uint64_t wide = crc;
  for (; n >= 8; n -= 8, p += 8) wide = Eight(wide, WordAt(p));
  crc = static_cast<uint32_t>(wide);
  for (; n; --n, ++p) crc = One(crc, *p);
  return crc;
}

#endif

}  // namespace

#ifdef RN_CRC_INSTRUCTION
Crc32c::Crc32c() : instruction_(HasInstruction()) {}

uint32_t Crc32c::operator()(const void* bytes, size_t n, uint32_t crc) const {
  const auto* p = static_cast<const uint8_t*>(bytes);
  return instruction_ ? ~ByInstruction(p, n, ~crc) : ~ByTables(p, n, ~crc);
}
#else
Crc32c::Crc32c() : instruction_(false) {}

uint32_t Crc32c::operator()(const void* bytes, size_t n, uint32_t crc) const {
  static_cast<void>(instruction_);
  return ~ByTables(static_cast<const uint8_t*>(bytes), n, ~crc);
}
#endif

}  // namespace runnel

extern "C" uint32_t rn_crc32c(const void* bytes, size_t n, uint32_t crc) { return runnel::Crc32c()(bytes, n, crc); }
