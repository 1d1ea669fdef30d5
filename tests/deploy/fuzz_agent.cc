// Two ends of a serial line with hostile bytes between them: frames are changed, repeated, cut and made up, some with
// their checksum made right again. Where only noise was added, every byte arrives in order. And lists of files,
// changed. Prints how many bytes arrived, how many sessions were cut off by forged frames, and how many lists were
// taken.
#include <cstdio>

#include "../../runtime/agent/line.h"
#include "../../runtime/agent/spec.h"
#include "runnel.h"

using runnel_agent::Bytes;
using runnel_agent::Line;
using runnel_agent::Spec;

namespace {

uint64_t seed = 88172645463325252u;

uint64_t Random() {
  seed ^= seed << 13;
  seed ^= seed >> 7;
  return seed ^= seed << 17;
}

// A frame as another program could make it; COBS of bytes without zeros in runs.
void Forge(Bytes* out, uint32_t session) {
  uint8_t frame[600];
  const size_t n = 17 + Random() % 540;
  for (size_t i = 0; i < n; ++i) frame[i] = static_cast<uint8_t>(Random());
  frame[0] = static_cast<uint8_t>(1 + Random() % 7);
  if (Random() % 4) memcpy(frame + 1, &session, 4);
  if (Random() % 2) memset(frame + 5 + Random() % 3 * 4, Random() % 2 ? 0 : 0xff, 4);
  const uint32_t sum = Random() % 8 ? rn_crc32c(frame, n, 0) : 0;
  for (int i = 0; i < 4; ++i) frame[n + i] = static_cast<uint8_t>(sum >> (8 * i));
  *out->Add(1) = 0;
  for (size_t at = 0; at <= n + 4;) {
    size_t run = 0;
    while (at + run < n + 4 && frame[at + run] && run < 254) ++run;
    *out->Add(1) = static_cast<uint8_t>(run + 1);
    out->Put(frame + at, run);
    at += run + (run < 254);
  }
  *out->Add(1) = 0;
}

// Carries what one side sends to the other, spoiled.
void Carry(Line* from, Line* to, int64_t now, bool forged, uint32_t session) {
  Bytes& out = from->out();
  Bytes moved;
  for (size_t i = 0; i < out.size(); ++i) {
    const uint64_t chance = Random() % 4000;
    if (chance == 0) continue;
    *moved.Add(1) = static_cast<uint8_t>(out.data()[i] ^ (chance == 1 ? 1u << Random() % 8 : 0));
    if (chance == 2) *moved.Add(1) = static_cast<uint8_t>(Random());
  }
  out.Clear();
  if (forged && Random() % 4 == 0) Forge(&moved, session);
  for (size_t at = 0; at < moved.size();) {
    size_t part = 1 + Random() % 700;
    if (part > moved.size() - at) part = moved.size() - at;
    to->Receive(moved.data() + at, part, now);
    at += part;
  }
}

// A frame that opens a session, as the laptop sends it.
void Open(Line* line, uint32_t session, int64_t now) {
  uint8_t frame[21] = {1};
  memcpy(frame + 1, &session, 4);
  const uint32_t sum = rn_crc32c(frame, 17, 0);
  memcpy(frame + 17, &sum, 4);
  Bytes coded;
  *coded.Add(1) = 0;
  for (size_t at = 0; at <= sizeof frame;) {
    size_t run = 0;
    while (at + run < sizeof frame && frame[at + run]) ++run;
    *coded.Add(1) = static_cast<uint8_t>(run + 1);
    coded.Put(frame + at, run);
    at += run + 1;
  }
  *coded.Add(1) = 0;
  line->Receive(coded.data(), coded.size(), now);
}

size_t Play(bool forged, bool* whole) {
  static Line a, b;
  const auto session = static_cast<uint32_t>(Random());
  int64_t now = 0;
  Open(&a, session, now);
  Open(&b, session, now);
  a.out().Clear();
  b.out().Clear();
  const size_t total = 1 + Random() % 40000;
  Bytes sent, got;
  for (size_t i = 0; i < total; ++i) *sent.Add(1) = static_cast<uint8_t>(Random() % 3 ? Random() : 0);
  a.Write(sent.data(), sent.size());
  b.Write(sent.data(), sent.size() / 2);
  for (int turn = 0; turn < 60000 && got.size() < total; ++turn, now += 20) {
    a.Poll(now);
    b.Poll(now);
    Carry(&a, &b, now, forged, session);
    Carry(&b, &a, now, forged, session);
    got.Put(b.received().data(), b.received().size());
    b.received().Clear();
    a.received().Clear();
  }
  *whole = got.size() == total && memcmp(got.data(), sent.data(), total) == 0;
  return got.size();
}

bool ReadSpoiled(const Bytes& good) {
  Bytes text;
  text.Put(good.data(), good.size());
  for (uint64_t changes = Random() % 4; changes; --changes) {
    const size_t at = Random() % text.size();
    if (Random() % 3 == 0) {
      text.Cut(text.size() - at ? text.size() - at - 1 : 0);
      if (!text.size()) break;
    } else {
      text.data()[at] = static_cast<uint8_t>(Random() % 2 ? "0123456789abcdef\n ./"[Random() % 20] : Random());
    }
  }
  Spec spec;
  if (!spec.Read(text.data(), text.size())) return false;
  for (uint32_t chunk = 0; chunk < spec.chunks(); ++chunk) {
    if (!spec.hash(chunk)) abort();
  }
  for (int i = 0; i < Spec::kFiles; ++i) {
    uint64_t sum = 0;
    for (uint32_t chunk = 0; chunk < spec.file(i).chunks; ++chunk) sum += spec.file(i).ChunkBytes(chunk);
    if (sum != spec.file(i).size) abort();
  }
  return true;
}

}  // namespace

int main(int, char** words) {
  const int rounds = atoi(words[1]);
  size_t arrived = 0;
  int broken = 0, taken = 0;
  for (int round = 0; round < rounds; ++round) {
    bool whole;
    arrived += Play(false, &whole);
    if (!whole) return fprintf(stderr, "round %d lost bytes\n", round), 1;
    Play(true, &whole);
    broken += !whole;
  }
  Bytes good;
  good.Put("runnel-version 1\nfile model.rnl 644 70000\n");
  for (int i = 0; i < 2; ++i) {
    for (int k = 0; k < 64; ++k) *good.Add(1) = "0123456789abcdef"[Random() % 16];
    good.Put("\n");
  }
  good.Put("file runnel-run 755 5\n");
  for (int k = 0; k < 64; ++k) *good.Add(1) = 'a';
  good.Put("\n");
  for (int round = 0; round < rounds * 2000; ++round) taken += ReadSpoiled(good);
  printf("%zu %d %d\n", arrived, broken, taken);
  return 0;
}
