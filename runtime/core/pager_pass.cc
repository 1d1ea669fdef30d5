// A pass over the instructions: reading ahead of it, waiting for what it needs, letting go of what it had.
#include <cstdio>
#include <cstring>

#include "files.h"
#include "pager.h"
#include "work_clock.h"

namespace runnel {
namespace {

constexpr double kQuarter = 1.189207115002721;  // a quarter of an octave

}  // namespace

int Pager::Fail(uint64_t offset, int result) {
  const char* why = result == kShortRead ? "the file ends before them"
                    : result == kTooSlow ? "storage takes longer than it may"
                    : result == 0        ? "they were altered or damaged"
                                         : ErrorText(result);
  snprintf(error_, sizeof error_, "the weights from byte %llu on could not be read: %s",
           static_cast<unsigned long long>(offset), why);
  return RN_STORAGE;
}

// Waits for a read, as long as patience lasts or for ever. The ticket stays in use where patience ended.
int Pager::WaitFor(int32_t ticket, int32_t segment, bool* waited) {
  const int64_t from = WorkClock();
  int result = storage_.Wait(ticket, patience_ns_, waited);
  if (result == kTooSlow) {
    bool again;
    ++facts_.late;
    if (goes_on_) result = storage_.Wait(ticket, 0, &again);
  }
  if (*waited) facts_.stall_ns += static_cast<uint64_t>(WorkClock() - from);
  if (result != kTooSlow) ticket_used_[ticket] = false;
  return result ? Fail(segments_[segment].offset, result) : RN_OK;
}

// Waits until a segment is there and whole.
int Pager::Await(Coming& coming) {
  if (coming.whole) return RN_OK;
  Segment& segment = segments_[coming.segment];
  bool waited = false;
  const int code = WaitFor(coming.ticket, coming.segment, &waited);
  facts_.waits += waited;
  if (code != RN_OK) {
    if (!ticket_used_[coming.ticket]) coming.ticket = -1;
    return code;
  }
  const uint8_t* at = Memory(segment, coming.slot);
  if (sum_(at, segment.bytes) != segment.crc) {
    coming.ticket = -1;
    return Fail(segment.offset, 0);
  }
  coming.whole = true;
  coming.ticket = -1;
  if (segment.pinned && coming.slot >= 0) {
    memcpy(base_ + segment.offset, at, segment.bytes);
    slot_used_[coming.slot] = false;
    coming.slot = -1;
  }
  segment.at = Memory(segment, coming.slot);
  if (coming.slot < 0) segment.loaded = true;
  return RN_OK;
}

int32_t Pager::FreeSlot() const {
  for (int32_t i = 0; i < slots_; ++i) {
    if (!slot_used_[i]) return i;
  }
  return -1;
}

int32_t Pager::FreeTicket() const {
  for (int32_t i = 0; i < kMostReads; ++i) {
    if (!ticket_used_[i]) return i;
  }
  return -1;
}

// Begins reads in the order of the pass while there is room for them.
void Pager::Fill() {
  while (next_ < pass_size_ && count_ < kMostReads) {
    const int32_t s = pass_[next_];
    Segment& segment = segments_[s];
    if (segment.pinned) {
      bool there = segment.loaded;
      for (int32_t k = 0; k < count_ && !there; ++k) there = Nth(k).segment == s;
      if (there) {  // in this pass's second half
        for (int32_t k = next_; k + 1 < pass_size_; ++k) pass_[k] = pass_[k + 1];
        --pass_size_;
        if (next_ < pass_now_) --pass_now_;
        continue;
      }
    }
    const bool directly = segment.pinned && (segment.forced || !large_ || slots_ == 0);
    const int32_t slot = directly ? -1 : FreeSlot(), ticket = FreeTicket();
    if ((slot < 0 && !directly) || ticket < 0) return;
    if (slot >= 0) slot_used_[slot] = true;
    ticket_used_[ticket] = true;
    Nth(count_++) = {s, slot, ticket, false};
    ++next_;
    ++facts_.reads;
    facts_.bytes_read += segment.bytes;
    storage_.Submit(ticket, file_offset_ + segment.offset, segment.bytes, Memory(segment, slot));
  }
}

// Frees the buffer of a segment on its way: when the read is over, where it was not used.
int Pager::Release(Coming& coming) {
  if (coming.ticket >= 0) {
    bool waited;
    const int result = storage_.Wait(coming.ticket, goes_on_ ? 0 : patience_ns_, &waited);
    if (result == kTooSlow) return Fail(coming.segment, result);
    ticket_used_[coming.ticket] = false;
    ++facts_.dropped;
  }
  if (coming.slot >= 0) slot_used_[coming.slot] = false;
  return RN_OK;
}

// Forgets the first of the segments on their way.
int Pager::Pop() {
  if (const int code = Release(Nth(0))) return code;
  first_ = (first_ + 1) % kMostReads;
  --count_;
  ++popped_;
  return RN_OK;
}

// Keeps the first `kept` of the segments on their way.
int Pager::DropFrom(int32_t kept) {
  for (; count_ > kept; --count_) {
    if (const int code = Release(Nth(count_ - 1))) return code;
  }
  return RN_OK;
}

// Adds what the instructions from `from` on need.
void Pager::Plan(const Span<Instruction>& code, int32_t from, const bool* due) {
  int32_t last = -1;
  for (int32_t i = from; i < code.size; i += 1 + code[i].body) {
    if (due && !due[i]) continue;
    EachOf(code, i, [&](int32_t s) {
      const Segment& segment = segments_[s];
      if (s <= last || (segment.pinned && segment.loaded) || pass_size_ == pass_.size) return;
      pass_[pass_size_++] = last = s;
    });
  }
}

void Pager::Begin(const Step* const* steps, int32_t count) {
  if (budget_) budget_->Claim(share_);
  pthread_mutex_lock(&lock_);
  error_[0] = 0;
  units_.NewStep();
  stalled_ = facts_.stall_ns + units_.stall_ns();
  const Program& program = *program_;
  const Step& first = *steps[0];
  code_ = &first.code;
  for (int32_t i = 0; i < code_->size; i += 1 + (*code_)[i].body) {
    due_[i] = false;
    if ((*code_)[i].guard >= 0 && !ran_[i]) continue;  // read when it is sure that it runs
    for (int32_t k = 0; k < count && !due_[i]; ++k) {
      const Range range = RangeOf(*steps[k], (*code_)[i]);
      due_[i] = range.low < range.high;
    }
  }
  // The next pass, if as many frames come again.
  const bool* due_next = nullptr;
  int64_t moved = 0, now = 0;
  for (int32_t c = 0; c < program.clocks.size; ++c) {
    if (program.clocks[c].op != ClockOp::kInput) continue;
    now = first.after[c];
    moved = now - first.before[c];
  }
  if (!first.lengths && moved > 0) {
    EvaluateClocks(program, now, nullptr, clocks_);
    EvaluateClocks(program, now + moved, nullptr, clocks_next_);
    for (int32_t i = 0; i < code_->size; i += 1 + (*code_)[i].body) {
      due_next_[i] = clocks_[(*code_)[i].made] < clocks_next_[(*code_)[i].made] && ((*code_)[i].guard < 0 || ran_[i]);
    }
    due_next = due_next_;
  }
  pass_size_ = popped_ = 0;
  Plan(*code_, 0, due_);
  pass_now_ = pass_size_;
  Plan(*code_, 0, due_next);
  int32_t kept = 0;
  while (kept < count_ && kept < pass_size_ && Nth(kept).segment == pass_[kept] &&
         (Nth(kept).whole || Nth(kept).ticket >= 0)) {
    ++kept;
  }
  ++facts_.passes;
  begun_ = DropFrom(kept);
  EndLoading();
  next_ = kept;
  if (begun_ == RN_OK) Fill();
}

void Pager::Decide(int32_t i, bool runs) {
  if (runs && !due_[i]) {  // the rest of its branch runs too
    for (int32_t k = i; k < code_->size && (*code_)[k].guard >= 0; ++k) {
      if ((*code_)[k].guard == (*code_)[i].guard) due_[k] = true;
    }
  }
  due_[i] = ran_[i] = runs;
}

// Begins the pass again at instruction `i`: what is on its way is not what it needs.
int Pager::Restart(int32_t i) {
  if (const int code = DropFrom(0)) return code;
  pass_size_ = popped_ = next_ = 0;
  Plan(*code_, i, due_);
  pass_now_ = pass_size_;
  Fill();
  return RN_OK;
}

int Pager::Ask(int32_t table, const int32_t* ids, int32_t count) {
  const int code = units_.Ask(table, ids, count);
  return code == RN_STORAGE ? Fail(units_.failed_at(), units_.failure()) : code;
}

int Pager::Bring(int32_t table, const int32_t* ids, int32_t count, int32_t* slots) {
  const int code = units_.Bring(table, ids, count, slots);
  return code == RN_STORAGE ? Fail(units_.failed_at(), units_.failure()) : code;
}

int Pager::Use(int32_t i) {
  if (!due_[i] || begun_ != RN_OK) return begun_;
  units_.Pump();
  int code = RN_OK;
  for (int32_t attempt = 0; attempt < 2; ++attempt) {
    bool missing = false, fresh = true;
    EachOf(*code_, i, [&](int32_t s) {
      Segment& segment = segments_[s];
      if (code != RN_OK || missing || (segment.pinned && segment.loaded)) return;
      int32_t k = 0;
      while (k < count_ && Nth(k).segment != s) ++k;
      if (k == count_) {
        missing = true;
        return;
      }
      for (; fresh && k > 0 && code == RN_OK; --k) code = Pop();
      if (code != RN_OK) return;
      fresh = false;
      code = Await(Nth(k));
      ++facts_.uses;
    });
    if (code != RN_OK || !missing) break;
    code = Restart(i);
  }
  if (code == RN_OK) Fill();
  return code;
}

void Pager::End(bool done) {
  int32_t bucket = 0;
  for (double most = 1000 * kQuarter;
       bucket < RN_STALLS - 1 && static_cast<double>(facts_.stall_ns + units_.stall_ns() - stalled_) >= most;) {
    most *= kQuarter;
    ++bucket;
  }
  ++facts_.stalls[bucket];
  while (done && count_ > 0 && popped_ < pass_now_ && Pop() == RN_OK) {
  }
  if (done) Fill();
  pthread_mutex_unlock(&lock_);
}

const uint8_t* Pager::Row(int64_t block_offset, int64_t inside) {
  const int32_t s = SegmentOf(static_cast<uint64_t>(block_offset));
  Segment& segment = segments_[s];
  ++facts_.rows;
  if (segment.pinned && segment.loaded) return segment.at + inside;
  int32_t at = 0;
  for (int32_t b = 0; b < kBlocks; ++b) {
    if (block_[b].segment == s) {
      block_[b].used = ++clock_;
      return blocks_ + static_cast<uint64_t>(b) * block_bytes_ + inside;
    }
    if (block_[b].used < block_[at].used) at = b;
  }
  if (late_row_ >= 0) {  // it goes to memory that this one may take
    bool waited;
    if (WaitFor(late_row_, s, &waited) != RN_OK && ticket_used_[late_row_]) return nullptr;
    late_row_ = -1;
  }
  int32_t ticket;
  while ((ticket = FreeTicket()) < 0) {
    if (Pop() != RN_OK) return nullptr;
  }
  uint8_t* to = segment.pinned ? base_ + segment.offset : blocks_ + static_cast<uint64_t>(at) * block_bytes_;
  if (!segment.pinned) block_[at].segment = -1;
  ticket_used_[ticket] = true;
  ++facts_.reads;
  facts_.bytes_read += segment.bytes;
  storage_.Submit(ticket, file_offset_ + segment.offset, segment.bytes, to);
  bool waited = false;
  if (WaitFor(ticket, s, &waited) != RN_OK) {
    if (ticket_used_[ticket]) late_row_ = ticket;
    return nullptr;
  }
  if (sum_(to, segment.bytes) != segment.crc) {
    Fail(segment.offset, 0);
    return nullptr;
  }
  if (segment.pinned) {
    segment.loaded = true;
  } else {
    block_[at] = {s, ++clock_};
  }
  return to + inside;
}

}  // namespace runnel
