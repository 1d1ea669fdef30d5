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

int64_t Padded(int64_t elements) { return (elements + 15) & ~int64_t{15}; }

// Where attention works, in elements of 4 bytes from the start of its scratch.
struct Work {
  int64_t angles, queries, keys, mass, order, scores, bias, end;

  explicit Work(const Cache& cache) {
    const int64_t group = cache.heads / cache.kv_heads;
    angles = 0;
    queries = angles + Padded(2 * cache.pairs);
    keys = queries + 2 * Padded(int64_t{cache.heads} * cache.key_dim);
    mass = keys + Padded(int64_t{cache.kv_heads} * cache.key_dim);
    order = mass + cache.pitch;
    scores = order + 2 * cache.pitch;
    bias = scores + group * cache.pitch + Padded(group);
    end = bias + (cache.slopes || cache.bias ? group * cache.pitch : 0);
  }
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
        layout_(cache_),
        work_(reinterpret_cast<float*>(step.scratch + step.program.work_at)) {}

  int Take(int64_t number) {
    Arrival frame{number, state_.start + number, 0, state_.token_class};
    const uint8_t *query = Frame(instruction_.query, number), *key = Frame(instruction_.key, number);
    const uint8_t *value = Frame(instruction_.value, number), *out = Frame(instruction_.out, number);
    if (!query || !key || !value || !out) return RN_BAD_PLAN;
    const float* retain = nullptr;
    if (instruction_.retain >= 0 && !(retain = reinterpret_cast<const float*>(Frame(instruction_.retain, number)))) {
      return RN_BAD_PLAN;
    }
    const int64_t* told = nullptr;
    if (instruction_.positions >= 0) {
      told = reinterpret_cast<const int64_t*>(Frame(instruction_.positions, number));
      if (!told) return RN_BAD_PLAN;
    }
    float* keys = work_ + layout_.keys;
    const bool ranked = Ranked(step_.program);
    As<TurnKernel>(cache_.turn_key)(key, ranked ? work_ : Angles(0, frame.position, told), keys);
    ++step_.counters.calls;
    turned_[0] = turned_[1] = -1;
    for (int32_t h = 0; h < cache_.kv_heads; ++h) {
      if (retain) frame.retain = retain[h];
      if (!Store(h, frame, keys, value)) return RN_BAD_STATE;
      const HeadState& head = heads_[h];
      const int64_t gap = Gap(head, number);
      TurnQuery(0, query, ranked ? head.count - 1 : frame.position, told);
      if (gap > 0 && cache_.pairs > 0) TurnQuery(1, query, frame.position - gap, told);
      Attend(h, frame, work_ + layout_.queries, gap, reinterpret_cast<float*>(const_cast<uint8_t*>(out)));
    }
    const Buffer& buffer = step_.program.buffers[instruction_.out];
    if (buffer.margin) Mirror(buffer, step_.Memory(buffer), step_.Slot(buffer, number), 1, step_.counters);
    return RN_OK;
  }

 private:
  const uint8_t* Frame(int32_t buffer, int64_t number) const {
    const Buffer& ring = step_.program.buffers[buffer];
    const int64_t slot = step_.Slot(ring, number);
    return slot < 0 ? nullptr : step_.Memory(ring) + slot * ring.frame_bytes;
  }

  // How much nearer the query is to a head's first frames where positions count what is kept.
  int64_t Gap(const HeadState& head, int64_t number) const {
    if (step_.program.rules.positions != Positions::kContiguous || Ranked(step_.program)) return 0;
    return head.sink > 0 && number >= head.slots ? number + 1 - head.slots : 0;
  }

  // The query's rows at a position, those of the first frames behind the others, unless they are there.
  void TurnQuery(int which, const uint8_t* query, int64_t position, const int64_t* told) {
    if (turned_[which] == position) return;
    turned_[which] = position;
    float* rows = work_ + layout_.queries + which * Padded(int64_t{cache_.heads} * cache_.key_dim);
    As<TurnKernel>(cache_.turn_query)(query, Angles(which, position, told), rows);
    ++step_.counters.calls;
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
    return Slots(cache_, step_.state, heads_[h], reinterpret_cast<int32_t*>(work_ + layout_.order),
                 Ranked(step_.program));
  }

  bool Store(int32_t h, const Arrival& frame, const float* key, const uint8_t* value) {
    HeadState& head = heads_[h];
    const Slots slots = SlotsOf(h);
    const Policy& policy = PolicyOf(static_cast<Family>(head.family));
    const int64_t slot = policy.slot(slots, frame, state_.params);
    if (slot < 0 || slot > head.count || slot >= head.slots) return false;
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
    As<StoreKernel>(cache_.store)(key, value, slots.keys(), slots.values(), slots.key_scales(), slots.value_scales(),
                                  words);
    ++step_.counters.calls;
    return true;
  }

  void Attend(int32_t h, const Arrival& frame, const float* query, int64_t gap, float* out) {
    HeadState& head = heads_[h];
    const Slots slots = SlotsOf(h);
    float *scores = work_ + layout_.scores, *bias = work_ + layout_.bias;
    if (cache_.slopes || cache_.bias) FillBias(h, frame, slots, gap, bias);
    // Slots before the third number take the query that stands nearer to them.
    const int32_t words[3] = {h, static_cast<int32_t>(head.count), gap > 0 ? static_cast<int32_t>(head.sink) : 0};
    As<AttendKernel>(cache_.attend)(query, slots.keys(), slots.values(), slots.key_scales(), slots.value_scales(),
                                    words, scores, bias, cache_.sinks, slots.ranks(), cache_.ranks, out);
    ++step_.counters.calls;
    step_.counters.macs += cache_.macs * group_ * head.count;
    const Policy& policy = PolicyOf(static_cast<Family>(head.family));
    if (!policy.attended) return;
    float* mass = work_ + layout_.mass;
    const float* whole = scores + group_ * cache_.pitch;
    for (int64_t s = 0; s < head.count; ++s) mass[s] = 0;
    for (int64_t g = 0; g < group_; ++g) {
      const float* row = scores + g * cache_.pitch;
      for (int64_t s = 0; s < head.count; ++s) mass[s] += row[s] * whole[g];
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
  const Work layout_;
  float* work_;
  int64_t turned_[2] = {-1, -1};
};

}  // namespace

int64_t AttendWorkBytes(const Cache& cache) { return Work(cache).end * 4; }

int RunAttend(const Step& step, const Instruction& instruction, int64_t low, int64_t high) {
  Attention attention(step, instruction);
  for (int64_t number = low; number < high; ++number) {
    if (int code = attention.Take(number)) return code;
  }
  return RN_OK;
}

}  // namespace runnel
