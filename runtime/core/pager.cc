#include "pager.h"

#include <cstdio>
#include <cstring>
#include <initializer_list>
#include <new>

#include "files.h"
#include "platform.h"
#include "reserve.h"

namespace runnel {
namespace {

constexpr uint64_t kMostSegment = uint64_t{1} << 20;

}  // namespace

Pager* Pager::Make(size_t weights_bytes) {
  void* block = PlatformAlloc(sizeof(Pager));
  if (!block) return nullptr;
  auto* pager = new (block) Pager(weights_bytes);
  pthread_mutex_init(&pager->lock_, nullptr);
  pager->base_ = Reserve(weights_bytes);
  if (pager->base_) return pager;
  pager->~Pager();
  PlatformFree(block);
  return nullptr;
}

Pager::~Pager() {
  if (budget_) budget_->Retire(share_);
  storage_.Close();  // first: reads go to the memory below
  Unreserve(base_, weights_bytes_);
  Unreserve(buffers_, buffers_bytes_);
  Unreserve(blocks_, block_bytes_ * kBlocks);
  PlatformFree(memory_);
  if (budget_) budget_->Leave(share_);
  pthread_mutex_destroy(&lock_);
}

int32_t Pager::SegmentOf(uint64_t offset) const {
  int32_t low = 0, high = segments_.size;
  while (high - low > 1) {
    const int32_t middle = (low + high) / 2;
    (segments_[middle].offset <= offset ? low : high) = middle;
  }
  return low;
}

bool Pager::Mark(Program& program, Message message) {
  const auto fail = [&](const char* what) {
    if (message.text && message.bytes) snprintf(message.text, message.bytes, "%s; compile the model again", what);
    return false;
  };
  uint64_t covered = 0;
  for (const Segment& segment : segments_) {
    if (segment.offset != covered || !segment.bytes || segment.bytes > kMostSegment || segment.bytes % kPage) {
      return fail("the weights are not laid out in segments for storage");
    }
    covered += segment.bytes;
  }
  if (covered != weights_bytes_) return fail("the weights' segments do not cover them");
  for (Operand& operand : program.operands) {
    if (operand.kind == OperandKind::kWeights)
      operand.buffer = SegmentOf(static_cast<uint64_t>(operand.weights_offset));
  }
  for (const Span<Instruction>* code : {&program.instructions, &program.prefill}) {
    for (const Instruction& instruction : *code) {
      if (instruction.op != InstructionOp::kFetch) continue;
      const int64_t blocks = (instruction.rows + instruction.in_block - 1) / instruction.in_block;
      for (int64_t b = 0; b < blocks; ++b) {
        const auto at = static_cast<uint64_t>(instruction.table + b * instruction.block_bytes);
        Segment& segment = segments_[SegmentOf(at)];
        const bool last = b == blocks - 1;
        if (segment.offset != at || (!last && segment.bytes != static_cast<uint64_t>(instruction.block_bytes))) {
          return fail("a table is not laid out in segments of its rows");
        }
        segment.table = true;
        if (segment.bytes > block_bytes_) block_bytes_ = segment.bytes;
      }
    }
  }
  for (const Span<Instruction>* code : {&program.instructions, &program.prefill}) MarkForced(*code);
  for (Segment& segment : segments_) {
    segment.units = units_.Holds(segment.offset);
    if (segment.units && (segment.streams || segment.table)) return fail("units share a segment with other weights");
    if (!segment.streams && !segment.table && !segment.units) segment.forced = true;  // what streams start with, caches
  }
  return true;
}

// What a pass streams; constants larger than a segment, and those that a pass needs twice, stay in memory.
void Pager::MarkForced(const Span<Instruction>& code) {
  int32_t before = -1;  // the highest segment so far
  for (int32_t i = 0; i < code.size; i += 1 + code[i].body) {
    int32_t here = before;
    EachOf(code, i, [&](int32_t s) {
      segments_[s].streams = true;
      if (s < before) segments_[s].forced = true;
      if (s > here) here = s;
    });
    before = here;
    for (int32_t k = i; k <= i + code[i].body; ++k) {
      for (int32_t o = 0; code[k].op == InstructionOp::kCall && o < code[k].operands; ++o) {
        const Operand& operand = program_->operands[code[k].first_operand + o];
        if (operand.kind != OperandKind::kWeights) continue;
        const auto end = static_cast<uint64_t>(operand.weights_offset + operand.offset);
        const Segment& first = segments_[operand.buffer];
        if (end <= first.offset + first.bytes) continue;
        for (int32_t s = operand.buffer; s < segments_.size && segments_[s].offset < end; ++s) {
          segments_[s].forced = true;
        }
      }
    }
  }
}

int Pager::Open(Program& program, const rn_paging& paging, uint64_t used, Message message) {
  program_ = &program;
  const auto fail = [&](int code, const char* what) {
    if (message.text && message.bytes) snprintf(message.text, message.bytes, "%s", what);
    return code;
  };
  const int32_t instructions =
      program.instructions.size > program.prefill.size ? program.instructions.size : program.prefill.size;
  const size_t clocks = static_cast<size_t>(program.clocks.size) * sizeof(int64_t);
  const size_t segments = sizeof(Segment) * static_cast<size_t>(paging.segment_count);
  const size_t passes = sizeof(int32_t) * static_cast<size_t>(2 * paging.segment_count + 2 * program.operands.size + 2);
  own_ = sizeof(Pager) + 2 * clocks + segments + passes + 3 * static_cast<size_t>(instructions);
  memory_ = PlatformAlloc(own_);
  if (!memory_) return fail(RN_NO_MEMORY, "not enough memory for the program");
  auto* next = static_cast<uint8_t*>(memory_);
  clocks_ = reinterpret_cast<int64_t*>(next);
  clocks_next_ = reinterpret_cast<int64_t*>(next + clocks);
  segments_ = {reinterpret_cast<Segment*>(next + 2 * clocks), paging.segment_count};
  pass_ = {reinterpret_cast<int32_t*>(next + 2 * clocks + segments), static_cast<int32_t>(passes / sizeof(int32_t))};
  due_ = reinterpret_cast<bool*>(next + 2 * clocks + segments + passes);
  due_next_ = due_ + instructions;
  ran_ = due_next_ + instructions;
  memset(ran_, 0, static_cast<size_t>(instructions));
  for (int32_t i = 0; i < segments_.size; ++i) {
    const rn_segment& given = paging.segments[i];
    segments_[i] = {given.offset, given.bytes, given.crc32c,        false, false, false, false, false,
                    false,        false,       base_ + given.offset};
  }
  if (units_.Open(program, paging, &storage_) != RN_OK) return fail(RN_NO_MEMORY, "not enough memory for the program");
  if (!Mark(program, message)) return RN_BAD_PLAN;
  for (const Span<Instruction>* code : {&program.instructions, &program.prefill}) {
    for (int32_t i = 0; i < code->size; i += 1 + (*code)[i].body) {
      int32_t at_once = 0;
      EachOf(*code, i, [&](int32_t s) { at_once += !segments_[s].forced; });
      if (at_once > most_at_once_) most_at_once_ = at_once;
    }
  }
  if (most_at_once_ + 1 > kMostReads / 2) return fail(RN_UNSUPPORTED, "an instruction needs too many segments at once");
  for (const Segment& segment : segments_) {
    if (segment.streams && !segment.forced && segment.bytes > slot_bytes_) slot_bytes_ = segment.bytes;
  }
  used_ = used + paging.elsewhere;
  file_offset_ = paging.offset;
  patience_ns_ = paging.patience_us * 1000;
  goes_on_ = paging.slow == RN_SLOW_GO_ON;
  streams_ = paging.streams;
  Measure();
  if (const int error = storage_.Open(paging.path, paging.io, paging.threads)) {
    if (message.text && message.bytes) {
      snprintf(message.text, message.bytes, "'%s' cannot be read: %s", paging.path, ErrorText(error));
    }
    return RN_STORAGE;
  }
  most_slots_ = slot_bytes_ ? most_at_once_ + kMostAhead : 0;  // of addresses; memory is taken when it is used
  buffers_bytes_ = slot_bytes_ * static_cast<uint64_t>(most_slots_) + (slot_bytes_ ? kLargePage : 0);
  large_ = HasLargePages();
  if (buffers_bytes_ && !(buffers_ = Reserve(buffers_bytes_))) return fail(RN_NO_MEMORY, "not enough address space");
  if (block_bytes_ && !(blocks_ = Reserve(block_bytes_ * kBlocks)))
    return fail(RN_NO_MEMORY, "not enough address space");
  for (Block& block : block_) block = {-1, 0};
  if (const int code = Begun(paging, message)) return code;
  const int code = LoadForced();
  return code == RN_OK ? RN_OK : fail(code, error_);
}

// Its part of a budget, shared or its own.
int Pager::Begun(const rn_paging& paging, Message message) {
  uint64_t least = facts_.least;
  int code = RN_OK;
  if (paging.budget) {
    share_.pager = this;
    auto* budget = reinterpret_cast<Budget*>(paging.budget);
    code = budget->Join(share_, paging.priority, &least);
    if (code != RN_NO_MEMORY) budget_ = budget;
  } else if (!Choose(paging.ram)) {
    code = RN_NO_MEMORY;
  }
  if (code == RN_OK || !message.text || !message.bytes) return code;
  uint64_t ram = paging.ram, used, others;
  if (paging.budget) reinterpret_cast<Budget*>(paging.budget)->Sum(&ram, &used, &others);
  snprintf(message.text, message.bytes,
           code == RN_STORAGE      ? "the programs beside it cannot give memory now"
           : least == facts_.least ? "it needs at least %llu bytes of memory and may use %llu"
                                   : "it needs at least %llu bytes of memory with the programs beside it, and they may "
                                     "use %llu",
           static_cast<unsigned long long>(least), static_cast<unsigned long long>(ram));
  return code;
}

int Pager::LoadForced() {
  for (int32_t s = 0; s < segments_.size; ++s) {
    Segment& segment = segments_[s];
    if (!segment.forced || segment.streams) continue;  // the others come with the first pass
    Coming coming = {s, -1, 0, false};
    ticket_used_[0] = true;
    ++facts_.reads;
    facts_.bytes_read += segment.bytes;
    storage_.Submit(0, file_offset_ + segment.offset, segment.bytes, base_ + segment.offset);
    if (const int code = Await(coming)) return code;
  }
  facts_.waits = facts_.stall_ns = 0;
  return RN_OK;
}

void Pager::Status(rn_paging_facts* facts) const {
  uint64_t ram = 0, used = 0, least = 0;
  if (budget_) budget_->Sum(&ram, &used, &least);
  pthread_mutex_lock(&lock_);
  *facts = facts_;
  facts->shared = ram;
  facts->shared_used = used;
  facts->shared_least = least;
  facts->io = storage_.way();
  facts->threads = storage_.threads();
  facts->direct = storage_.direct();
  units_.Count(facts);
  pthread_mutex_unlock(&lock_);
}

int Pager::Take(uint64_t bytes) {
  if (const int code = DropFrom(0)) return code;
  pass_size_ = pass_now_ = next_ = popped_ = 0;
  return Choose(bytes) ? RN_OK : RN_NO_MEMORY;
}

int32_t Pager::SetStreams(int32_t streams) {
  const int32_t before = streams_;
  streams_ = streams;
  Measure();
  return before;
}

int Pager::SetRam(uint64_t ram, int32_t streams) {
  uint64_t least;
  int code;
  if (budget_) {
    code = budget_->Resize(ram, share_, streams, &least);
  } else {
    Lock();
    const int32_t before = SetStreams(streams);
    least = facts_.least;
    code = Take(ram);
    if (code != RN_OK) SetStreams(before);
    Unlock();
  }
  if (code == RN_NO_MEMORY) {
    snprintf(error_, sizeof error_, "at least %llu bytes are needed", static_cast<unsigned long long>(least));
  }
  return code;
}

int Pager::SetPriority(int32_t priority) {
  if (!budget_) return RN_BAD_ARGUMENT;
  budget_->SetPriority(share_, priority);
  return RN_OK;
}

}  // namespace runnel
