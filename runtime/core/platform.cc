#include "platform.h"

#include <cstdlib>
#include <cstring>

#if defined(__x86_64__) || defined(__i386__)
#include <xmmintrin.h>
#endif

namespace runnel {

void* PlatformAlloc(size_t bytes) {
  size_t rounded = (bytes + 63) & ~size_t{63};
  if (rounded < bytes) return nullptr;
  void* block = nullptr;
  if (posix_memalign(&block, 64, rounded ? rounded : 64) != 0) return nullptr;
  memset(block, 0, rounded);
  return block;
}

void PlatformFree(void* block) { free(block); }

#if defined(__x86_64__) || defined(__i386__)

FlushDenormals::FlushDenormals() : saved_(_mm_getcsr()) {
  constexpr unsigned kFlushToZero = 0x8000, kDenormalsAreZero = 0x0040;
  _mm_setcsr(static_cast<unsigned>(saved_) | kFlushToZero | kDenormalsAreZero);
}
FlushDenormals::~FlushDenormals() { _mm_setcsr(static_cast<unsigned>(saved_)); }

#elif defined(__aarch64__)

FlushDenormals::FlushDenormals() {
  uint64_t mode;
  __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
  saved_ = mode;
  constexpr uint64_t kFlushToZero = uint64_t{1} << 24;
  __asm__ volatile("msr fpcr, %0" ::"r"(mode | kFlushToZero));
}
FlushDenormals::~FlushDenormals() { __asm__ volatile("msr fpcr, %0" ::"r"(saved_)); }

#else

FlushDenormals::FlushDenormals() : saved_(0) {}
FlushDenormals::~FlushDenormals() { (void)saved_; }

#endif

}  // namespace runnel
