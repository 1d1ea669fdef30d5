// SHA-256 (FIPS 180-4).
#ifndef RUNNEL_SHA256_H_
#define RUNNEL_SHA256_H_

#include <cstddef>
#include <cstdint>

namespace runnel {

void Sha256(const uint8_t* bytes, size_t n, uint8_t digest[32]);

// 64 lower-case digits, without an end.
void WriteHex(const uint8_t digest[32], char text[64]);
// False where the text is not 64 lower-case digits.
bool ReadHex(const char* text, size_t n, uint8_t digest[32]);

}  // namespace runnel

#endif  // RUNNEL_SHA256_H_
