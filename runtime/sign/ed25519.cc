#include "ed25519.h"

#include <cstring>

#include "sha512.h"

namespace runnel_sign {
namespace {

// A number modulo p = 2^255 - 19, kept below 2^256, by 32 bits from the lowest.
struct Field {
  uint32_t limb[8];
};

constexpr Field kZero = {}, kOne = {{1}};
constexpr Field kPrime = {
    {0xffffffed, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0x7fffffff}};
constexpr Field kD = {{0x135978a3, 0x75eb4dca, 0x4141d8ab, 0x00700a4d, 0x7779e898, 0x8cc74079, 0x2b6ffe73, 0x52036cee}};
constexpr Field kTwoD = {
    {0x26b2f159, 0xebd69b94, 0x8283b156, 0x00e0149a, 0xeef3d130, 0x198e80f2, 0x56dffce7, 0x2406d9dc}};
constexpr Field kRootOfMinusOne = {
    {0x4a0ea0b0, 0xc4ee1b27, 0xad2fe478, 0x2f431806, 0x3dfbd7a7, 0x2b4d0099, 0x4fc1df0b, 0x2b832480}};
constexpr uint32_t kOrder[8] = {0x5cf5d3ed, 0x5812631a, 0xa2f79cd6, 0x14def9de,
                                0x00000000, 0x00000000, 0x00000000, 0x10000000};

// 2^256 is 38 modulo p.
Field Fold(uint64_t carry, Field a) {
  carry *= 38;
  while (carry) {
    for (uint32_t& limb : a.limb) {
      carry += limb;
      limb = static_cast<uint32_t>(carry);
      carry >>= 32;
    }
    carry *= 38;
  }
  return a;
}

Field operator+(const Field& a, const Field& b) {
  Field sum;
  uint64_t carry = 0;
  for (int i = 0; i < 8; ++i) {
    carry += uint64_t{a.limb[i]} + b.limb[i];
    sum.limb[i] = static_cast<uint32_t>(carry);
    carry >>= 32;
  }
  return Fold(carry, sum);
}

Field operator-(const Field& a, const Field& b) {
  Field rest = a;
  uint64_t borrow = 0;
  for (int i = 0; i < 8; ++i) {
    const uint64_t each = uint64_t{rest.limb[i]} - b.limb[i] - borrow;
    rest.limb[i] = static_cast<uint32_t>(each);
    borrow = each >> 63;
  }
  for (borrow *= 38; borrow;) {
    for (uint32_t& limb : rest.limb) {
      const uint64_t each = uint64_t{limb} - borrow;
      limb = static_cast<uint32_t>(each);
      borrow = each >> 63;
    }
    borrow *= 38;
  }
  return rest;
}

Field operator*(const Field& a, const Field& b) {
  uint32_t wide[16] = {};
  for (int i = 0; i < 8; ++i) {
    uint64_t carry = 0;
    for (int k = 0; k < 8; ++k) {
      carry += uint64_t{a.limb[i]} * b.limb[k] + wide[i + k];
      wide[i + k] = static_cast<uint32_t>(carry);
      carry >>= 32;
    }
    wide[i + 8] = static_cast<uint32_t>(carry);
  }
  Field low;
  uint64_t carry = 0;
  for (int i = 0; i < 8; ++i) {
    carry += uint64_t{wide[i + 8]} * 38 + wide[i];
    low.limb[i] = static_cast<uint32_t>(carry);
    carry >>= 32;
  }
  return Fold(carry, low);
}

bool Below(const uint32_t a[8], const uint32_t b[8]) {
  for (int i = 7; i >= 0; --i) {
    if (a[i] != b[i]) return a[i] < b[i];
  }
  return false;
}

void Subtract(uint32_t a[8], const uint32_t b[8]) {
  uint64_t borrow = 0;
  for (int i = 0; i < 8; ++i) {
    const uint64_t each = uint64_t{a[i]} - b[i] - borrow;
    a[i] = static_cast<uint32_t>(each);
    borrow = each >> 63;
  }
}

// Below p.
Field Least(Field a) {
  while (!Below(a.limb, kPrime.limb)) Subtract(a.limb, kPrime.limb);
  return a;
}

bool operator==(const Field& a, const Field& b) {
  const Field x = Least(a), y = Least(b);
  return memcmp(x.limb, y.limb, sizeof x.limb) == 0;
}

// a to the power of 2^n - less.
Field Power(const Field& a, int n, uint32_t less) {
  Field result = kOne;
  for (int bit = n - 1; bit >= 0; --bit) {
    result = result * result;
    // Of 2^n - less, the bits above the lowest eight are ones.
    if (bit >= 8 || (256 - less) >> bit & 1) result = result * a;
  }
  return result;
}

void Load(const uint8_t bytes[32], uint32_t limb[8]) {
  for (int i = 0; i < 8; ++i) {
    const uint8_t* at = bytes + 4 * i;
    limb[i] = uint32_t{at[0]} | uint32_t{at[1]} << 8 | uint32_t{at[2]} << 16 | uint32_t{at[3]} << 24;
  }
}

// Extended coordinates: x = X / Z, y = Y / Z, x y = T / Z.
struct Point {
  Field x, y, z, t;
};

constexpr Point kNeutral = {kZero, kOne, kOne, kZero};

Point operator+(const Point& p, const Point& q) {
  const Field a = (p.y - p.x) * (q.y - q.x), b = (p.y + p.x) * (q.y + q.x);
  const Field c = p.t * kTwoD * q.t, zz = p.z * q.z, d = zz + zz;
  const Field e = b - a, f = d - c, g = d + c, h = b + a;
  return {e * f, g * h, f * g, e * h};
}

bool Decode(const uint8_t bytes[32], Point* point) {
  Load(bytes, point->y.limb);
  const uint32_t sign = point->y.limb[7] >> 31;
  point->y.limb[7] &= 0x7fffffff;
  if (!Below(point->y.limb, kPrime.limb)) return false;
  const Field yy = point->y * point->y, u = yy - kOne, v = kD * yy + kOne;
  const Field v3 = v * v * v;
  Field x = u * v3 * Power(u * v3 * v3 * v, 252, 3);
  const Field vxx = v * x * x;
  if (!(vxx == u)) {
    if (!(vxx == kZero - u)) return false;
    x = x * kRootOfMinusOne;
  }
  x = Least(x);
  if (x == kZero && sign) return false;
  if ((x.limb[0] & 1) != sign) x = kZero - x;
  point->x = x;
  point->z = kOne;
  point->t = x * point->y;
  return true;
}

void Encode(const Point& point, uint8_t bytes[32]) {
  const Field inverse = Power(point.z, 255, 21);
  const Field x = Least(point.x * inverse), y = Least(point.y * inverse);
  for (int i = 0; i < 32; ++i) bytes[i] = static_cast<uint8_t>(y.limb[i / 4] >> (8 * (i % 4)));
  bytes[31] |= static_cast<uint8_t>((x.limb[0] & 1) << 7);
}

// A number of 512 bits modulo the order of the group.
void Reduce(const uint8_t wide[64], uint32_t least[8]) {
  memset(least, 0, 32);
  for (int bit = 511; bit >= 0; --bit) {
    for (int i = 7; i > 0; --i) least[i] = least[i] << 1 | least[i - 1] >> 31;
    least[0] = least[0] << 1 | (wide[bit / 8] >> (bit % 8) & 1u);
    if (!Below(least, kOrder)) Subtract(least, kOrder);
  }
}

}  // namespace

bool Verify(const uint8_t key[32], const uint8_t signature[64], const void* first, size_t first_bytes,
            const void* second, size_t second_bytes) {
  uint8_t base[32], digest[64], found[32];
  memset(base, 0x66, sizeof base);
  base[0] = 0x58;
  Point b, a;
  uint32_t s[8], h[8];
  Load(signature + 32, s);
  if (!Below(s, kOrder) || !Decode(base, &b) || !Decode(key, &a)) return false;
  Sha512 sum;
  sum.Add(signature, 32);
  sum.Add(key, 32);
  sum.Add(first, first_bytes);
  sum.Add(second, second_bytes);
  sum.Finish(digest);
  Reduce(digest, h);
  a.x = kZero - a.x;
  a.t = kZero - a.t;
  Point r = kNeutral;  // s b - h a
  for (int bit = 255; bit >= 0; --bit) {
    r = r + r;
    if (s[bit / 32] >> (bit % 32) & 1) r = r + b;
    if (h[bit / 32] >> (bit % 32) & 1) r = r + a;
  }
  Encode(r, found);
  return memcmp(found, signature, sizeof found) == 0;
}

}  // namespace runnel_sign
