// What stays in memory under a budget, and in which pages.
#include "pager.h"
#include "reserve.h"

namespace runnel {
namespace {

// Buffers beyond those of the present instruction: as many reads as pay at a time, fewer where they fill large pages.
// More, where they are a small part of the budget, for a step that other programs keep from asking in time.
constexpr int32_t kAhead = 4, kAheadInLarge = 2;
constexpr uint64_t kPartAhead = 16;
// Bytes from which on what is pinned may lie in large pages: fewer are translated fast in any pages, and clearing large
// ones can take the system longer than reading what comes into them.
constexpr uint64_t kWide = uint64_t{64} << 20;

}  // namespace

// What it needs whatever the budget, at least and at most.
void Pager::Measure() {
  uint64_t forced = 0;
  passing_ = tables_ = 0;
  for (const Segment& segment : segments_) {
    if (segment.units) continue;
    (segment.forced ? forced : segment.table ? tables_ : passing_) += segment.bytes;
  }
  const uint64_t states = static_cast<uint64_t>(program_->state_bytes) * static_cast<uint64_t>(streams_);
  const uint64_t slots = LeastSlots() * slot_bytes_;
  fixed_ = used_ + own_ + block_bytes_ * kBlocks + states + forced + units_.fixed() + units_.least();
  facts_.least = share_.least = fixed_ + (slots < passing_ ? slots : passing_);
  share_.most = fixed_ + passing_ + tables_ + units_.all() - units_.least();
}

// Bytes of buffers where so many bytes are left for them and for what is pinned; 0: too few.
uint64_t Pager::BuffersFor(uint64_t room) const {
  const uint64_t least = LeastSlots(), most = room / slot_bytes_;
  if (most < least) return 0;
  uint64_t beyond = room / kPartAhead / slot_bytes_;
  beyond = beyond < kAhead ? kAhead : beyond > kMostAhead ? kMostAhead : beyond;
  const uint64_t buffers = (most < least - 1 + beyond ? most : least - 1 + beyond) * slot_bytes_;
  if (!large_) return buffers;
  const uint64_t down = buffers / kLargePage * kLargePage;  // whole large pages, where that costs little
  if (down >= (least - 1 + kAheadInLarge) * slot_bytes_) return down;
  return down + kLargePage - buffers <= room / kPartAhead ? down + kLargePage : buffers;
}

// Divides a budget among what passes, buffers and units; false where it is too small.
bool Pager::Choose(uint64_t ram) {
  if (ram < facts_.least) return false;
  uint64_t room = ram - fixed_;
  const uint64_t ahead = units_.Share(room, passing_, (LeastSlots() - 1 + kAhead) * slot_bytes_);
  room -= ahead;
  uint64_t buffers = 0;
  if (room < passing_) {
    if (!(buffers = BuffersFor(room))) return false;
    room -= buffers;
  }
  const uint64_t past = room > passing_ ? room - passing_ : 0;  // units have what weights of every step leave
  const uint64_t chosen = units_.SetRoom(units_.least() + ahead + past);
  const bool wide = large_ && room >= kWide && passing_ >= kWide;
  const auto swing = static_cast<double>(wide ? buffers / 8 : slot_bytes_ / 2);
  uint64_t spare = ahead + past + units_.least() - chosen;
  const uint64_t wanted = InLargePages(slot_bytes_ * (LeastSlots() + 1));
  loading_ = large_ && !wide && slot_bytes_ && !buffers && spare >= wanted + tables_;
  if (loading_) spare -= buffers = wanted;
  const uint64_t rounded = Pin(room, buffers && !loading_, swing, spare);
  SetPages(wide);
  slots_ = buffers ? static_cast<int32_t>(buffers / slot_bytes_) : 0;
  if (slots_ > most_slots_) slots_ = most_slots_;
  if (buffers_) {
    GiveBack(buffers_ + buffers, buffers_bytes_ - buffers);
    TakeLargePages(buffers_, buffers);
  }
  facts_.ram = ram;
  facts_.weights = weights_bytes_;
  facts_.pinned = facts_.streamed = facts_.tables = 0;
  uint64_t forced = 0;
  for (const Segment& segment : segments_) {
    if (segment.units) continue;
    (segment.pinned ? facts_.pinned : segment.table ? facts_.tables : facts_.streamed) += segment.bytes;
    forced += segment.forced ? segment.bytes : 0;
  }
  facts_.buffers = buffers;
  facts_.peak = fixed_ - forced + facts_.pinned + rounded + buffers + chosen - units_.least();
  return true;
}

// Which segments are pinned: `room` bytes of what passes, evenly spread over the pass. In large pages they come in
// stretches: while one of buffers / (1 - share) bytes is computed the buffers fill, where computing and reading take
// the same time; a quarter of that keeps reads in small groups. passes: whether some are not. swing: bytes that it may
// have more or fewer than its share so far. Returns the bytes by which their pages are more.
uint64_t Pager::Pin(uint64_t room, bool passes, double swing, uint64_t table_room) {
  const double share = passing_ > room ? static_cast<double>(room) / static_cast<double>(passing_) : 1;
  double ahead = 0;  // of the share, in bytes
  bool pins = true;
  uint64_t pinned = 0, rounded = 0;
  const auto pin = [&](Segment& segment) {
    const uint64_t pages = passes ? PagesOf(base_ + segment.offset, segment.bytes) : segment.bytes;
    if (pinned + pages > room) return false;
    pinned += pages;
    rounded += pages - segment.bytes;
    return true;
  };
  for (Segment& segment : segments_) {
    segment.leaves = segment.pinned;
    if (segment.units) continue;
    if (segment.forced) {
      segment.pinned = true;
    } else if (segment.table) {
      segment.pinned = segment.bytes <= table_room;
      table_room -= segment.pinned ? segment.bytes : 0;
    } else {
      if (ahead >= swing || ahead < -swing) pins = ahead < 0 || !passes;
      segment.pinned = pins && pin(segment);
      ahead += (segment.pinned ? 1 - share : -share) * static_cast<double>(segment.bytes);
    }
  }
  for (int32_t s = segments_.size; s-- > 0;) {
    Segment& segment = segments_[s];
    if (segment.units) continue;
    if (!segment.pinned && !segment.table) segment.pinned = pin(segment);  // what is left
    segment.leaves = segment.leaves && !segment.pinned;
    if (segment.leaves) segment.loaded = false;
    if (segment.pinned) segment.at = base_ + segment.offset;
  }
  return rounded;
}

// Buffers are only needed until all that is pinned came by way of them.
void Pager::EndLoading() {
  if (!loading_ || pass_size_ > 0 || count_ > 0) return;
  loading_ = false;
  slots_ = 0;
  facts_.buffers = 0;
  GiveBack(buffers_, buffers_bytes_);
}

// Gives back what is no longer pinned, neighbours in one piece, since a page may be in two. wide: whether what is
// pinned may lie in large pages.
void Pager::SetPages(bool wide) {
  for (int32_t first = 0, next; first < segments_.size; first = next) {
    const Segment& from = segments_[first];
    bool leaves = false;
    for (next = first; next < segments_.size && segments_[next].pinned == from.pinned; ++next) {
      leaves |= segments_[next].leaves;
    }
    const uint64_t bytes = segments_[next - 1].offset + segments_[next - 1].bytes - from.offset;
    if (leaves) GiveBack(base_ + from.offset, bytes);
    if (wide && from.pinned && bytes >= kLargePage) TakeLargePages(base_ + from.offset, bytes);
  }
}

}  // namespace runnel
