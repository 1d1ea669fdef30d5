#include "units.h"

#include <cstring>
#include <initializer_list>

#include "platform.h"
#include "reserve.h"

namespace runnel {
namespace {

constexpr uint64_t kReadBytes = uint64_t{1} << 14;
constexpr uint64_t kRun = uint64_t{1} << 15;  // bytes of a read of several units, or more where one unit needs that
constexpr int32_t kMostScored = 1024;         // units of a table whose slots are compared with each other
constexpr float kRightAtFirst = 0.7f;
constexpr int32_t kMostLinked = 256;  // units of a table of which is known what follows what

size_t Place(size_t& at, size_t bytes) {
  const size_t start = (at + 15) & ~size_t{15};
  at = start + bytes;
  return start;
}

template <typename T>
void Bind(Span<T>& span, void* memory, size_t at, int64_t count) {
  span = {reinterpret_cast<T*>(static_cast<uint8_t*>(memory) + at), static_cast<int32_t>(count)};
}

}  // namespace

Units::~Units() {
  for (const Pool& pool : pools_) Unreserve(pool.base, pool.unit_bytes * static_cast<uint64_t>(pool.most));
  Unreserve(bounce_, bounce_bytes_);
  PlatformFree(memory_);
}

int32_t Units::PoolOf(int64_t unit_bytes) const {
  for (int32_t p = 0; p < pools_.size; ++p) {
    if (pools_[p].unit_bytes == static_cast<uint64_t>(unit_bytes)) return p;
  }
  return -1;
}

int Units::Open(const Program& program, const rn_paging& paging, Storage* storage) {
  program_ = &program;
  storage_ = storage;
  file_offset_ = paging.offset;
  patience_ns_ = paging.patience_us * 1000;
  policy_ = paging.units;
  goes_on_ = paging.slow == RN_SLOW_GO_ON;
  ahead_ = paging.ahead != RN_AHEAD_OFF && paging.units != RN_UNITS_NONE;
  always_ = paging.ahead == RN_AHEAD_ON;
  read_bytes_ = paging.read_bytes ? paging.read_bytes : kReadBytes;
  for (Read& read : reads_) read = {-1, 0, false, -1, -1};
  const int32_t tables = program.tables.size;
  if (tables == 0) return RN_OK;
  int64_t units = 0, chosen = 0, links = 0;
  for (int32_t t = 0; t < tables; ++t) {
    const UnitTable &table = program.tables[t], &next = program.tables[(t + 1) % tables];
    units += table.units;
    chosen += table.most;
    const bool linked = policy_ == RN_UNITS_PREDICT && table.units <= kMostLinked && next.units <= kMostLinked;
    links += linked ? table.units * next.units : 0;
  }
  if (units > INT32_MAX / 2) return RN_NO_MEMORY;
  size_t bytes = 0;
  const auto count = static_cast<size_t>(units);
  const size_t table_at = Place(bytes, sizeof(Table) * static_cast<size_t>(tables));
  const size_t pool_at = Place(bytes, sizeof(Pool) * static_cast<size_t>(tables));
  const size_t slot_at = Place(bytes, sizeof(Slot) * count), unit_at = Place(bytes, sizeof(Unit) * count);
  const size_t queue_at = Place(bytes, sizeof(int32_t) * count);
  const size_t last_at = Place(bytes, sizeof(int32_t) * static_cast<size_t>(chosen));
  const size_t foreseen_at = Place(bytes, sizeof(int32_t) * static_cast<size_t>(chosen));
  const size_t asked_at = Place(bytes, sizeof(int32_t) * static_cast<size_t>(chosen));
  const size_t allotted_at = Place(bytes, sizeof(int32_t) * static_cast<size_t>(tables));
  const size_t link_at = Place(bytes, sizeof(uint16_t) * static_cast<size_t>(links));
  memory_ = PlatformAlloc(bytes);
  if (!memory_) return RN_NO_MEMORY;
  memset(memory_, 0, bytes);
  books_ = bytes;
  Bind(tables_, memory_, table_at, tables);
  Bind(pools_, memory_, pool_at, 0);
  Bind(slots_, memory_, slot_at, units);
  Bind(units_, memory_, unit_at, units);
  Bind(queue_, memory_, queue_at, units);
  Bind(last_, memory_, last_at, chosen);
  Bind(foreseen_, memory_, foreseen_at, chosen);
  Bind(asked_, memory_, asked_at, chosen);
  Bind(allotted_, memory_, allotted_at, tables);
  Bind(links_, memory_, link_at, links);
  Layout(program);
  for (Pool& pool : pools_) {
    pool.base = Reserve(pool.unit_bytes * static_cast<uint64_t>(pool.most));
    if (!pool.base) return RN_NO_MEMORY;
    least_ += pool.unit_bytes * static_cast<uint64_t>(pool.least);
  }
  if (bounce_each_) {
    bounce_bytes_ = bounce_each_ * kBounces;
    if (!(bounce_ = Reserve(bounce_bytes_))) return RN_NO_MEMORY;
    TakeLargePages(bounce_, bounce_bytes_);
  }
  return RN_OK;
}

// Which units and slots belong to which table and pool.
void Units::Layout(const Program& program) {
  int32_t unit = 0, last = 0, link = 0;
  const int32_t tables = tables_.size;
  for (int32_t t = 0; t < tables; ++t) {
    const UnitTable &given = program.tables[t], &next = program.tables[(t + 1) % tables];
    int32_t p = PoolOf(given.unit_bytes);
    if (p < 0) {
      p = pools_.size++;
      pools_[p] = {static_cast<uint64_t>(given.unit_bytes), 0, 0, 0, 0, -1, -1, true, false, 0.0f, nullptr, 0};
    }
    Pool& pool = pools_[p];
    pool.most += static_cast<int32_t>(given.units);
    if (pool.least < given.most) pool.least = given.most;
    pool.scored &= given.units <= kMostScored && !given.window;  // neurons: a window of those chosen last
    const bool linked = policy_ == RN_UNITS_PREDICT && given.units <= kMostLinked && next.units <= kMostLinked;
    tables_[t] = {p, unit, 0.0f, 0, 0, false, last, 0, 0, 0, kRightAtFirst, 0.0f, false, linked ? link : -1,
                  0, 0,    false};
    link += linked ? static_cast<int32_t>(given.units * next.units) : 0;
    last += given.most;
    for (int64_t i = 0; i < given.units; ++i) units_[unit++] = {-1, t, 0.0f, 0.0f};
    all_ += static_cast<uint64_t>(given.units * given.unit_bytes);
    if (given.unit_bytes % kPage || given.offset % kPage) {
      pool.bounced = true;
      const auto piece = static_cast<uint64_t>(given.unit_bytes < kPiece ? given.unit_bytes : kPiece);
      const uint64_t each = (piece + 3 * kPage - 1) / kPage * kPage;
      if (each > bounce_each_) bounce_each_ = each;
      if (bounce_each_ < kRun) bounce_each_ = kRun;
    }
  }
  int32_t slot = 0;
  for (int32_t p = 0; p < pools_.size; ++p) {
    pools_[p].first = slot;
    for (int32_t i = 0; i < pools_[p].most; ++i) {
      slots_[slot++] = {-1, p, -1, -1, 0, 0, 0, false, false, false, -1, 0, 0, 0};
    }
  }
  for (const Span<Instruction>* code : {&program.instructions, &program.prefill}) {
    for (const Instruction& instruction : *code) {
      if (instruction.op != InstructionOp::kChoose) continue;
      if (instruction.target < 0) tables_[instruction.units].told = true;
      if (instruction.joined < 0) tables_[instruction.units].joined = true;
    }
  }
}

bool Units::Holds(uint64_t offset) const {
  for (int32_t t = 0; t < tables_.size; ++t) {
    const UnitTable& table = program_->tables[t];
    const auto first = static_cast<uint64_t>(table.offset);
    if (offset >= first && offset - first < static_cast<uint64_t>(table.units * table.unit_bytes)) return true;
  }
  return false;
}

// Units of a table that a frame misses where slots hold a share of all units of their size.
double Units::Missed(int32_t t, double held) const {
  const UnitTable& table = program_->tables[t];
  const double at = held * (kMissPoints - 1);
  const auto below = static_cast<int32_t>(at);
  if (below >= kMissPoints - 1) return static_cast<double>(table.misses[kMissPoints - 1]) / 256;
  const double rest = at - below;
  return ((1 - rest) * static_cast<double>(table.misses[below]) + rest * static_cast<double>(table.misses[below + 1])) /
         256;
}

uint64_t Units::Share(uint64_t room, uint64_t passing, uint64_t buffers) const {
  constexpr int32_t kSteps = 64;
  bool told = false;
  for (const UnitTable& table : program_->tables) told |= table.window;
  if (!told) return 0;
  uint64_t best = 0;
  double least = -1;
  for (int32_t step = kSteps; step >= 0; --step) {
    const double share = static_cast<double>(step) / kSteps;
    const auto more = static_cast<uint64_t>(share * static_cast<double>(all_ - least_));
    if (more > room || (room - more < passing && room - more < buffers)) continue;
    double cost = 0;  // in bytes that could be read meanwhile
    if (room - more < passing) {
      const uint64_t left = room - more > buffers ? room - more - buffers : 0;
      cost = static_cast<double>(passing - left);
    }
    for (int32_t t = 0; t < tables_.size; ++t) {
      const UnitTable& table = program_->tables[t];
      if (!table.window) continue;
      const Pool& pool = pools_[tables_[t].pool];
      const double slots = pool.least + share * static_cast<double>(pool.most - pool.least);
      const double each = static_cast<double>(read_bytes_ + pool.unit_bytes + kPage);
      const double sparse = Missed(t, slots / pool.most) * each;
      const auto whole = static_cast<double>(table.units * table.unit_bytes);
      cost += sparse < whole ? sparse : whole;
    }
    if (least >= 0 && cost >= least) continue;
    least = cost;
    best = more;
  }
  return best;
}

// Bytes that a frame reads of units of a size, with what else could be read meanwhile, where there are so many slots.
double Units::MissedBytes(int32_t p, int32_t slots) const {
  const Pool& pool = pools_[p];
  double missed = 0;
  for (int32_t t = 0; t < tables_.size; ++t) {
    if (tables_[t].pool == p) missed += Missed(t, static_cast<double>(slots) / pool.most);
  }
  return missed * static_cast<double>(pool.unit_bytes + read_bytes_);
}

// Slots of each pool. By what the plan says is missed, where it says that of all and units may go by a policy: the next
// bytes go where they save most; else the same share of every pool's units.
void Units::Allot(uint64_t room, Span<int32_t> slots) const {
  bool told = true;
  for (const UnitTable& table : program_->tables) told &= table.told && !table.window;
  const double share = all_ > least_ ? static_cast<double>(room - least_) / static_cast<double>(all_ - least_) : 1.0;
  for (int32_t p = 0; p < pools_.size; ++p) {
    const Pool& pool = pools_[p];
    const double more = share >= 1 ? pool.most - pool.least : share * static_cast<double>(pool.most - pool.least);
    slots[p] = pool.least + (told && share < 1 ? 0 : static_cast<int32_t>(more));
  }
  uint64_t left = room - least_;
  for (int32_t p = 0; told && share < 1 && p < pools_.size; ++p) {  // what is foreseen has a place beside what is there
    const Pool& pool = pools_[p];
    for (; slots[p] < 2 * pool.least && slots[p] < pool.most && left >= pool.unit_bytes; ++slots[p]) {
      left -= pool.unit_bytes;
    }
  }
  while (told && share < 1) {
    int32_t best = -1, until = 0;
    double most = -1;
    for (int32_t p = 0; p < pools_.size; ++p) {
      const Pool& pool = pools_[p];
      const double now = MissedBytes(p, slots[p]);
      for (int32_t point = 1; point < kMissPoints; ++point) {
        const auto there = static_cast<int32_t>(int64_t{pool.most} * point / (kMissPoints - 1));
        if (there <= slots[p]) continue;
        const double saved = now - MissedBytes(p, there);
        const double each = saved / (static_cast<double>(there - slots[p]) * static_cast<double>(pool.unit_bytes));
        if (each <= most || pool.unit_bytes > left) continue;
        best = p;
        until = there;
        most = each;
      }
    }
    if (best < 0) return;
    const uint64_t fits = left / pools_[best].unit_bytes, wanted = static_cast<uint64_t>(until - slots[best]);
    const uint64_t more = fits < wanted ? fits : wanted;
    slots[best] += static_cast<int32_t>(more);
    left -= more * pools_[best].unit_bytes;
  }
}

uint64_t Units::SetRoom(uint64_t room) {
  Drain();
  queued_ = 0;
  for (Slot& slot : slots_) slot.queued = false;
  Allot(room, allotted_);
  room_ = 0;
  for (int32_t p = 0; p < pools_.size; ++p) {
    Pool& pool = pools_[p];
    const int32_t slots = allotted_[p];
    for (int32_t s = pool.first + slots; s < pool.first + pool.slots; ++s) {
      Drop(s);
      Unlink(s);
    }
    if (slots < pool.slots) {
      GiveBack(pool.base + static_cast<uint64_t>(slots) * pool.unit_bytes,
               static_cast<uint64_t>(pool.slots - slots) * pool.unit_bytes);
    }
    TakeLargePages(pool.base, static_cast<uint64_t>(slots) * pool.unit_bytes);
    const int32_t before = pool.slots;
    pool.slots = slots;
    for (int32_t s = pool.first + before; s < pool.first + slots; ++s) Link(s, false);
    room_ += static_cast<uint64_t>(slots) * pool.unit_bytes;
  }
  return room_;
}

void Units::Count(rn_paging_facts* facts) const {
  facts->units = facts_;
  facts->units.all = all_;
  facts->units.room = room_;
  facts->reads += facts_.reads;
  facts->bytes_read += facts_.bytes_read;
  facts->stall_ns += facts_.stall_ns;
  facts->late += slow_;
}

// Slots, from the one used last to the one not used for longest -------------------------------------------------------

void Units::Link(int32_t s, bool newest) {
  Slot& slot = slots_[s];
  Pool& pool = pools_[slot.pool];
  slot.newer = newest ? -1 : pool.oldest;
  slot.older = newest ? pool.newest : -1;
  if (slot.newer >= 0) slots_[slot.newer].older = s;
  if (slot.older >= 0) slots_[slot.older].newer = s;
  if (slot.newer < 0) pool.newest = s;
  if (slot.older < 0) pool.oldest = s;
}

void Units::Unlink(int32_t s) {
  Slot& slot = slots_[s];
  Pool& pool = pools_[slot.pool];
  (slot.newer < 0 ? pool.newest : slots_[slot.newer].older) = slot.older;
  (slot.older < 0 ? pool.oldest : slots_[slot.older].newer) = slot.newer;
  slot.newer = slot.older = -1;
}

// Makes a slot that of a unit of which nothing was read yet.
void Units::Take(int32_t s, int32_t unit) {
  Drop(s);
  Slot& slot = slots_[s];
  slot.unit = unit;
  units_[unit].slot = s;
  Unlink(s);
  Link(s, true);
}

void Units::Drop(int32_t s) {
  Slot& slot = slots_[s];
  if (slot.unit >= 0) {
    if (slot.guessed) --tables_[units_[slot.unit].table].guessed;
    units_[slot.unit].slot = -1;
    Unlink(s);
    Link(s, false);
  }
  slot.unit = -1;
  slot.begun = slot.done = 0;
  slot.result = 0;
  slot.altered = slot.guessed = false;
  slot.chosen = slot.wanted = 0;
}

// What is lost where a slot's unit goes: how likely it is to be chosen, the less the later its layer comes.
float Units::Worth(const Slot& slot, int32_t now) const {
  const Unit& unit = units_[slot.unit];
  const Table& table = tables_[unit.table];
  if (policy_ == RN_UNITS_LFU) return unit.used;
  const int32_t ahead = (unit.table - now + tables_.size - 1) % tables_.size + 1;
  const bool foreseen = policy_ == RN_UNITS_PREDICT && ahead == 1 && tables_.size > 1;
  const float likely = foreseen ? unit.likely : unit.used / (table.choices + 1.0f);
  return likely / static_cast<float>(ahead);
}

// The slot that a unit may have while table `now` is at work, -1 where none may go.
int32_t Units::Victim(const Pool& pool, int32_t now, bool guess) const {
  int32_t best = -1;
  float least = 0.0f;
  for (const bool foreseen : {false, true}) {  // what was foreseen, or is certain, and not yet asked for goes last
    if (foreseen && guess) break;
    for (int32_t s = pool.oldest; s >= 0; s = slots_[s].newer) {
      const Slot& slot = slots_[s];
      if (slot.unit < 0) return s;
      if (slot.begun > slot.done || (slot.chosen && slot.chosen == pool.turn)) continue;
      if ((slot.guessed || slot.wanted == step_) != foreseen) continue;
      if (!pool.scored || policy_ == RN_UNITS_LRU || policy_ == RN_UNITS_NONE) return s;
      const float worth = Worth(slot, now);
      if (best >= 0 && worth >= least) continue;
      best = s;
      least = worth;
    }
    if (best >= 0) return best;
  }
  return -1;
}

}  // namespace runnel
