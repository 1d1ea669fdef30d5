#include "reserve.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <initializer_list>

#include "files.h"

#ifndef MADV_COLD
#define MADV_COLD 20
#endif

namespace runnel {
namespace {

uint64_t PageBytes() { return static_cast<uint64_t>(sysconf(_SC_PAGESIZE)); }

uint64_t Address(const uint8_t* at) { return reinterpret_cast<uintptr_t>(at); }
uint64_t Down(uint64_t at, uint64_t to) { return at / to * to; }
uint64_t Up(uint64_t at, uint64_t to) { return Down(at + to - 1, to); }

struct Pages {
  uint8_t* at;
  uint64_t bytes;
};

// Those that lie in these bytes alone.
Pages Inside(uint8_t* at, uint64_t bytes) {
  const uint64_t from = Up(Address(at), PageBytes()), to = Down(Address(at) + bytes, PageBytes());
  return {at + (from - Address(at)), to > from ? to - from : 0};
}

}  // namespace

uint8_t* Reserve(uint64_t bytes) {
  bytes = Up(bytes ? bytes : 1, PageBytes());
  const uint64_t wide = bytes + kLargePage;
  void* found = mmap(nullptr, wide, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (found == MAP_FAILED) return nullptr;
  auto* all = static_cast<uint8_t*>(found);
  uint8_t* at = all + (Up(Address(all), kLargePage) - Address(all));
  if (at > all) munmap(all, static_cast<uint64_t>(at - all));
  if (at + bytes < all + wide) munmap(at + bytes, static_cast<uint64_t>(all + wide - (at + bytes)));
  madvise(at, bytes, MADV_NOHUGEPAGE);  // one byte would take 2 MiB
  return at;
}

void Unreserve(uint8_t* at, uint64_t bytes) {
  if (at) munmap(at, Up(bytes ? bytes : 1, PageBytes()));
}

void TakeLargePages(uint8_t* at, uint64_t bytes) {
  const Pages pages = Inside(at, bytes);
  if (pages.bytes) madvise(pages.at, pages.bytes, MADV_HUGEPAGE);
}

bool HasLargePages() {
  constexpr char kBytes[] = "2097152\n";  // kernels with pages of 16 or 64 KiB have larger ones, of no use here
  char text[64];
  size_t bytes = ReadSmallFile("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size", text, sizeof text);
  if (bytes != sizeof kBytes - 1 || memcmp(text, kBytes, bytes) != 0) return false;
  bytes = ReadSmallFile("/sys/kernel/mm/transparent_hugepage/enabled", text, sizeof text);
  const auto* chosen = static_cast<const char*>(memchr(text, '[', bytes));  // always, madvise or never
  return chosen && chosen + 1 < text + bytes && chosen[1] != 'n';
}

void GiveBack(uint8_t* at, uint64_t bytes) {
  const Pages pages = Inside(at, bytes);
  if (!pages.bytes) return;
  for (const int what :
       {MADV_NOHUGEPAGE, MADV_COLD, MADV_DONTNEED}) {  // COLD splits a large page of which a part stays
    madvise(pages.at, pages.bytes, what);
  }
}

uint64_t PagesOf(const uint8_t* at, uint64_t bytes) {
  return Up(Address(at) + bytes, PageBytes()) - Down(Address(at), PageBytes());
}

}  // namespace runnel
