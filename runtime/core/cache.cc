#include "cache.h"

#include <cstring>

#include "cache_policy.h"

namespace runnel {
namespace {

int64_t Up(int64_t x, int64_t multiple) { return (x + multiple - 1) / multiple * multiple; }

// What one head of a cache is, for a stream's parameters.
HeadState Describe(const Program& program, const Cache& cache, int32_t head, const int64_t* params) {
  HeadState state = {};
  const bool keeps_all = program.cache_heads[cache.first_head + head] == 1;
  const Family family = keeps_all ? Family::kFull : program.rules.family;
  state.slots = PolicyOf(family).slots(params);
  const int32_t most = program.cache_heads[cache.first_head + head];
  if (!keeps_all && most > 1 && most < state.slots) state.slots = most;
  state.sink = family == Family::kFull ? 0 : params[kSink];
  state.family = static_cast<int64_t>(family);
  if (cache.window > 0) {  // the model itself sees no further
    state.family = static_cast<int64_t>(Family::kWindow);
    state.sink = 0;
    if (cache.window < state.slots) state.slots = cache.window;
  }
  return state;
}

// Calls visit(index, head) with every head as it is at the start; returns where the last ends.
template <typename Visit>
int64_t ForHeads(const Program& program, const int64_t* params, Visit visit) {
  int64_t at = program.rings_end + static_cast<int64_t>(sizeof(CacheState));
  at += static_cast<int64_t>(sizeof(HeadState)) * program.cache_heads.size;
  at = Up(at + program.angle_pairs * 4 * static_cast<int64_t>(sizeof(float)), kCacheAlign);
  auto take = [&at](int64_t bytes) {
    const int64_t start = at;
    at = Up(at + bytes, kCacheAlign);
    return start;
  };
  for (const Cache& cache : program.caches) {
    for (int32_t h = 0; h < cache.kv_heads; ++h) {
      HeadState head = Describe(program, cache, h, params);
      const int64_t padded = Up(head.slots, cache.block);
      head.marks = take(head.slots * static_cast<int64_t>(sizeof(Mark) + (Ranked(program) ? sizeof(int32_t) : 0)));
      head.keys = take(KeyBytes(cache, padded) + (Coded(cache.key_bits) ? padded * 4 : 0));
      head.values = take(ValueBytes(cache, padded) + (Coded(cache.value_bits) ? padded * 4 : 0));
      head.undo = params[kSpare] ? take(params[kSpare] * UndoBytes(cache, head)) : 0;
      visit(cache.first_head + h, head);
    }
  }
  return at;
}

}  // namespace

const Policy& PolicyOf(Family family) {
  switch (family) {
    case Family::kWindow:
      return kWindowPolicy;
    case Family::kHeavy:
      return kHeavyPolicy;
    case Family::kScissorhands:
      return kScissorhandsPolicy;
    case Family::kRetain:
      return kRetainPolicy;
    case Family::kSnap:
      return kSnapPolicy;
    case Family::kMerge:
      return kMergePolicy;
    case Family::kExternal:
      return kExternalPolicy;
    case Family::kPools:
      return kPoolsPolicy;
    default:
      return kFullPolicy;
  }
}

int64_t CacheStateBytes(const Program& program, const int64_t* params) {
  return ForHeads(program, params, [](int32_t, const HeadState&) {});
}

int64_t MostSlots(const Program& program, const Cache& cache, const int64_t* params) {
  int64_t most = 0;
  for (int32_t h = 0; h < cache.kv_heads; ++h) {
    const int64_t slots = Describe(program, cache, h, params).slots;
    if (slots > most) most = slots;
  }
  return most;
}

bool TakesParams(const Program& program, const int64_t* params, int64_t start) {
  const CacheRules& rules = program.rules;
  if (start < 0 || start > kMaxFrames) return false;
  for (int i = 0; i < kCacheParams; ++i) {
    if (params[i] < 0 || params[i] > rules.most[i]) return false;
  }
  if (params[kSpare] > 0 && !GoesBack(program)) return false;
  if (rules.most[kSlots] > 0 && params[kSlots] < 1) return false;
  if (rules.family == Family::kFull || rules.family == Family::kExternal) return true;
  if (params[kWindow] < 1) return false;
  const bool ranked = rules.family != Family::kWindow;
  for (int32_t head : program.cache_heads) {
    // A head with fewer slots has room for the frame that comes in and for one that makes room.
    if (head > 1 && (rules.family == Family::kPools || head < params[kSink] + (ranked ? params[kWindow] : 0) + 1)) {
      return false;
    }
  }
  if (rules.family == Family::kScissorhands) return params[kObserve] > 0;
  return rules.family != Family::kSnap || (params[kObserve] > 0 && params[kObserve] < params[kWindow]);
}

void StartCaches(const Program& program, void* state) {
  CacheState& caches = *CachesOf(program, state);
  HeadState* heads = HeadsOf(program, state);
  ForHeads(program, caches.params, [&](int32_t i, const HeadState& head) { heads[i] = head; });
  caches.low = caches.token_class = 0;
  caches.angle_position[0] = caches.angle_position[1] = -1;
}

void ForkCaches(const Program& program, const uint8_t* from, uint8_t* to, int64_t frames) {
  const CacheState& caches = *CachesOf(program, static_cast<const void*>(from));
  const HeadState* heads = HeadsOf(program, const_cast<uint8_t*>(from));
  auto copy = [&](int64_t at, int64_t bytes) {
    if (bytes > 0) memcpy(to + at, from + at, static_cast<size_t>(bytes));
  };
  copy(0, heads[0].marks);
  for (const Cache& cache : program.caches) {
    for (int32_t h = 0; h < cache.kv_heads; ++h) {
      const HeadState& head = heads[cache.first_head + h];
      const int64_t padded = Up(head.slots, cache.block), held = Up(head.count, cache.block);
      copy(head.marks, head.count * static_cast<int64_t>(sizeof(Mark)));
      const int64_t ranks = head.marks + head.slots * static_cast<int64_t>(sizeof(Mark));
      if (Ranked(program)) copy(ranks, head.count * static_cast<int64_t>(sizeof(int32_t)));
      copy(head.keys, KeyBytes(cache, held));
      copy(head.values, ValueBytes(cache, head.count));
      if (Coded(cache.key_bits)) copy(head.keys + KeyBytes(cache, padded), head.count * 4);
      if (Coded(cache.value_bits)) copy(head.values + ValueBytes(cache, padded), head.count * 4);
      const int64_t spare = caches.params[kSpare];
      copy(head.undo, (frames < spare ? frames : spare) * UndoBytes(cache, head));
    }
  }
}

bool CheckCaches(const Program& program, const uint8_t* bytes, int64_t size, int64_t frames) {
  const int64_t least = program.rings_end + static_cast<int64_t>(sizeof(CacheState)) +
                        static_cast<int64_t>(sizeof(HeadState)) * program.cache_heads.size;
  if (size < least) return false;
  CacheState caches;
  memcpy(&caches, bytes + program.rings_end, sizeof caches);
  if (!TakesParams(program, caches.params, caches.start)) return false;
  if (caches.token_class < 0 || caches.token_class >= kTokenClasses) return false;
  const uint8_t* heads = bytes + program.rings_end + sizeof caches;
  bool same = CacheStateBytes(program, caches.params) == size;
  const int64_t end = ForHeads(program, caches.params, [&](int32_t i, const HeadState& is) {
    HeadState found;
    memcpy(&found, heads + sizeof(HeadState) * static_cast<size_t>(i), sizeof found);
    same = same && found.slots == is.slots && found.sink == is.sink && found.family == is.family &&
           found.marks == is.marks && found.keys == is.keys && found.values == is.values && found.undo == is.undo &&
           found.dropped >= 0 && found.dropped <= frames && found.count >= 0 &&
           found.count <= (frames < is.slots ? frames : is.slots);
    for (int64_t s = 0; same && s < found.count; ++s) {
      Mark mark;
      memcpy(&mark, bytes + is.marks + s * static_cast<int64_t>(sizeof mark), sizeof mark);
      same = mark.position >= caches.start && mark.position - caches.start < frames;
      int32_t rank = 0;
      const int64_t at =
          is.marks + is.slots * static_cast<int64_t>(sizeof mark) + s * static_cast<int64_t>(sizeof rank);
      if (Ranked(program)) memcpy(&rank, bytes + at, sizeof rank);
      same = same && rank >= 0 && rank < is.slots;
    }
  });
  return same && end == size;
}

bool CachesTake(const Program& program, const void* state, int64_t frames, bool restart) {
  const HeadState* heads = HeadsOf(program, const_cast<void*>(state));
  for (int32_t h = 0; h < program.cache_heads.size; ++h) {
    const HeadState& head = heads[h];
    const auto family = static_cast<Family>(head.family);
    if (family != Family::kFull && family != Family::kExternal) continue;
    if (frames > head.slots - (restart ? 0 : head.count)) return false;
  }
  return true;
}

}  // namespace runnel
