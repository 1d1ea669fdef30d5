// Going back: what a frame took the place of, and how it is put there again.
#include <cstring>

#include "cache_policy.h"
#include "slots.h"

namespace runnel {
namespace {

// Before a note's bytes: the slot, and how many were kept.
struct NoteHead {
  int64_t slot, count;
};

// A float16 as a float32.
float FromHalf(const uint8_t* at) {
  uint16_t half;
  memcpy(&half, at, sizeof half);
  const uint32_t size = (half & 0x7fffu) << 13;
  // Below the least normal number the fraction counts steps of 2^-24.
  const float small = static_cast<float>(half & 0x3ff) * 0x1p-24f;
  const uint32_t usual = size + (112u << 23) * (size >= 0x1fu << 23 ? 2 : 1);
  float x;
  memcpy(&x, &usual, sizeof x);
  x = (half & 0x7c00) == 0 ? small : x;
  return half & 0x8000 ? -x : x;
}

// Turns a row of codes back from Hadamard's matrix, by which blocks of so many features were rotated.
void Unrotate(float* row, int64_t size, int64_t block) {
  float scale = 1;
  int64_t left = block;
  for (; left >= 4; left /= 4) scale *= 0.5f;
  if (left == 2) scale *= 0.70710678f;
  for (float* at = row; at < row + size; at += block) {
    for (int64_t apart = 1; apart < block; apart *= 2) {
      for (int64_t i = 0; i < block; ++i) {
        if (i & apart) continue;
        const float x = at[i], y = at[i + apart];
        at[i] = x + y;
        at[i + apart] = x - y;
      }
    }
    for (int64_t i = 0; i < block; ++i) at[i] *= scale;
  }
}

int64_t LargestPower(int64_t divides) { return divides & -divides; }

bool Ranks(const HeadState& head) { return PolicyOf(static_cast<Family>(head.family)).attended != nullptr; }

}  // namespace

bool GoesBack(const Program& program) {
  const Family family = program.rules.family;
  return family != Family::kSnap && family != Family::kMerge && family != Family::kExternal;
}

int64_t UndoBytes(const Cache& cache, const HeadState& head) {
  const int64_t marks = Ranks(head) ? head.slots : 1;
  const int64_t bytes = static_cast<int64_t>(sizeof(NoteHead)) + marks * static_cast<int64_t>(sizeof(Mark)) +
                        KeyBytes(cache, 1) + ValueBytes(cache, 1) + 8;
  return (bytes + 15) & ~int64_t{15};
}

void Slots::Note(uint8_t* undo, int64_t slot) const {
  const NoteHead head = {slot, head_.count};
  memcpy(undo, &head, sizeof head);
  uint8_t* at = undo + sizeof head;
  const int64_t marks = Ranks(head_) ? head_.count : slot < head_.count ? 1 : 0;
  if (marks == 0) return;
  memcpy(at, Ranks(head_) ? marks_ : marks_ + slot, static_cast<size_t>(marks) * sizeof(Mark));
  if (slot >= head_.count) return;
  at += (Ranks(head_) ? head_.slots : 1) * static_cast<int64_t>(sizeof(Mark));
  int64_t step, rows;
  const uint8_t* key = KeyAt(slot, &step, &rows);
  const int64_t item = KeyBytes(cache_, 1) / rows;
  for (int64_t i = 0; i < rows; ++i) memcpy(at + i * item, key + i * step, static_cast<size_t>(item));
  at += rows * item;
  const int64_t bytes = ValueBytes(cache_, 1);
  memcpy(at, values_ + slot * bytes, static_cast<size_t>(bytes));
  at += bytes;
  if (Coded(cache_.key_bits)) memcpy(at, key_scales_ + slot * 4, 4);
  if (Coded(cache_.value_bits)) memcpy(at + 4, value_scales_ + slot * 4, 4);
}

bool Slots::Undo(const uint8_t* undo, int64_t first, int64_t end) const {
  NoteHead head;
  memcpy(&head, undo, sizeof head);
  if (head.slot < 0 || head.slot >= head_.slots || head.count < 0 || head.count > head_.slots) return false;
  for (int64_t m = 0; m < (Ranks(head_) ? head.count : head.slot < head.count ? 1 : 0); ++m) {
    Mark mark;
    memcpy(&mark, undo + sizeof head + m * static_cast<int64_t>(sizeof mark), sizeof mark);
    if (mark.position < first || mark.position >= end) return false;
  }
  const uint8_t* at = undo + sizeof head;
  head_.count = head.count;
  const bool ranks = Ranks(head_);
  const bool replaced = head.slot < head.count;
  if (replaced && head_.dropped > 0) --head_.dropped;
  if (ranks) memcpy(marks_, at, static_cast<size_t>(head.count) * sizeof(Mark));
  if (!replaced) return true;
  if (!ranks) memcpy(marks_ + head.slot, at, sizeof(Mark));
  if (ranks_) {
    int32_t rank = 0;
    for (int64_t s = 0; s < head.count; ++s) rank += marks_[s].position < marks_[head.slot].position;
    for (int64_t s = 0; s < head.count; ++s) ranks_[s] += ranks_[s] >= rank && ranks_[s] < head_.slots - 1 ? 1 : 0;
    ranks_[head.slot] = rank;
  }
  at += (ranks ? head_.slots : 1) * static_cast<int64_t>(sizeof(Mark));
  int64_t step, rows;
  uint8_t* key = KeyAt(head.slot, &step, &rows);
  const int64_t item = KeyBytes(cache_, 1) / rows;
  for (int64_t i = 0; i < rows; ++i) memcpy(key + i * step, at + i * item, static_cast<size_t>(item));
  at += rows * item;
  const int64_t bytes = ValueBytes(cache_, 1);
  memcpy(values_ + head.slot * bytes, at, static_cast<size_t>(bytes));
  at += bytes;
  if (Coded(cache_.key_bits)) memcpy(key_scales_ + head.slot * 4, at, 4);
  if (Coded(cache_.value_bits)) memcpy(value_scales_ + head.slot * 4, at + 4, 4);
  return true;
}

void Slots::Read(int64_t slot, float* key, float* value) const {
  int64_t step, rows;
  const uint8_t* from = KeyAt(slot, &step, &rows);
  auto element = [](const uint8_t* row, int64_t apart, int64_t half, int32_t bits, int64_t i) {
    if (bits == 32) {
      float x;
      memcpy(&x, row + i * apart, sizeof x);
      return x;
    }
    if (bits == 16) return FromHalf(row + i * apart);
    if (bits == 8) return static_cast<float>(static_cast<int8_t>(row[i * apart]));
    const uint8_t code = row[(i < half ? i : i - half) * apart];
    return static_cast<float>(static_cast<int>(i < half ? code & 15 : code >> 4) - 8);
  };
  float scales[2] = {1, 1};
  if (Coded(cache_.key_bits)) memcpy(&scales[0], key_scales_ + slot * 4, 4);
  if (Coded(cache_.value_bits)) memcpy(&scales[1], value_scales_ + slot * 4, 4);
  for (int64_t i = 0; i < cache_.key_dim; ++i) {
    key[i] = scales[0] * element(from, step, cache_.key_dim / 2, cache_.key_bits, i);
  }
  // Keys that attention turns itself are not rotated.
  const bool shared = cache_.value_bits == 0;
  const int64_t both = shared ? cache_.key_dim | cache_.value_dim : cache_.key_dim;
  if (Coded(cache_.key_bits) && !ranks_) Unrotate(key, cache_.key_dim, LargestPower(both));
  if (shared) {
    memcpy(value, key, static_cast<size_t>(cache_.value_dim) * sizeof(float));
    return;
  }
  const uint8_t* row = values_ + slot * ValueBytes(cache_, 1);
  for (int64_t i = 0; i < cache_.value_dim; ++i) {
    value[i] = scales[1] * element(row, ItemBytes(cache_.value_bits), cache_.value_dim / 2, cache_.value_bits, i);
  }
  if (Coded(cache_.value_bits)) Unrotate(value, cache_.value_dim, LargestPower(cache_.value_dim));
}

}  // namespace runnel
