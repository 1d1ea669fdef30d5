#include "angles.h"

namespace runnel {
namespace {

// The upper half of a product.
uint64_t High(uint64_t a, uint64_t b) {
#ifdef __SIZEOF_INT128__
  return static_cast<uint64_t>((static_cast<unsigned __int128>(a) * b) >> 64);
#else
  const uint64_t mask = 0xffffffffu;
  const uint64_t low = (a & mask) * (b & mask), left = (a >> 32) * (b & mask) + (low >> 32);
  const uint64_t right = (a & mask) * (b >> 32) + (left & mask);
  return (a >> 32) * (b >> 32) + (left >> 32) + (right >> 32);
#endif
}

// Taylor's series: for |x| <= pi/4 what is left out is below 2^-53 of the result.
constexpr double kSine[] = {-1.0 / 6,          1.0 / 120,          -1.0 / 5040,           1.0 / 362880,
                            -1.0 / 39916800.0, 1.0 / 6227020800.0, -1.0 / 1307674368000.0};
constexpr double kCosine[] = {-1.0 / 2,         1.0 / 24,          -1.0 / 720,           1.0 / 40320,
                              -1.0 / 3628800.0, 1.0 / 479001600.0, -1.0 / 87178291200.0, 1.0 / 20922789888000.0};

template <int kCount>
double Series(const double (&terms)[kCount], double square) {
  double sum = terms[kCount - 1];
  for (int i = kCount - 2; i >= 0; --i) sum = sum * square + terms[i];
  return sum * square;
}

}  // namespace

void Turn(int64_t position, const uint64_t turn[2], double* cosine, double* sine) {
  const auto size = position < 0 ? ~static_cast<uint64_t>(position) + 1 : static_cast<uint64_t>(position);
  // Whole turns fall off at the top.
  const uint64_t part = size * turn[1] + High(size, turn[0]);
  const uint64_t quarter = (part + (uint64_t{1} << 61)) >> 62;
  const auto rest = static_cast<int64_t>(part - (quarter << 62));
  const double x = static_cast<double>(rest) * (6.283185307179586476925286766559 / 18446744073709551616.0);
  const double square = x * x, s = x + x * Series(kSine, square), c = 1.0 + Series(kCosine, square);
  const double cosines[] = {c, -s, -c, s}, sines[] = {s, c, -s, -c};
  *cosine = cosines[quarter & 3];
  *sine = position < 0 ? -sines[quarter & 3] : sines[quarter & 3];
}

}  // namespace runnel
