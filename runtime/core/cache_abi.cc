// The C ABI: what a stream chooses of its caches, what they hold, forks, and going back.
#include <cstring>

#include "cache.h"
#include "runnel.h"
#include "slots.h"
#include "state.h"

using runnel::StateHeader;

namespace {

// What a stream chooses: start, then the parameters; -1 is the most.
bool Choose(const runnel::Program& program, const int64_t* choice, runnel::CacheState* caches) {
  caches->start = choice[0];
  for (int i = 0; i < runnel::kCacheParams; ++i) {
    caches->params[i] = choice[1 + i] < 0 ? program.rules.most[i] : choice[1 + i];
  }
  return runnel::TakesParams(program, caches->params, caches->start);
}

}  // namespace

extern "C" {

int64_t rn_cache_bytes(const rn_program* program, const int64_t* choice) {
  runnel::CacheState caches = {};
  if (!program || !choice || !program->caches.size || !Choose(*program, choice, &caches)) return -1;
  return runnel::CacheStateBytes(*program, caches.params);
}

int rn_init_cache(const rn_program* program, void* state, const int64_t* choice, int poison) {
  if (!program || !runnel::Aligned(state) || !choice || !program->caches.size) return RN_BAD_ARGUMENT;
  runnel::CacheState chosen = {};
  if (!Choose(*program, choice, &chosen)) return RN_BAD_ARGUMENT;
  *runnel::CachesOf(*program, state) = chosen;
  runnel::StartState(*program, state, poison != 0, false);
  return RN_OK;
}

int rn_fork(const rn_program* program, const void* state, void* to) {
  if (!program || !runnel::Aligned(state) || !runnel::Aligned(to) || state == to) return RN_BAD_ARGUMENT;
  const auto& header = *static_cast<const StateHeader*>(state);
  if (!program->caches.size || !runnel::IsStateOf(*program, header)) return RN_BAD_STATE;
  if (header.flags & runnel::kPoisoned) {
    memcpy(to, state, static_cast<size_t>(header.bytes));
  } else {
    runnel::ForkCaches(*program, static_cast<const uint8_t*>(state), static_cast<uint8_t*>(to), header.t);
  }
  return RN_OK;
}

int64_t rn_state_size(const void* state) { return static_cast<const StateHeader*>(state)->bytes; }

int64_t rn_cache_words(const rn_program* program, const void* state, int64_t* words, int64_t room) {
  constexpr int64_t kHead = 24;
  const int64_t needed = program->caches.size ? kHead + int64_t{program->cache_heads.size} * 4 : 0;
  if (!words || room < needed || needed == 0) return needed;
  runnel::CacheState caches = {};
  memcpy(caches.params, program->rules.most, sizeof caches.params);
  if (state) caches = *runnel::CachesOf(*program, state);
  memset(words, 0, kHead * sizeof(int64_t));
  words[0] = caches.start;
  memcpy(words + 1, caches.params, sizeof caches.params);
  words[13] = static_cast<int64_t>(program->rules.family);
  words[14] = static_cast<int64_t>(program->rules.positions);
  words[15] = state ? static_cast<const StateHeader*>(state)->t : 0;
  words[17] = runnel::CacheStateBytes(*program, caches.params) - program->rings_end;
  words[18] = program->caches[0].key_bits;
  words[19] = program->caches[0].value_bits ? program->caches[0].value_bits : program->caches[0].key_bits;
  words[20] = program->cache_heads.size;
  words[21] = caches.token_class;
  int64_t* next = words + kHead;
  const runnel::HeadState* heads = state ? runnel::HeadsOf(*program, const_cast<void*>(state)) : nullptr;
  for (int32_t c = 0; c < program->caches.size; ++c) {
    for (int32_t h = 0; h < program->caches[c].kv_heads; ++h, next += 4) {
      const int32_t head = program->caches[c].first_head + h;
      next[0] = c;
      next[1] = heads ? heads[head].slots : runnel::MostSlots(*program, program->caches[c], caches.params);
      next[2] = heads ? heads[head].count : 0;
      next[3] = heads ? heads[head].dropped : 0;
      words[16] += next[3];
    }
  }
  return needed;
}

int rn_cache_class(const rn_program* program, void* state, int64_t token_class) {
  if (!program || !runnel::Aligned(state) || !program->caches.size) return RN_BAD_ARGUMENT;
  if (token_class < 0 || token_class >= runnel::kTokenClasses) return RN_BAD_ARGUMENT;
  if (!runnel::IsStateOf(*program, *static_cast<const StateHeader*>(state))) return RN_BAD_STATE;
  runnel::CachesOf(*program, state)->token_class = token_class;
  return RN_OK;
}

int rn_rollback(const rn_program* program, void* state, int64_t frames) {
  if (!program || !runnel::Aligned(state) || frames < 0 || !program->caches.size) return RN_BAD_ARGUMENT;
  auto& header = *static_cast<StateHeader*>(state);
  if (!runnel::IsStateOf(*program, header)) return RN_BAD_STATE;
  if (header.flags & runnel::kFlushed) return RN_FLUSHED;
  for (const runnel::Buffer& buffer : program->buffers) {
    if (buffer.space == runnel::Space::kState && buffer.base >= program->statics_end) return RN_UNSUPPORTED;
  }
  runnel::CacheState& caches = *runnel::CachesOf(*program, state);
  const int64_t spare = caches.params[runnel::kSpare];
  if (header.t - spare > caches.low) caches.low = header.t - spare;
  if (frames > header.t - caches.low) return RN_BAD_ARGUMENT;
  auto* bytes = static_cast<uint8_t*>(state);
  runnel::HeadState* heads = runnel::HeadsOf(*program, state);
  for (; frames > 0; --frames) {
    --header.t;
    for (const runnel::Cache& cache : program->caches) {
      for (int32_t h = 0; h < cache.kv_heads; ++h) {
        runnel::HeadState& head = heads[cache.first_head + h];
        const uint8_t* note = bytes + head.undo + header.t % spare * runnel::UndoBytes(cache, head);
        const runnel::Slots slots(cache, bytes, head, nullptr, runnel::Ranked(*program));
        if (!slots.Undo(note, caches.start, caches.start + header.t)) return RN_BAD_STATE;
      }
    }
  }
  return RN_OK;
}

int64_t rn_cache_read(const rn_program* program, void* state, int32_t cache, int32_t head, int64_t* positions,
                      float* mass, float* keys, float* values) {
  if (!program || !runnel::Aligned(state) || cache < 0 || cache >= program->caches.size) return -1;
  const runnel::Cache& which = program->caches[cache];
  if (head < 0 || head >= which.kv_heads) return -1;
  runnel::HeadState& held = runnel::HeadsOf(*program, state)[which.first_head + head];
  const runnel::Slots slots(which, static_cast<uint8_t*>(state), held, nullptr, runnel::Ranked(*program));
  for (int64_t s = 0; s < held.count; ++s) {
    positions[s] = slots.mark(s).position;
    mass[s] = slots.mark(s).mass;
    slots.Read(s, keys + s * which.key_dim, values + s * which.value_dim);
  }
  return held.count;
}

int rn_cache_drop(const rn_program* program, void* state, int32_t cache, int32_t head, const int32_t* dropped,
                  int64_t count) {
  if (!program || !runnel::Aligned(state) || cache < 0 || cache >= program->caches.size || !dropped) {
    return RN_BAD_ARGUMENT;
  }
  const runnel::Cache& which = program->caches[cache];
  if (head < 0 || head >= which.kv_heads) return RN_BAD_ARGUMENT;
  runnel::HeadState& held = runnel::HeadsOf(*program, state)[which.first_head + head];
  if (held.family != static_cast<int64_t>(runnel::Family::kExternal)) return RN_UNSUPPORTED;
  for (int64_t i = 0; i < count; ++i) {
    if (dropped[i] < 0 || dropped[i] >= (i ? dropped[i - 1] : held.count)) return RN_BAD_ARGUMENT;
  }
  const runnel::Slots slots(which, static_cast<uint8_t*>(state), held, nullptr, runnel::Ranked(*program));
  for (int64_t i = 0; i < count; ++i) slots.Drop(dropped[i]);
  return RN_OK;
}

}  // extern "C"
