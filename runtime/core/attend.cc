#include "attend.h"

#include <cstring>

#include "angles.h"
#include "cache.h"
#include "cache_policy.h"
#include "runnel.h"

namespace runnel {
namespace {

using TurnKernel = int32_t (*)(const void* rows, const float* angles, float* turned);
using StoreKernel = int32_t (*)(const float* key, const void* value, void* keys, void* values, void* key_scales,
                                void* value_scales, const int32_t* words);
using AttendKernel = int32_t (*)(const float* query, const void* keys, const void* values, const void* key_scales,
                                 const void* value_scales, const int32_t* words, float* scores, const float* bias,
                                 const float* sinks, const int32_t* ranks, const float* angles, float* out);

template <typename Kernel>
Kernel As(const uint8_t* code) {
  return reinterpret_cast<Kernel>(reinterpret_cast<uintptr_t>(code));
}

using RowsKernel = int32_t (*)(const float* queries, const void* keys, const void* values, const void* key_scales,
                               const void* value_scales, const int32_t* words, float* scores, const float* sinks,
                               const void* old_keys, const void* old_values, const void* old_key_scales,
                               const void* old_value_scales, float* out);

int64_t Padded(int64_t elements) { return (elements + 15) & ~int64_t{15}; }

int64_t RowsOf(const Cache& cache) { return cache.rows > 0 ? cache.rows : 1; }

constexpr int64_t kRowsHead = 4;  // words before those of each frame

// A slot that one of the frames that attend together filled, and the slots before it that none did. seen: how many
// frames see what was there before.
struct Filled {
  int32_t from, to, slot, frame, seen;
};

// Where attention works, in elements of 4 bytes from the start of its scratch. There are turned
// queries, with second ones behind them, and keys of each of the frames that attend together.
struct Work {
  int64_t angles, queries, keys, mass, order, scores, bias;
  int64_t gathered, out, old, words, end;

  explicit Work(const Cache& cache) {
    const int64_t rows = RowsOf(cache), group = cache.heads / cache.kv_heads, all = rows * group;
    angles = 0;
    queries = angles + Padded(2 * cache.pairs);
    keys = queries + rows * 2 * QueryRow(cache);
    mass = keys + rows * KeyRow(cache);
    order = mass + cache.pitch;
    scores = order + 2 * cache.pitch;
    bias = scores + all * cache.pitch + Padded(all) + (cache.rows ? all * cache.block : 0);
    end = gathered = bias + (cache.slopes || cache.bias ? group * cache.pitch : 0);
    if (cache.rows == 0) return;
    out = gathered + 2 * all * cache.key_dim;
    old = Padded(out + all * cache.value_dim);
    words = old + OldKeys(cache) + Padded(rows * cache.value_dim) + 2 * Padded(cache.block);
    end = words + Padded(kRowsHead + rows + 5 * (rows + 1));
  }

  static int64_t QueryRow(const Cache& cache) { return Padded(int64_t{cache.heads} * cache.key_dim); }
  static int64_t KeyRow(const Cache& cache) { return Padded(int64_t{cache.kv_heads} * cache.key_dim); }
  static int64_t OldKeys(const Cache& cache) { return Padded(int64_t{cache.block} * cache.key_dim); }
};

// The slots of one cache in one stream, for the frames of one step.
class Attention {
 public:
  Attention(const Step& step, const Instruction& instruction)
      : step_(step),
        cache_(step.program.caches[instruction.cache]),
        instruction_(instruction),
        state_(*CachesOf(step.program, step.state)),
        heads_(HeadsOf(step.program, step.state) + cache_.first_head),
        group_(cache_.heads / cache_.kv_heads),
        ranked_(Ranked(step.program)),
        layout_(cache_),
        work_(reinterpret_cast<float*>(step.scratch + step.program.work_at)),
        counts_(reinterpret_cast<int32_t*>(work_ + layout_.words) + kRowsHead),
        filled_(reinterpret_cast<Filled*>(counts_ + cache_.rows)) {}

  // Takes so many frames in, at most as many as attend together.
  int Take(int64_t first, int64_t count) {
    for (int64_t r = 0; r < count; ++r) {
      if (int code = TurnFrame(first + r, r)) return code;
    }
    turned_ = -1;
    for (int32_t h = 0; h < cache_.kv_heads; ++h) {
      for (int64_t r = 0; r < count;) {
        const int64_t stored = Store(h, first, r, count);
        if (stored == 0) return RN_BAD_STATE;
        if (stored > 1) {
          AttendRows(h, first + r, r, stored);
        } else {
          AttendRow(h, first + r, r);
        }
        r += stored;
      }
    }
    const Buffer& buffer = step_.program.buffers[instruction_.out];
    for (int64_t r = 0; buffer.margin && r < count; ++r) {
      Mirror(buffer, step_.Memory(buffer), step_.Slot(buffer, first + r), 1, step_.counters);
    }
    return RN_OK;
  }

 private:
  uint8_t* Frame(int32_t buffer, int64_t number) const {
    const Buffer& ring = step_.program.buffers[buffer];
    const int64_t slot = step_.Slot(ring, number);
    return slot < 0 ? nullptr : step_.Memory(ring) + slot * ring.frame_bytes;
  }

  Arrival ArrivalOf(int32_t h, int64_t number) const {
    Arrival frame{number, state_.start + number, 0, state_.token_class};
    if (instruction_.retain >= 0) frame.retain = reinterpret_cast<const float*>(Frame(instruction_.retain, number))[h];
    return frame;
  }

  // The turned queries of a frame; second ones lie behind them.
  float* Queries(int64_t row) const { return work_ + layout_.queries + row * 2 * Work::QueryRow(cache_); }
  float* Keys(int64_t row) const { return work_ + layout_.keys + row * Work::KeyRow(cache_); }

  void TurnRows(const uint8_t* kernel, const uint8_t* frame, const float* angles, float* turned) {
    As<TurnKernel>(kernel)(frame, angles, turned);
    ++step_.counters.calls;
  }

  // Turns a frame's key, and its queries where they do not depend on what a head keeps.
  int TurnFrame(int64_t number, int64_t row) {
    const int32_t buffers[] = {instruction_.query, instruction_.key,    instruction_.value,
                               instruction_.out,   instruction_.retain, instruction_.positions};
    for (int32_t buffer : buffers) {
      if (buffer >= 0 && !Frame(buffer, number)) return RN_BAD_PLAN;
    }
    const float* angles = work_;
    if (!ranked_) {
      const int64_t* told = nullptr;
      if (instruction_.positions >= 0) told = reinterpret_cast<const int64_t*>(Frame(instruction_.positions, number));
      angles = Angles(0, state_.start + number, told);
      TurnRows(cache_.turn_query, Frame(instruction_.query, number), angles, Queries(row));
    }
    TurnRows(cache_.turn_key, Frame(instruction_.key, number), angles, Keys(row));
    return RN_OK;
  }

  // Turns queries as a head's slots ask for it, unless they are so from the head before: to the rank of their frame, or
  // for a second time, nearer to the first frames.
  void TurnQueries(const HeadState& head, int64_t number, int64_t row, int64_t count) {
    const int64_t gap = Gap(head, number);
    if (!ranked_ && (gap == 0 || cache_.pairs == 0)) return;
    // Nearer to the first frames all frames have the same position.
    const int64_t position = ranked_ ? head.count - 1 : state_.start + number - gap;
    if (turned_ == position && turned_from_ <= row && row + count <= turned_to_) return;
    turned_ = position;
    turned_from_ = row;
    turned_to_ = row + count;
    const float* angles = Angles(ranked_ ? 0 : 1, position, nullptr);
    for (int64_t r = 0; r < count; ++r) {
      float* rows = Queries(row + r) + (ranked_ ? 0 : Work::QueryRow(cache_));
      TurnRows(cache_.turn_query, Frame(instruction_.query, number + r), angles, rows);
    }
  }

  // How much nearer the query is to a head's first frames where positions count what is kept.
  int64_t Gap(const HeadState& head, int64_t number) const {
    if (step_.program.rules.positions != Positions::kContiguous || ranked_) return 0;
    return head.sink > 0 && number >= head.slots ? number + 1 - head.slots : 0;
  }

  // Cosines and sines of a position, kept from one cache to the next.
  const float* Angles(int which, int64_t position, const int64_t* told) {
    if (cache_.pairs == 0) return work_;
    const int64_t table = reinterpret_cast<const uint8_t*>(cache_.turns) - step_.program.weights;
    float* angles = work_ + layout_.angles;
    if (!told) {
      angles = AnglesOf(step_.program, step_.state) + which * step_.program.angle_pairs * 2;
      if (state_.angle_position[which] == position && state_.angle_table[which] == table) return angles;
      state_.angle_position[which] = position;
      state_.angle_table[which] = table;
    }
    for (int32_t p = 0; p < cache_.pairs; ++p) {
      double cosine, sine;
      Turn(told ? told[cache_.sections ? cache_.sections[p] : 0] : position, cache_.turns + 2 * p, &cosine, &sine);
      angles[p] = static_cast<float>(cosine * static_cast<double>(cache_.factor));
      angles[p + cache_.pairs] = static_cast<float>(sine * static_cast<double>(cache_.factor));
    }
    return angles;
  }

  Slots SlotsOf(int32_t h) const {
    return Slots(cache_, step_.state, heads_[h], reinterpret_cast<int32_t*>(work_ + layout_.order), ranked_);
  }

  // Puts a frame, and those behind it that attend together with it, into slots; how many, 0 for a broken state.
  int64_t Store(int32_t h, int64_t first, int64_t row, int64_t count) {
    HeadState& head = heads_[h];
    const Slots slots = SlotsOf(h);
    const Policy& policy = PolicyOf(static_cast<Family>(head.family));
    // What attention gives slots may decide which one the next frame takes, and is noted for going back.
    bool alone = 2 * (count - row) <= cache_.rows || cache_.rows == 0 || (policy.attended && state_.params[kSpare]);
    slots_filled_ = 0;
    for (int64_t r = row; r < count; ++r) {
      const Arrival frame = ArrivalOf(h, first + r);
      if (r > row) {
        if (alone || (policy.attended && head.count == head.slots)) return r - row;
        if ((Gap(head, frame.number) > 0) != (Gap(head, first + row) > 0)) return r - row;
      }
      const int64_t slot = policy.slot(slots, frame, state_.params);
      if (slot < 0 || slot > head.count || slot >= head.slots) return 0;
      for (int32_t i = 0; i < slots_filled_; ++i) {
        if (filled_[i].slot == slot) return r - row;
      }
      alone = alone || (policy.attended && slot < head.count);
      if (!alone) Fill(slots, slot, r - row);
      Put(h, slots, frame, policy, slot, r);
      if (!alone) counts_[r - row] = static_cast<int32_t>(head.count);
    }
    return count - row;
  }

  // Puts one frame into a slot.
  void Put(int32_t h, const Slots& slots, const Arrival& frame, const Policy& policy, int64_t slot, int64_t row) {
    HeadState& head = heads_[h];
    if (const int64_t spare = state_.params[kSpare]) {
      slots.Note(step_.state + head.undo + frame.number % spare * UndoBytes(cache_, head), slot);
    }
    slots.Recount(slot);
    if (slot == head.count) {
      ++head.count;
    } else {
      ++head.dropped;
    }
    slots.mark(slot) = {frame.position, policy.arrive ? policy.arrive(frame) : 0.0f,
                        policy.extra ? policy.extra(frame) : 0.0f};
    const int32_t words[2] = {h, static_cast<int32_t>(slot)};
    As<StoreKernel>(cache_.store)(Keys(row), Frame(instruction_.value, frame.number), slots.keys(), slots.values(),
                                  slots.key_scales(), slots.value_scales(), words);
    ++step_.counters.calls;
  }

  // Notes that a frame fills a slot, in the order of slots, and keeps what was there.
  void Fill(const Slots& slots, int64_t slot, int64_t frame) {
    const bool taken = slot < slots.count();
    int32_t at = slots_filled_++;
    for (; at > 0 && filled_[at - 1].slot > slot; --at) filled_[at] = filled_[at - 1];
    filled_[at] = {0, 0, static_cast<int32_t>(slot), static_cast<int32_t>(frame),
                   taken ? static_cast<int32_t>(frame) : 0};
    if (taken && frame > 0) slots.Copy(slot, Old(), frame);
  }

  Block Old() const {
    float* keys = work_ + layout_.old;
    float* values = keys + Work::OldKeys(cache_);
    float* scales = values + Padded(cache_.rows * cache_.value_dim);
    auto bytes = [](float* at) { return reinterpret_cast<uint8_t*>(at); };
    return {bytes(keys), bytes(values), bytes(scales), bytes(scales + Padded(cache_.block))};
  }

  void AttendRow(int32_t h, int64_t number, int64_t row) {
    HeadState& head = heads_[h];
    const Slots slots = SlotsOf(h);
    const Arrival frame = ArrivalOf(h, number);
    const int64_t gap = Gap(head, number);
    TurnQueries(head, number, row, 1);
    float *scores = work_ + layout_.scores, *bias = work_ + layout_.bias;
    if (cache_.slopes || cache_.bias) FillBias(h, frame, slots, gap, bias);
    // Slots before the third number take the query that stands nearer to them.
    const int32_t words[3] = {h, static_cast<int32_t>(head.count), gap > 0 ? static_cast<int32_t>(head.sink) : 0};
    As<AttendKernel>(cache_.attend)(Queries(row), slots.keys(), slots.values(), slots.key_scales(),
                                    slots.value_scales(), words, scores, bias, cache_.sinks, slots.ranks(),
                                    cache_.ranks, reinterpret_cast<float*>(Frame(instruction_.out, number)));
    ++step_.counters.calls;
    step_.counters.macs += cache_.macs * group_ * head.count;
    Attended(slots, frame, scores, scores + group_ * cache_.pitch);
  }

  // What frames that were stored together see, in one pass over the slots.
  void AttendRows(int32_t h, int64_t first, int64_t row, int64_t count) {
    HeadState& head = heads_[h];
    const Slots slots = SlotsOf(h);
    const int64_t all = cache_.rows * group_, wide = group_ * cache_.key_dim, gap = Gap(head, first);
    TurnQueries(head, first, row, count);
    float *queries = work_ + layout_.gathered, *out = work_ + layout_.out, *scores = work_ + layout_.scores;
    for (int64_t r = 0; r < count; ++r) {
      const float* turned = Queries(row + r) + h * wide;
      memcpy(queries + r * wide, turned, static_cast<size_t>(wide) * 4);
      if (gap == 0) continue;
      memcpy(queries + (cache_.rows + r) * wide, turned + Work::QueryRow(cache_), static_cast<size_t>(wide) * 4);
    }
    int32_t* words = counts_ - kRowsHead;
    words[0] = h;
    words[1] = static_cast<int32_t>(head.count);
    words[2] = gap > 0 ? static_cast<int32_t>(head.sink) : 0;
    words[3] = 0;
    // Places of frames that are not there see one slot, and what they make is not looked at.
    for (int64_t r = count; r < cache_.rows; ++r) counts_[r] = 1;
    int32_t from = 0;
    for (int64_t i = 0; i <= cache_.rows; ++i) {
      Filled& filled = filled_[i];
      if (i >= slots_filled_) filled = {0, 0, 0, cache_.rows, 0};
      filled.from = from;
      filled.to = i < slots_filled_ ? filled.slot : i == slots_filled_ ? words[1] : from;
      from = i < slots_filled_ ? filled.slot + 1 : words[1];
      if (filled.seen > 0) words[3] = 1;
    }
    memset(out, 0, static_cast<size_t>(all * cache_.value_dim) * 4);
    const Block old = Old();
    As<RowsKernel>(cache_.attend_rows)(queries, slots.keys(), slots.values(), slots.key_scales(), slots.value_scales(),
                                       words, scores, cache_.sinks, old.keys, old.values, old.key_scales,
                                       old.value_scales, out);
    ++step_.counters.calls;
    const int64_t size = group_ * cache_.value_dim, kept = head.count;
    for (int64_t r = 0; r < count; ++r) {
      memcpy(reinterpret_cast<float*>(Frame(instruction_.out, first + r)) + h * size, out + r * size,
             static_cast<size_t>(size) * 4);
      step_.counters.macs += cache_.macs * group_ * counts_[r];
      head.count = counts_[r];
      Attended(slots, ArrivalOf(h, first + r), scores + r * group_ * cache_.pitch,
               scores + all * cache_.pitch + r * group_);
    }
    head.count = kept;
  }

  // Tells the policy what attention gave each slot. whole: what the scores of each query head are to be multiplied by.
  void Attended(const Slots& slots, const Arrival& frame, const float* scores, const float* whole) {
    const Policy& policy = PolicyOf(static_cast<Family>(slots.head().family));
    if (!policy.attended) return;
    float* mass = work_ + layout_.mass;
    for (int64_t s = 0; s < slots.count(); ++s) mass[s] = 0;
    for (int64_t g = 0; g < group_; ++g) {
      const float* row = scores + g * cache_.pitch;
      for (int64_t s = 0; s < slots.count(); ++s) mass[s] += row[s] * whole[g];
    }
    policy.attended(slots, frame, state_.params, mass, group_);
  }

  void FillBias(int32_t h, const Arrival& frame, const Slots& slots, int64_t gap, float* bias) const {
    for (int64_t g = 0; g < group_; ++g) {
      const int64_t row = h * group_ + g;
      for (int64_t s = 0; s < slots.count(); ++s) {
        int64_t distance = frame.position - slots.mark(s).position;
        if (slots.ranks()) {
          distance = slots.count() - 1 - slots.ranks()[s];
        } else if (s < slots.head().sink) {
          distance -= gap;
        }
        if (distance < 0) distance = 0;
        double value = 0;
        if (cache_.slopes) value -= cache_.slopes[row] * static_cast<double>(distance);
        if (cache_.bias) {
          const int64_t last = cache_.distances - 1;
          value += static_cast<double>(cache_.bias[row * cache_.distances + (distance < last ? distance : last)]);
        }
        bias[g * cache_.pitch + s] = static_cast<float>(value);
      }
    }
  }

  const Step& step_;
  const Cache& cache_;
  const Instruction& instruction_;
  CacheState& state_;
  HeadState* heads_;
  const int64_t group_;
  const bool ranked_;
  const Work layout_;
  float* work_;
  int32_t* counts_;  // how many slots each of the frames that attend together sees
  Filled* filled_;
  int32_t slots_filled_ = 0;
  int64_t turned_ = -1, turned_from_ = 0, turned_to_ = 0;  // where queries were turned last, and those of which frames
};

}  // namespace

int64_t AttendWorkBytes(const Cache& cache) { return Work(cache).end * 4; }

int RunAttend(const Step& step, const Instruction& instruction, int64_t low, int64_t high) {
  Attention attention(step, instruction);
  const int64_t together = RowsOf(step.program.caches[instruction.cache]);
  for (int64_t number = low; number < high; number += together) {
    if (int code = attention.Take(number, high - number < together ? high - number : together)) return code;
  }
  return RN_OK;
}

}  // namespace runnel
