// SHA-512 (FIPS 180-4).
#ifndef RUNNEL_SIGN_SHA512_H_
#define RUNNEL_SIGN_SHA512_H_

#include <cstddef>
#include <cstdint>

namespace runnel_sign {

class Sha512 {
 public:
  Sha512();
  void Add(const void* bytes, size_t n);
  void Finish(uint8_t digest[64]);

 private:
  void Block(const uint8_t* bytes);

  uint64_t h_[8];
  uint8_t waiting_[128];
  uint64_t bytes_ = 0;
};

}  // namespace runnel_sign

#endif  // RUNNEL_SIGN_SHA512_H_
