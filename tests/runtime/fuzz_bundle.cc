// Mutates bundles and loads them; those that are accepted are verified in full. Where a change could be hidden by a
// checksum, the checksums are made again, so that what lies behind them is reached. No kernel is run: their bytes
// may be anything. Prints how many bundles were accepted and how many were refused in words.
#include <fcntl.h>
#include <unistd.h>

#include "../../runtime/core/sha256.h"
#include "harness.h"
#include "runnel_bundle.h"

namespace {

uint64_t seed = 88172645463325252u;

uint64_t Random() {
  seed ^= seed << 13;
  seed ^= seed >> 7;
  return seed ^= seed << 17;
}

uint64_t Number(const uint8_t* at, int bytes) {
  uint64_t value = 0;
  for (int i = bytes - 1; i >= 0; --i) value = value << 8 | at[i];
  return value;
}

struct Spot {
  size_t at, bytes;
};

// Where an entry of the unchanged bundle lies.
Spot Find(const Block& file, const char* name) {
  size_t at = Number(file.data + file.size - 6, 4);
  while (Number(file.data + at, 4) == 0x02014b50) {
    const size_t name_bytes = Number(file.data + at + 28, 2);
    if (name_bytes == strlen(name) && memcmp(file.data + at + 46, name, name_bytes) == 0) {
      const size_t header = Number(file.data + at + 42, 4);
      const size_t extra = Number(file.data + header + 28, 2);
      return {header + 30 + name_bytes + extra, static_cast<size_t>(Number(file.data + at + 24, 4))};
    }
    at += 46 + name_bytes + Number(file.data + at + 30, 2) + Number(file.data + at + 32, 2);
  }
  return {0, 0};
}

void Sum(uint8_t* data, Spot what, char* text) {
  uint8_t digest[32];
  runnel::Sha256(data + what.at, what.bytes, digest);
  runnel::WriteHex(digest, text);
}

void Put(uint8_t* at, size_t room) {
  static const char* const kPieces[] = {
      "{",   "}",       "[",    "]",    ",",    ":",        "\"", "null", "-1",      "1e9", "0", "9223372036854775808",
      "\\u", "\\ud800", "\x80", "\xff", "true", "\"axis\"", "\n", "\0x",  "99999999"};
  const char* piece = kPieces[Random() % (sizeof kPieces / sizeof *kPieces)];
  const size_t n = strlen(piece) ? strlen(piece) : 1;
  if (n <= room) memcpy(at, piece, n);
}

}  // namespace

int main(int count, char** arguments) {
  const int rounds = atoi(arguments[1]);
  const char* path = arguments[2];
  int accepted = 0, refused = 0;
  for (int argument = 3; argument < count; ++argument) {
    const Block original = ReadFile(arguments[argument]);
    const Spot manifest = Find(original, "manifest.json"), sum = Find(original, "manifest.sha256");
    const Spot plan = Find(original, "plan");
    const size_t start = Number(original.data + original.size - 6, 4);
    char plan_sum[64];
    Sum(original.data, plan, plan_sum);
    auto* copy = static_cast<uint8_t*>(malloc(original.size));
    for (int round = 0; round < rounds; ++round) {
      memcpy(copy, original.data, original.size);
      size_t size = original.size;
      const uint64_t kind = Random() % 8;
      for (uint64_t changes = 1 + Random() % 3; changes > 0; --changes) {
        if (kind < 3) {  // the manifest
          const size_t at = Random() % manifest.bytes;
          Put(copy + manifest.at + at, manifest.bytes - at);
        } else if (kind < 5) {  // the directory and its end
          const size_t at = start + Random() % (size - start);
          copy[at] = static_cast<uint8_t>(Random() % 3 ? Random() : Random() % 2 ? 0xff : 0);
        } else if (kind < 7) {  // the plan, with its sum made again
          const int64_t value = Random() % 2 ? static_cast<int64_t>(Random() % 64) - 8 : static_cast<int64_t>(Random());
          memcpy(copy + plan.at + Random() % (plan.bytes / 8) * 8, &value, 8);
        } else {
          copy[Random() % size] ^= static_cast<uint8_t>(1 << Random() % 8);
        }
      }
      if (kind >= 5 && kind < 7) {
        char text[64];
        Sum(copy, plan, text);
        for (size_t i = 0; i + 64 <= manifest.bytes; ++i) {
          if (memcmp(copy + manifest.at + i, plan_sum, 64) == 0) memcpy(copy + manifest.at + i, text, 64);
        }
      }
      if (kind < 7) Sum(copy, manifest, reinterpret_cast<char*>(copy + sum.at));
      if (Random() % 16 == 0) size = Random() % (size + 1);
      const int file = open(path, O_CREAT | O_TRUNC | O_WRONLY, 0600);
      if (file < 0 || write(file, copy, size) != static_cast<ssize_t>(size)) return 3;
      close(file);
      rn_bundle* bundle = nullptr;
      char message[300];
      const int code = rn_load(path, &bundle, message, sizeof message);
      if ((code == RN_OK) != (bundle != nullptr) || (code != RN_OK && !message[0])) abort();
      if (!bundle) {
        ++refused;
        continue;
      }
      ++accepted;
      const void* bytes;
      size_t n;
      rn_bundle_verify(bundle, message, sizeof message);
      rn_bundle_entry(bundle, "plan", &bytes, &n, message, sizeof message);
      for (int64_t frames = 0; frames < 5; ++frames) rn_check_length(bundle, frames, message, sizeof message);
      for (int32_t i = 0; rn_bundle_input(bundle, i); ++i) {
        if (rn_input_frame_bytes(rn_bundle_program(bundle), i) <= 0) abort();
      }
      rn_unload(bundle);
    }
    free(copy);
    free(original.data);
  }
  printf("%d %d\n", accepted, refused);
  return 0;
}
