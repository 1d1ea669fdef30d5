// The processor that this runs on.
#ifndef RUNNEL_CPU_H_
#define RUNNEL_CPU_H_

#include "arena.h"

namespace runnel {

// x86_64, aarch64, arm, riscv64 …, as in a target.
const char* Architecture();

// The features that the system reports, by the words of /proc/cpuinfo and, on ARM, of the kernel's own list.
class Features {
 public:
  Features();
  // Whether the system reports any.
  bool Known() const { return bytes_ > 0 || flags_ != 0; }
  // By LLVM's name.
  bool Has(Text feature) const;

 private:
  bool Lists(Text word) const;

  char text_[16384];  // the first lists of /proc/cpuinfo
  size_t bytes_ = 0;
  uint64_t flags_ = 0, more_flags_ = 0;  // AT_HWCAP, AT_HWCAP2
};

}  // namespace runnel

#endif  // RUNNEL_CPU_H_
