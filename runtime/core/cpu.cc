#include "cpu.h"

#include "files.h"

#if defined(__linux__) && (defined(__aarch64__) || defined(__arm__))
#include <sys/auxv.h>
#define RUNNEL_HWCAP 1
#endif

namespace runnel {
namespace {

struct Alias {
  const char* llvm;
  const char* system;
};
constexpr Alias kAliases[] = {{"sse3", "pni"},
                              {"sse4.1", "sse4_1"},
                              {"sse4.2", "sse4_2"},
                              {"bmi", "bmi1"},
                              {"lzcnt", "abm"},
                              {"avx512vnni", "avx512_vnni"},
                              {"avx512bf16", "avx512_bf16"},
                              {"avxvnni", "avx_vnni"},
                              {"dotprod", "asimddp"},
                              {"fullfp16", "asimdhp"},
                              {"fp-armv8", "fp"},
                              {"crc", "crc32"},
                              {"lse", "atomics"},
                              {"rdm", "asimdrdm"},
                              {"avx512vbmi2", "avx512_vbmi2"},
                              {"avx512bitalg", "avx512_bitalg"},
                              {"avx512vpopcntdq", "avx512_vpopcntdq"},
                              {"avx512fp16", "avx512_fp16"}};

#ifdef RUNNEL_HWCAP
struct Bit {
  const char* llvm;
  int word, bit;
};
// Bits of the kernel's interface (asm/hwcap.h), which an emulator reports of the processor that it emulates, whereas
// /proc/cpuinfo may be that of the machine below.
#ifdef __aarch64__
constexpr Bit kBits[] = {
    {"fp-armv8", 0, 0},  {"neon", 0, 1}, {"aes", 0, 3},      {"sha2", 0, 6},       {"crc", 0, 7},   {"lse", 0, 8},
    {"fullfp16", 0, 10}, {"rdm", 0, 12}, {"jsconv", 0, 13},  {"complxnum", 0, 14}, {"rcpc", 0, 15}, {"sha3", 0, 17},
    {"dotprod", 0, 20},  {"sve", 0, 22}, {"fp16fml", 0, 23}, {"sve2", 1, 1},       {"i8mm", 1, 13}, {"bf16", 1, 14}};
#else
constexpr Bit kBits[] = {{"vfp2", 0, 6},       {"neon", 0, 12},  {"vfp3", 0, 13}, {"vfp4", 0, 16},
                         {"hwdiv-arm", 0, 17}, {"hwdiv", 0, 18}, {"d32", 0, 19},  {"fullfp16", 0, 23},
                         {"dotprod", 0, 24},   {"i8mm", 0, 27}};
#endif
#endif

}  // namespace

const char* Architecture() {
#if defined(__x86_64__)
  return "x86_64";
#elif defined(__aarch64__)
  return "aarch64";
#elif defined(__arm__) && __ARM_ARCH >= 7
  return "armv7";
#elif defined(__riscv) && __riscv_xlen == 64
  return "riscv64";
#elif defined(__i386__)
  return "i386";
#else
  return "an unknown processor";
#endif
}

Features::Features() {
#ifdef RUNNEL_HWCAP
  flags_ = getauxval(AT_HWCAP);
  more_flags_ = getauxval(AT_HWCAP2);
#endif
#if defined(__x86_64__) || defined(__i386__) || !defined(RUNNEL_HWCAP)
  char found[sizeof text_];
  const size_t n = ReadSmallFile("/proc/cpuinfo", found, sizeof found);
  for (size_t at = 0; at < n;) {
    const char* line = found + at;
    const auto* stop = static_cast<const char*>(memchr(line, '\n', n - at));
    const size_t bytes = stop ? static_cast<size_t>(stop - line) : n - at;
    at += bytes + 1;
    const auto* colon = static_cast<const char*>(memchr(line, ':', bytes));
    const Text text = {line, bytes};
    if (!colon || !(text.Starts("flags") || text.Starts("Features") || text.Starts("features"))) continue;
    const auto named = static_cast<size_t>(line + bytes - colon);
    if (bytes_ + named > sizeof text_) break;
    memcpy(text_ + bytes_, colon, named);
    text_[bytes_] = ' ';
    bytes_ += named;
  }
#endif
}

bool Features::Lists(Text word) const {
  for (size_t at = 0; at < bytes_;) {
    while (at < bytes_ && (text_[at] == ' ' || text_[at] == '\t')) ++at;
    const size_t start = at;
    while (at < bytes_ && text_[at] != ' ' && text_[at] != '\t') ++at;
    if (Text{text_ + start, at - start}.Is(word)) return true;
  }
  return false;
}

bool Features::Has(Text feature) const {
#ifdef RUNNEL_HWCAP
  for (const Bit& bit : kBits) {
    if (feature.Is(bit.llvm)) return ((bit.word ? more_flags_ : flags_) >> bit.bit) & 1;
  }
#endif
  for (const Alias& alias : kAliases) {
    if (feature.Is(alias.llvm)) return Lists({alias.system, strlen(alias.system)});
  }
  return Lists(feature);
}

}  // namespace runnel
