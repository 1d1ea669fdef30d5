#include "signature.h"

#include <unistd.h>

#include <cstdio>

#include "../sign/trust.h"
#include "say.h"

namespace runnel_run {

void RequireSignature(const rn_bundle* bundle, const char* path) {
  char place[4096];
  runnel_sign::Keys keys;
  keys.Read(runnel_sign::kBoardKeys);
  const ssize_t n = readlink("/proc/self/exe", place, sizeof place - 32);
  if (n > 0) {  // a store has its programs in versions/ID/
    place[n] = 0;
    char* name = strrchr(place, '/');
    if (name) snprintf(name, 32, "/../../%s", runnel_sign::kStoreKeys);
    keys.Read(place);
  }
  if (!keys.told) return;
  size_t manifest_bytes, signature_bytes;
  const char* manifest = rn_bundle_manifest(bundle, &manifest_bytes);
  const char* signatures = rn_bundle_signatures(bundle, &signature_bytes);
  if (keys.Signed("bundle", manifest, manifest_bytes, signatures, signature_bytes)) return;
  Refuse("this board runs only what its key signed, and '%s' is %s; sign it (runnel sign) with a key of the board's.",
         path, signature_bytes ? "signed by another or altered" : "not signed");
}

}  // namespace runnel_run
