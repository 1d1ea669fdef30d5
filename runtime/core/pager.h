// Weights that pass through memory (runnel_paging.h).
#ifndef RUNNEL_PAGER_H_
#define RUNNEL_PAGER_H_

#include <pthread.h>

#include "budget.h"
#include "crc32c.h"
#include "plan.h"
#include "runnel_paging.h"
#include "step.h"
#include "storage.h"
#include "units.h"

namespace runnel {

class Pager {
 public:
  // Reserves addresses for all weights: what DecodePlan is given. Null where there are none to be had.
  static Pager* Make(size_t weights_bytes);
  ~Pager();

  const uint8_t* base() const { return base_; }
  // Finds out what each instruction needs, chooses what is pinned, and reads what must be there from the start.
  int Open(Program& program, const rn_paging& paging, uint64_t used, Message message);

  // Around a pass over the steps' instructions, of which there is one at a time. Begin begins to read what it needs and
  // what comes after it.
  void Begin(const Step* const* steps, int32_t count);
  // Whether instruction `i`, which lies under a SKIP_IF, runs in this pass; Begin took it to be as in the last one.
  void Decide(int32_t i, bool runs);
  // Brings what instruction `i` needs into memory; releases what came before it.
  int Use(int32_t i);
  // done: the pass came to its end.
  void End(bool done);

  // Where a constant lies, for the instruction that Use was called for.
  const uint8_t* At(const Operand& operand) const {
    const Segment& segment = segments_[operand.buffer];
    return segment.at + (operand.weights_offset - static_cast<int64_t>(segment.offset));
  }
  // A row of a table, null where it cannot be read.
  const uint8_t* Row(int64_t block_offset, int64_t inside);

  // Units of a table (units.h): which are wanted, where they are, which are likely to follow, and where slots begin.
  int Ask(int32_t table, const int32_t* ids, int32_t count);
  int Bring(int32_t table, const int32_t* ids, int32_t count, int32_t* slots);
  void Guess(int32_t table, const int32_t* ids, int32_t count, bool certain) {
    units_.Guess(table, ids, count, certain);
  }
  const uint8_t* UnitSlots(int32_t table) const { return units_.Base(table); }
  int32_t UnitSlotCount(int32_t table) const { return units_.Slots(table); }

  void Status(rn_paging_facts* facts) const;
  const char* error() const { return error_; }
  int SetRam(uint64_t ram, int32_t streams);
  int SetPriority(int32_t priority);

  // For a budget that this program shares. Take: with the lock held, moves to another part of it.
  bool TryLock() { return pthread_mutex_trylock(&lock_) == 0; }
  void Lock() { pthread_mutex_lock(&lock_); }
  void Unlock() { pthread_mutex_unlock(&lock_); }
  int Take(uint64_t bytes);
  int32_t SetStreams(int32_t streams);
  uint64_t peak() const { return facts_.peak; }

 private:
  struct Segment {
    uint64_t offset, bytes;
    uint32_t crc;
    bool pinned, loaded, leaves, table, forced, streams, units;  // leaves: it is pinned no longer
    const uint8_t* at;
  };
  // A segment on its way: in a buffer, or where it is pinned (slot -1).
  struct Coming {
    int32_t segment, slot, ticket;
    bool whole;
  };
  struct Block {
    int32_t segment;
    uint64_t used;
  };
  static constexpr int32_t kBlocks = 4, kMostAhead = 12;  // kMostAhead: buffers beyond those of an instruction

  explicit Pager(size_t weights_bytes) : weights_bytes_(weights_bytes) {}

  int32_t SegmentOf(uint64_t offset) const;
  bool Mark(Program& program, Message message);
  template <typename F>
  void EachOf(const Span<Instruction>& code, int32_t i, F&& use) const;
  void MarkForced(const Span<Instruction>& code);
  int Begun(const rn_paging& paging, Message message);
  void Measure();
  // Segments of an instruction, and one that is on its way.
  uint64_t LeastSlots() const { return static_cast<uint64_t>(most_at_once_) + 1; }
  bool Choose(uint64_t ram);
  uint64_t BuffersFor(uint64_t room) const;
  uint64_t Pin(uint64_t room, bool passes, double swing, uint64_t table_room);
  void EndLoading();
  void SetPages(bool wide);
  int LoadForced();
  void Plan(const Span<Instruction>& code, int32_t from, const bool* due);
  void Fill();
  int WaitFor(int32_t ticket, int32_t segment, bool* waited);
  int Await(Coming& coming);
  int Release(Coming& coming);
  int Pop();
  int DropFrom(int32_t kept);
  int Restart(int32_t i);
  int Fail(uint64_t offset, int result);
  int32_t FreeSlot() const;
  int32_t FreeTicket() const;
  Coming& Nth(int32_t k) { return coming_[(first_ + k) % kMostReads]; }
  uint8_t* Memory(const Segment& segment, int32_t slot) const {
    return slot < 0 ? base_ + segment.offset : buffers_ + static_cast<uint64_t>(slot) * slot_bytes_;
  }

  uint8_t* base_ = nullptr;
  size_t weights_bytes_;
  const Program* program_ = nullptr;
  void* memory_ = nullptr;
  Span<Segment> segments_;
  Span<int32_t> pass_;  // segments in the order in which this pass and the next need them
  int32_t pass_now_ = 0, pass_size_ = 0, next_ = 0, popped_ = 0;
  bool *due_ = nullptr, *due_next_ = nullptr;
  bool* ran_ = nullptr;  // of instructions under a SKIP_IF: in the last pass
  int64_t *clocks_ = nullptr, *clocks_next_ = nullptr;
  const Span<Instruction>* code_ = nullptr;

  Coming coming_[kMostReads];
  int32_t first_ = 0, count_ = 0;
  bool ticket_used_[kMostReads] = {};
  bool slot_used_[kMostReads] = {};
  uint8_t* buffers_ = nullptr;
  uint64_t buffers_bytes_ = 0;
  int32_t slots_ = 0, most_slots_ = 0;
  bool loading_ = false;  // whether nothing passes and buffers are there until all is pinned
  bool large_ = false;    // whether buffers may lie in large pages: then what is pinned comes by way of them
  uint64_t slot_bytes_ = 0;
  int32_t most_at_once_ = 0;  // streamed segments of one instruction

  uint8_t* blocks_ = nullptr;
  Block block_[kBlocks];
  uint64_t block_bytes_ = 0, clock_ = 0;
  int32_t late_row_ = -1;  // the ticket of a row that was given up and still comes

  Storage storage_;
  Crc32c sum_;
  Units units_;
  uint64_t file_offset_ = 0, used_ = 0, own_ = 0, stalled_ = 0;
  uint64_t fixed_ = 0;                 // bytes that any budget has
  uint64_t passing_ = 0, tables_ = 0;  // that pass or are pinned; of tables
  int32_t streams_ = 0;
  Budget* budget_ = nullptr;  // null: its own
  Share share_;
  int64_t patience_ns_ = 0;
  bool goes_on_ = false;  // where storage is slow
  int begun_ = 0;         // what Begin came to
  rn_paging_facts facts_ = {};
  char error_[256] = "";
  mutable pthread_mutex_t lock_;
};

// Calls use(segment) for each segment of a top-level instruction's constants, in order of their places.
template <typename F>
void Pager::EachOf(const Span<Instruction>& code, int32_t i, F&& use) const {
  int32_t last = -1;
  for (;;) {
    int32_t next = INT32_MAX;  // the lowest one above `last`: instructions have few
    for (int32_t k = i; k <= i + code[i].body; ++k) {
      if (code[k].op != InstructionOp::kCall) continue;
      for (int32_t o = 0; o < code[k].operands; ++o) {
        const Operand& operand = program_->operands[code[k].first_operand + o];
        if (operand.kind != OperandKind::kWeights) continue;
        const auto end = static_cast<uint64_t>(operand.weights_offset + operand.offset);
        for (int32_t s = operand.buffer; s < segments_.size && segments_[s].offset < end; ++s) {
          if (s > last && s < next) next = s;
        }
      }
    }
    if (next == INT32_MAX) return;
    use(next);
    last = next;
  }
}

}  // namespace runnel

#endif  // RUNNEL_PAGER_H_
