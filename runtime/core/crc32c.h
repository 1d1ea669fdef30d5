// CRC-32C of many blocks.
#ifndef RUNNEL_CRC32C_H_
#define RUNNEL_CRC32C_H_

#include <cstddef>
#include <cstdint>

namespace runnel {

// Asks once what the processor has: under a hypervisor the question takes as long as the sum of a page.
class Crc32c {
 public:
  Crc32c();
  uint32_t operator()(const void* bytes, size_t n, uint32_t crc = 0) const;

 private:
  bool instruction_;
};

}  // namespace runnel

#endif  // RUNNEL_CRC32C_H_
