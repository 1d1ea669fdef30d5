// Addresses whose memory is taken when it is touched, and given back.
#ifndef RUNNEL_RESERVE_H_
#define RUNNEL_RESERVE_H_

#include <cstdint>

namespace runnel {

constexpr uint64_t kLargePage = uint64_t{2} << 20;

// The bytes of as many large pages as hold so many.
constexpr uint64_t InLargePages(uint64_t bytes) { return (bytes + kLargePage - 1) / kLargePage * kLargePage; }

// From a multiple of a large page on, in pages of the usual size; null where there are no addresses to be had.
uint8_t* Reserve(uint64_t bytes);
void Unreserve(uint8_t* at, uint64_t bytes);

// All of it is going to be touched, so it may lie in large pages. A read past the system's cache into those has a few
// pieces instead of one a page.
void TakeLargePages(uint8_t* at, uint64_t bytes);
// Whether the system may have them.
bool HasLargePages();
// Gives back the pages that lie in these bytes alone; what is touched there again lies in usual ones.
void GiveBack(uint8_t* at, uint64_t bytes);
// Bytes of the pages that `bytes` bytes at `at` lie in.
uint64_t PagesOf(const uint8_t* at, uint64_t bytes);

}  // namespace runnel

#endif  // RUNNEL_RESERVE_H_
