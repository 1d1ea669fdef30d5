// Reads lines of key, signature and message in hexadecimal digits (a message after x), and prints 1 where the signature
// holds; for lines that begin with sha512 the digest of the message.
#include <cstdio>
#include <cstring>

#include "../../runtime/sign/ed25519.h"
#include "../../runtime/sign/sha512.h"

namespace {

size_t Bytes(const char* text, unsigned char* bytes) {
  const size_t n = strlen(text) / 2;
  for (size_t i = 0; i < n; ++i) sscanf(text + 2 * i, "%2hhx", bytes + i);
  return n;
}

}  // namespace

int main() {
  static char key[80], signature[160], message[200001];
  static unsigned char k[32], s[64], m[100000];
  while (scanf("%79s %159s %200000s", key, signature, message) == 3) {
    const size_t n = Bytes(message + 1, m);
    if (strcmp(key, "sha512") == 0) {
      runnel_sign::Sha512 sum;
      sum.Add(m, n / 3);
      sum.Add(m + n / 3, n - n / 3);
      sum.Finish(s);
      for (const unsigned char byte : s) printf("%02x", byte);
      puts("");
      continue;
    }
    Bytes(key, k);
    Bytes(signature, s);
    printf("%d\n", runnel_sign::Verify(k, s, m, n / 2, m + n / 2, n - n / 2));
  }
  return 0;
}
