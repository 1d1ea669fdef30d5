// Whose bundles and programs a board runs: keys in files, signatures in a bundle's entry manifest.sig.
//
// A file of keys has a line of 64 hexadecimal digits for each; what follows # is not read. manifest.sig has a line for
// each signature: "ed25519 ROLE KEY SIGNATURE". What is signed is "runnel ROLE 1\n" and then, for the role "bundle",
// the manifest, which holds the sha256 of every entry; for "program", the sha256 of runnel-run.
#ifndef RUNNEL_SIGN_TRUST_H_
#define RUNNEL_SIGN_TRUST_H_

#include <cstddef>
#include <cstdint>

namespace runnel_sign {

constexpr char kBoardKeys[] = "/etc/runnel/trusted.pub", kStoreKeys[] = "trusted.pub";
constexpr int kMostKeys = 16;

struct Keys {
  uint8_t key[kMostKeys][32];
  int count = 0;
  bool told = false;  // whether a file is there, be it one that holds no key: then nothing is trusted

  void Read(const char* path);
  bool Signed(const char* role, const void* bytes, size_t n, const char* signatures, size_t signature_bytes) const;
};

// Whether text is one or more whole lines of keys.
bool AreKeys(const char* text, size_t n);

}  // namespace runnel_sign

#endif  // RUNNEL_SIGN_TRUST_H_
