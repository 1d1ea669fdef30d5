#include "slots.h"

#include <cstring>

#include "angles.h"

namespace runnel {

uint8_t* Slots::KeyAt(int64_t slot, int64_t* step, int64_t* rows) const {
  const int64_t item = ItemBytes(cache_.key_bits);
  *rows = cache_.key_bits == 4 ? cache_.key_dim / 2 : cache_.key_dim;
  *step = cache_.block * item;
  return keys_ + (slot / cache_.block * *rows * cache_.block + slot % cache_.block) * item;
}

void Slots::Move(int64_t from, int64_t to) const {
  if (from == to) return;
  const auto item = static_cast<size_t>(ItemBytes(cache_.key_bits));
  int64_t step, rows;
  const uint8_t* source = KeyAt(from, &step, &rows);
  uint8_t* target = KeyAt(to, &step, &rows);
  for (int64_t i = 0; i < rows; ++i) memcpy(target + i * step, source + i * step, item);
  const int64_t bytes = ValueBytes(cache_, 1);
  memcpy(values_ + to * bytes, values_ + from * bytes, static_cast<size_t>(bytes));
  if (Coded(cache_.key_bits)) memcpy(key_scales_ + to * 4, key_scales_ + from * 4, 4);
  if (Coded(cache_.value_bits)) memcpy(value_scales_ + to * 4, value_scales_ + from * 4, 4);
  marks_[to] = marks_[from];
  if (ranks_) ranks_[to] = ranks_[from];
}

void Slots::Copy(int64_t slot, const Block& block, int64_t place) const {
  const auto item = static_cast<size_t>(ItemBytes(cache_.key_bits));
  int64_t step, rows;
  const uint8_t* key = KeyAt(slot, &step, &rows);
  uint8_t* copied = block.keys + place * static_cast<int64_t>(item);
  for (int64_t i = 0; i < rows; ++i) memcpy(copied + i * step, key + i * step, item);
  const int64_t bytes = ValueBytes(cache_, 1);
  memcpy(block.values + place * bytes, values_ + slot * bytes, static_cast<size_t>(bytes));
  if (Coded(cache_.key_bits)) memcpy(block.key_scales + place * 4, key_scales_ + slot * 4, 4);
  if (Coded(cache_.value_bits)) memcpy(block.value_scales + place * 4, value_scales_ + slot * 4, 4);
}

void Slots::Recount(int64_t slot) const {
  if (!ranks_) return;
  const bool replaced = slot < head_.count;
  const int32_t rank = replaced ? ranks_[slot] : 0;
  for (int64_t s = 0; replaced && s < head_.count; ++s) ranks_[s] -= ranks_[s] > rank ? 1 : 0;
  ranks_[slot] = static_cast<int32_t>(replaced ? head_.count - 1 : head_.count);
}

void Slots::Drop(int64_t slot) const {
  if (ranks_) {
    for (int64_t s = 0; s < head_.count; ++s) ranks_[s] -= ranks_[s] > ranks_[slot] ? 1 : 0;
  }
  Move(--head_.count, slot);
  ++head_.dropped;
}

void Slots::Merge(int64_t from, int64_t into) const {
  Mark &a = marks_[from], &b = marks_[into];
  const float whole = a.extra + b.extra, share = a.extra / whole;
  int64_t step, rows;
  auto* source = reinterpret_cast<float*>(KeyAt(from, &step, &rows));
  auto* target = reinterpret_cast<float*>(KeyAt(into, &step, &rows));
  const int64_t apart = step / 4;
  for (int32_t p = 0; p < (ranks_ ? 0 : cache_.pairs); ++p) {
    double cosine, sine;
    Turn(b.position - a.position, cache_.turns + 2 * p, &cosine, &sine);
    float& x = source[(cache_.start + p) * apart];
    float& y = source[(cache_.start + cache_.pairs + p) * apart];
    const double turned = static_cast<double>(x) * cosine - static_cast<double>(y) * sine;
    y = static_cast<float>(static_cast<double>(y) * cosine + static_cast<double>(x) * sine);
    x = static_cast<float>(turned);
  }
  for (int64_t i = 0; i < rows; ++i) target[i * apart] += share * (source[i * apart] - target[i * apart]);
  if (cache_.value_bits > 0) {  // values apart from keys
    const auto* value = reinterpret_cast<const float*>(values_) + from * cache_.value_dim;
    auto* mean = reinterpret_cast<float*>(values_) + into * cache_.value_dim;
    for (int32_t i = 0; i < cache_.value_dim; ++i) mean[i] += share * (value[i] - mean[i]);
  }
  b.extra = whole;
  b.mass += a.mass;
}

}  // namespace runnel
