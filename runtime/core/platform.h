// All that the core asks of the machine.
#ifndef RUNNEL_PLATFORM_H_
#define RUNNEL_PLATFORM_H_

#include <cstddef>
#include <cstdint>

namespace runnel {

// Zeroed memory aligned to 64 bytes, or null. Called by rn_open only.
void* PlatformAlloc(size_t bytes);
void PlatformFree(void* block);

// While one lives, denormal numbers count as zero on this thread; the mode is put back at the end.
class FlushDenormals {
 public:
  FlushDenormals();
  ~FlushDenormals();
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;

 private:
  uint64_t saved_;
};

}  // namespace runnel

#endif  // RUNNEL_PLATFORM_H_
