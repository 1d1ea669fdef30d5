// Reads of units: begun, waited for, checked.
#include <cstring>

#include "units.h"
#include "work_clock.h"

namespace runnel {
namespace {

constexpr int32_t kGuessedReads = kUnitReads / 2;  // at a time: what is needed now does not wait for a place

int64_t Least(int64_t a, int64_t b) { return a < b ? a : b; }

}  // namespace

int32_t Units::Pieces(const Slot& slot) const {
  return static_cast<int32_t>(program_->tables[units_[slot.unit].table].Pieces());
}

uint64_t Units::Offset(int32_t unit) const {
  const int32_t t = units_[unit].table;
  const UnitTable& table = program_->tables[t];
  return static_cast<uint64_t>(table.offset + (unit - tables_[t].first) * table.unit_bytes);
}

int32_t Units::FreeRead(const Pool& pool) const {
  int32_t free = -1;
  const int32_t most = pool.bounced ? kBounces : kUnitReads;
  for (int32_t r = 0; r < most && free < 0; ++r) {
    if (reads_[r].slot < 0) free = r;
  }
  return free;
}

// Begins to read the next piece of a slot's unit; false where too many reads are on their way.
bool Units::Begin(int32_t s, bool guess) {
  Slot& slot = slots_[s];
  const Pool& pool = pools_[slot.pool];
  const int32_t r = FreeRead(pool);
  if (r < 0) return false;
  const int32_t piece = slot.begun++;
  slot.read = -1;
  reads_[r] = {s, piece, guess, -1, -1};
  const auto at = static_cast<uint64_t>(piece) * kPiece;
  uint64_t from = Offset(slot.unit) + at;
  auto bytes = static_cast<uint64_t>(Least(kPiece, static_cast<int64_t>(pool.unit_bytes - at)));
  uint8_t* to = pool.base + static_cast<uint64_t>(s - pool.first) * pool.unit_bytes + at;
  if (pool.bounced) {
    const uint64_t end = (from + bytes + kPage - 1) / kPage * kPage;
    from = from / kPage * kPage;
    bytes = end - from;
    to = bounce_ + static_cast<uint64_t>(r) * bounce_each_;
  }
  ++facts_.reads;
  facts_.bytes_read += bytes;
  storage_->Submit(kMostReads + r, file_offset_ + from, bytes, to);
  return true;
}

// Begins one read of units that are chosen and not on their way: of the first, and of those after it with which it is
// cheaper to read what lies between than to begin another read. False where too many reads are on their way.
bool Units::BeginRun(const Table& table, const int32_t* ids, int32_t count) {
  const int32_t first = table.first + ids[0];
  const Pool& pool = pools_[table.pool];
  const int32_t r = FreeRead(pool);
  if (r < 0) return false;
  const uint64_t from = Offset(first) / kPage * kPage;
  int32_t last = first;
  for (int32_t i = 0; i < count; ++i) {
    const int32_t unit = table.first + ids[i];
    Slot& slot = slots_[units_[unit].slot];
    if (slot.begun) continue;
    const uint64_t end = Offset(unit) + pool.unit_bytes;
    const bool far = unit > last + 1 && Offset(unit) - (Offset(last) + pool.unit_bytes) > read_bytes_;
    if (unit < last || far || (end - from + kPage - 1) / kPage * kPage > bounce_each_) break;
    slot.begun = 1;
    slot.read = r;
    last = unit;
  }
  reads_[r] = {units_[first].slot, 0, false, first, last};
  const uint64_t bytes = (Offset(last) + pool.unit_bytes - from + kPage - 1) / kPage * kPage;
  ++facts_.reads;
  facts_.bytes_read += bytes;
  storage_->Submit(kMostReads + r, file_offset_ + from, bytes, bounce_ + static_cast<uint64_t>(r) * bounce_each_);
  return true;
}

void Units::DoneRun(int32_t r, int result) {
  const Read read = reads_[r];
  reads_[r].slot = -1;
  const uint8_t* at = bounce_ + static_cast<uint64_t>(r) * bounce_each_ + Offset(read.first) % kPage;
  for (int32_t unit = read.first; unit <= read.last; ++unit) {
    const int32_t s = units_[unit].slot;
    if (s < 0 || slots_[s].read != r) continue;
    Slot& slot = slots_[s];
    const Pool& pool = pools_[slot.pool];
    slot.read = -1;
    slot.done = 1;
    slot.result = result;
    if (result) continue;
    uint8_t* to = pool.base + static_cast<uint64_t>(s - pool.first) * pool.unit_bytes;
    memcpy(to, at + (Offset(unit) - Offset(read.first)), pool.unit_bytes);
    Check(slot, to, 0);
  }
}

// Whether a piece of a slot's unit is what it should be.
void Units::Check(Slot& slot, const uint8_t* at, int32_t piece) const {
  const int32_t t = units_[slot.unit].table;
  const UnitTable& table = program_->tables[t];
  const auto bytes = static_cast<uint64_t>(Least(kPiece, table.unit_bytes - piece * kPiece));
  const int64_t number = (slot.unit - tables_[t].first) * table.Pieces() + piece;
  uint32_t sum;
  memcpy(&sum, program_->weights + table.sums + 4 * number, 4);
  if (sum_(at, bytes) != sum) slot.altered = true;
}

// A read is over: checks what came.
void Units::Done(int32_t r, int result) {
  const Read read = reads_[r];
  if (read.first >= 0) {
    DoneRun(r, result);
    return;
  }
  reads_[r].slot = -1;
  Slot& slot = slots_[read.slot];
  const Pool& pool = pools_[slot.pool];
  ++slot.done;
  if (slot.guessed) slot.there_at = WorkClock();
  if (result) {
    if (!slot.result) slot.result = result;
    return;
  }
  const auto at = static_cast<uint64_t>(read.piece) * kPiece;
  const uint64_t from = Offset(slot.unit) + at;
  const auto bytes = static_cast<uint64_t>(Least(kPiece, static_cast<int64_t>(pool.unit_bytes - at)));
  uint8_t* to = pool.base + static_cast<uint64_t>(read.slot - pool.first) * pool.unit_bytes + at;
  if (pool.bounced) memcpy(to, bounce_ + static_cast<uint64_t>(r) * bounce_each_ + from % kPage, bytes);
  Check(slot, to, read.piece);
}

void Units::Reap() {
  for (int32_t r = 0; r < kUnitReads; ++r) {
    const int32_t s = reads_[r].slot;
    if (s < 0 || storage_->way() == RN_IO_PLAIN || !storage_->Done(kMostReads + r)) continue;
    bool waited;
    Done(r, storage_->Wait(kMostReads + r, 0, &waited));
    const Slot& slot = slots_[s];
    const bool failed = slot.result || slot.altered;
    if (failed && slot.begun == slot.done && slot.chosen != pools_[slot.pool].turn)
      Drop(s);  // whoever chooses it hears of that
  }
}

// The result of a read, for which it waits; Storage's kTooSlow where that takes longer than it may.
int Units::Wait(int32_t r, int64_t patience_ns) {
  bool waited = false;
  const int64_t since = WorkClock();
  int result = storage_->Wait(kMostReads + r, patience_ns, &waited);
  if (result == kTooSlow) {
    bool again;
    ++slow_;
    if (goes_on_) result = storage_->Wait(kMostReads + r, 0, &again);
  }
  if (waited) facts_.stall_ns += static_cast<uint64_t>(WorkClock() - since);
  if (result != kTooSlow) Done(r, result);
  return result;
}

// Waits for any read, so that its slot can be had.
int Units::WaitOne() {
  int32_t r = 0;
  while (r < kUnitReads && reads_[r].slot < 0) ++r;
  if (r == kUnitReads) return RN_NO_MEMORY;
  if (Wait(r, patience_ns_) != kTooSlow) return RN_OK;
  failed_at_ = Offset(slots_[reads_[r].slot].unit);
  failure_ = kTooSlow;
  return RN_STORAGE;
}

// Waits until a slot's unit is there and whole.
int Units::Await(int32_t s) {
  Slot& slot = slots_[s];
  int result = 0;
  while (!Whole(slot)) {
    int32_t r = 0;
    while (r < kUnitReads && reads_[r].slot != s) ++r;
    if (slot.read >= 0) r = slot.read;
    if (r < kUnitReads) {
      result = Wait(r, patience_ns_);
      if (result == kTooSlow) break;
      while (slot.begun < Pieces(slot) && !slot.result && !slot.altered && Begin(s, false)) {
      }
    } else if (slot.result || slot.altered) {
      result = slot.result;
      break;
    } else if (!Begin(s, false)) {
      if (const int code = WaitOne()) return code;
    }
  }
  if (Whole(slot)) return RN_OK;
  failed_at_ = Offset(slot.unit);
  failure_ = result;
  if (slot.begun == slot.done) Drop(s);
  return RN_STORAGE;
}

void Units::Pump() {
  Reap();
  int32_t guesses = 0;
  for (const Read& read : reads_) guesses += read.slot >= 0 && read.guess;
  while (queued_ > 0 && guesses < kGuessedReads) {
    const int32_t s = queue_[queue_first_];
    Slot& slot = slots_[s];
    const bool wanted = slot.unit >= 0 && slot.guessed && !slot.result && !slot.altered;
    if (wanted && slot.begun < Pieces(slot)) {
      if (!Begin(s, true)) return;
      ++guesses;
      continue;
    }
    slot.queued = false;
    queue_first_ = (queue_first_ + 1) % queue_.size;
    --queued_;
  }
}

void Units::Drain() {
  for (int32_t r = 0; r < kUnitReads; ++r) {
    if (reads_[r].slot >= 0) Wait(r, 0);
  }
  for (int32_t s = 0; s < slots_.size; ++s) {
    if (slots_[s].unit >= 0 && !Whole(slots_[s])) Drop(s);
  }
}

}  // namespace runnel
