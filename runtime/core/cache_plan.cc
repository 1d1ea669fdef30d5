// The part of a plan that is about caches.
#include "attend.h"
#include "cache.h"
#include "cache_policy.h"
#include "decoder.h"

namespace runnel {
namespace {

constexpr int64_t kTurnArguments = 3, kStoreArguments = 7, kAttendArguments = 12, kRowsArguments = 13;
constexpr int64_t kMostHeads = 1024;
constexpr int64_t kMostQueries = 256;  // of one KV head that attend together
constexpr int64_t kMostDistances = int64_t{1} << 24;

}  // namespace

bool Decoder::ReadConstants(int64_t offset, int64_t count, int64_t item_bytes, const void** at) {
  *at = nullptr;
  if (offset == -1) return true;
  if (!In(offset, 0, header_.weights_bytes) || offset % 64 != 0) return false;
  if (count > (header_.weights_bytes - offset) / item_bytes) return false;
  *at = sources_.weights + offset;
  return true;
}

bool Decoder::ReadCaches() {
  program_->rings_end = (header_.state_bytes + 63) & ~int64_t{63};
  program_->state_bytes = header_.state_bytes;
  if (header_.caches == 0) return true;
  CacheRules& rules = program_->rules;
  const int64_t family = Word(caches_at_), positions = Word(caches_at_ + 1);
  if (!In(family, 0, kMostFamily)) return FailWith(RN_UNSUPPORTED, "the plan's caches follow an unknown policy");
  if (!In(positions, 0, 1)) return FailWith(RN_UNSUPPORTED, "the plan's caches count positions in an unknown way");
  rules.family = static_cast<Family>(family);
  rules.positions = static_cast<Positions>(positions);
  for (int i = 0; i < kCacheParams; ++i) {
    rules.most[i] = Word(caches_at_ + 3 + i);
    if (!In(rules.most[i], 0, kMostSlots)) return Fail("the plan's caches have an impossible size");
  }
  const int64_t heads_at = caches_at_ + kCacheRuleWords + header_.caches * kCacheWords;
  for (int64_t h = 0; h < header_.cache_heads; ++h) {
    if (!In(Word(heads_at + h), 0, kMostSlots)) return Fail("a head of a cache has an impossible number of slots");
    program_->cache_heads[h] = static_cast<int32_t>(Word(heads_at + h));
  }
  int64_t heads = 0;
  for (int64_t i = 0; i < header_.caches; ++i) {
    Cache& cache = program_->caches[i];
    cache = Cache{};
    cache.first_head = static_cast<int32_t>(heads);
    if (!ReadCache(i, cache)) return false;
    heads += cache.kv_heads;
    if (cache.pairs > program_->angle_pairs) program_->angle_pairs = cache.pairs;
    const int64_t work = AttendWorkBytes(cache);
    if (work > attend_work_) attend_work_ = work;
  }
  if (heads != header_.cache_heads) return Fail("the plan's caches have %lld heads", static_cast<long long>(heads));
  if (!TakesParams(*program_, rules.most, 0)) return Fail("the plan's caches have no slots");
  for (const Cache& cache : program_->caches) {
    if (MostSlots(*program_, cache, rules.most) > cache.pitch) return Fail("a cache has more slots than its scores");
  }
  program_->state_bytes = CacheStateBytes(*program_, rules.most);
  return true;
}

bool Decoder::ReadCache(int64_t number, Cache& cache) {
  const int64_t at = caches_at_ + kCacheRuleWords + number * kCacheWords;
  auto word = [&](int i) { return Word(at + i); };
  auto n = static_cast<long long>(number);
  const int64_t heads = word(0), kv_heads = word(1), key_dim = word(2), value_dim = word(3), block = word(4);
  if (!In(kv_heads, 1, kMostHeads) || !In(heads, 1, kMostHeads) || heads % kv_heads != 0 || !In(key_dim, 1, kMostDim) ||
      !In(value_dim, 1, kMostDim)) {
    return Fail("cache %lld has an impossible number of heads or features", n);
  }
  if (cache.first_head + kv_heads > header_.cache_heads) return Fail("cache %lld has heads that are not listed", n);
  auto is_bits = [](int64_t bits) { return bits == 32 || bits == 16 || bits == 8 || bits == 4; };
  if (!is_bits(word(5)) || (word(6) != 0 && !is_bits(word(6)))) {
    return FailWith(RN_UNSUPPORTED, "cache %lld stores elements in an unknown way", n);
  }
  const int64_t pairs = word(7), distances = word(13), pitch = word(23);
  if (!In(block, 1, 1024) || !In(pairs, 0, key_dim / 2) || !In(distances, 0, kMostDistances) ||
      !In(pitch, 1, kMostSlots + 1024) || pitch % block != 0 || pitch % 16 != 0 || key_dim * word(5) % 8 != 0 ||
      value_dim * word(6) % 8 != 0 || !In(word(11), 0, kMostDim) || !In(word(12), 0, kMaxFrames) ||
      !In(word(21), 0, kMaxMacs >> 32) || !In(word(22), 0, key_dim - 2 * pairs) || !In(word(25), 0, block) ||
      word(25) * (heads / kv_heads) > kMostQueries ||
      (word(6) == 0 && (block != 1 || value_dim > key_dim || word(5) == 4))) {
    return Fail("cache %lld has an impossible layout", n);
  }
  if (program_->rules.family == Family::kMerge && (word(5) != 32 || (word(6) != 0 && word(6) != 32))) {
    return Fail("cache %lld would round what it merges", n);
  }
  cache.heads = static_cast<int32_t>(heads);
  cache.kv_heads = static_cast<int32_t>(kv_heads);
  cache.key_dim = static_cast<int32_t>(key_dim);
  cache.value_dim = static_cast<int32_t>(value_dim);
  cache.block = static_cast<int32_t>(block);
  cache.pitch = static_cast<int32_t>(pitch);
  cache.key_bits = static_cast<int32_t>(word(5));
  cache.value_bits = static_cast<int32_t>(word(6));
  cache.pairs = static_cast<int32_t>(pairs);
  cache.start = static_cast<int32_t>(word(22));
  cache.axes = static_cast<int32_t>(word(11));
  cache.window = word(12);
  cache.distances = static_cast<int32_t>(distances);
  cache.macs = word(21);
  cache.rows = static_cast<int32_t>(word(25));
  const auto factor = static_cast<uint32_t>(word(8));
  memcpy(&cache.factor, &factor, sizeof factor);
  const void *turns, *sections, *bias, *slopes, *sinks, *ranks;
  if (!ReadConstants(word(9), pairs * 2, 8, &turns) || (pairs > 0 && !turns) ||
      !ReadConstants(word(10), pairs, 4, &sections) || !ReadConstants(word(14), heads * distances, 4, &bias) ||
      (bias && distances == 0) || !ReadConstants(word(15), heads, 8, &slopes) ||
      !ReadConstants(word(16), heads, 4, &sinks) || !ReadConstants(word(24), pitch * pairs * 2, 4, &ranks)) {
    return Fail("the constants of cache %lld lie outside the weights", n);
  }
  cache.turns = static_cast<const uint64_t*>(turns);
  cache.sections = static_cast<const int32_t*>(sections);
  cache.bias = static_cast<const float*>(bias);
  cache.slopes = static_cast<const double*>(slopes);
  cache.sinks = static_cast<const float*>(sinks);
  cache.ranks = static_cast<const float*>(ranks);
  if (pairs > 0 && (ranks != nullptr) != Ranked(*program_)) {
    return Fail("cache %lld has ranks where its policy needs none, or none where it does", n);
  }
  if (cache.rows > 0 && (ranks || bias || slopes)) {
    return Fail("cache %lld has frames attend together that see slots in unlike ways", n);
  }
  for (int64_t p = 0; sections && p < pairs; ++p) {
    if (!In(cache.sections[p], 0, cache.axes - 1)) return Fail("cache %lld turns by a position that is not there", n);
  }
  const struct {
    int word;
    int64_t arguments;
    const uint8_t** code;
  } kernels[] = {{17, kTurnArguments, &cache.turn_query},
                 {18, kTurnArguments, &cache.turn_key},
                 {19, kStoreArguments, &cache.store},
                 {20, kAttendArguments, &cache.attend},
                 {26, kRowsArguments, &cache.attend_rows}};
  for (const auto& kernel : kernels) {
    if (kernel.word == 26 && cache.rows == 0) continue;
    const int64_t index = word(kernel.word);
    if (!In(index, 0, header_.kernels - 1) || Word(kernels_at_ + index * 3 + 1) != kernel.arguments) {
      return Fail("cache %lld names a kernel that is not there, or of another kind", n);
    }
    *kernel.code = sources_.image + Word(kernels_at_ + index * 3);
  }
  return true;
}

bool Decoder::ReadAttend(int64_t at, int64_t size, int64_t number, int32_t top_level, Instruction& instruction) {
  auto n = static_cast<long long>(number);
  if (size != 11) return Fail("instruction %lld has a wrong size", n);
  if (!ReadRange(at, number, instruction)) return false;
  const int64_t index = Code(at + 4);
  if (!In(index, 0, header_.caches - 1)) return Fail("instruction %lld names a cache that is not there", n);
  const Span<Instruction>& code = in_prefill_ ? program_->prefill : program_->instructions;
  for (int32_t i = 0; i < code.size - 1; ++i) {
    if (code[i].op == InstructionOp::kAttend && code[i].cache == index) {
      return Fail("instruction %lld takes frames into a cache that has them already", n);
    }
  }
  const Cache& cache = program_->caches[index];
  const struct {
    int32_t* buffer;
    int64_t bytes;
    bool optional;
  } operands[] = {{&instruction.query, int64_t{cache.heads} * cache.key_dim * 4, false},
                  {&instruction.key, int64_t{cache.kv_heads} * cache.key_dim * 4, false},
                  {&instruction.value, int64_t{cache.kv_heads} * cache.value_dim * 4, false},
                  {&instruction.out, int64_t{cache.heads} * cache.value_dim * 4, false},
                  {&instruction.retain, int64_t{cache.kv_heads} * 4, true},
                  {&instruction.positions, int64_t{cache.axes} * 8, true}};
  for (int i = 0; i < 6; ++i) {
    const int64_t buffer = Code(at + 5 + i);
    if (operands[i].optional && buffer == -1) {
      *operands[i].buffer = -1;
      continue;
    }
    if (!IsBuffer(buffer) || program_->buffers[buffer].frame_bytes < operands[i].bytes) {
      return Fail("instruction %lld attends with a buffer that does not fit", n);
    }
    *operands[i].buffer = static_cast<int32_t>(buffer);
  }
  if ((cache.axes > 0) != (instruction.positions >= 0)) {
    return Fail("instruction %lld has positions where its cache has none, or none where it has", n);
  }
  instruction.op = InstructionOp::kAttend;
  instruction.cache = static_cast<int32_t>(index);
  Writes(instruction.out, top_level);
  return true;
}

}  // namespace runnel
