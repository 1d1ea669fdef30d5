// Ed25519 signatures (RFC 8032, section 5.1.7), checked; nothing here is secret, so nothing takes constant time.
#ifndef RUNNEL_SIGN_ED25519_H_
#define RUNNEL_SIGN_ED25519_H_

#include <cstddef>
#include <cstdint>

namespace runnel_sign {

// Whether `signature` is one of the concatenation of two messages by the holder of `key`.
bool Verify(const uint8_t key[32], const uint8_t signature[64], const void* first, size_t first_bytes,
            const void* second, size_t second_bytes);

}  // namespace runnel_sign

#endif  // RUNNEL_SIGN_ED25519_H_
