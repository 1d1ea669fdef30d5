#include "state.h"

#include "cache.h"
#include "frames.h"
#include "runnel.h"

namespace runnel {

void StartState(const Program& program, void* state, bool poison, bool keep) {
  auto* bytes = static_cast<uint8_t*>(state);
  auto* header = static_cast<StateHeader*>(state);
  CacheState chosen = {};
  const bool caches = program.caches.size > 0;
  if (caches) chosen = *CachesOf(program, state);
  const int64_t total = caches ? CacheStateBytes(program, chosen.params) : program.state_bytes;
  *header = StateHeader{};
  memcpy(header->magic, kMagic, sizeof header->magic);
  memcpy(header->hash, program.hash, sizeof header->hash);
  header->version = kStateVersion;
  header->layout = program.layout;
  header->bytes = total;
  header->flags = poison ? kPoisoned : 0;
  const int64_t first = keep ? program.statics_end : kStateHeaderBytes;
  const int64_t rings = total - first;
  memset(bytes + first, 0, static_cast<size_t>(rings));
  if (poison) FillFrames(bytes + first, rings & ~int64_t{3}, kNaN);
  Counters ignored;
  for (const Buffer& buffer : program.buffers) {
    uint8_t* memory = bytes + buffer.base;  // only buffers in the state have a lead
    for (int64_t i = 0; i < buffer.lead; ++i) {
      const int64_t slot = buffer.slots - buffer.lead + i, given = i - (buffer.lead - buffer.init_frames);
      uint8_t* frame = memory + slot * buffer.frame_bytes;
      if (given < 0) {
        FillFrames(frame, buffer.frame_bytes, buffer.fill);
      } else {
        memcpy(frame, program.weights + buffer.init_offset + given * buffer.frame_bytes,
               static_cast<size_t>(buffer.frame_bytes));
      }
      Mirror(buffer, memory, slot, 1, ignored);
    }
  }
  if (caches) {
    *CachesOf(program, state) = chosen;
    StartCaches(program, state);
  }
}

}  // namespace runnel

using runnel::StateHeader;

extern "C" {

int rn_init(const rn_program* program, void* state, int poison) {
  if (!program || !runnel::Aligned(state)) return RN_BAD_ARGUMENT;
  if (program->caches.size) {
    runnel::CacheState& caches = *runnel::CachesOf(*program, state);
    caches.start = 0;
    memcpy(caches.params, program->rules.most, sizeof caches.params);
  }
  runnel::StartState(*program, state, poison != 0, false);
  return RN_OK;
}

int rn_reset(const rn_program* program, void* state) {
  if (!program || !runnel::Aligned(state)) return RN_BAD_ARGUMENT;
  const auto& header = *static_cast<const StateHeader*>(state);
  if (!runnel::IsStateOf(*program, header)) return RN_BAD_STATE;
  runnel::StartState(*program, state, (header.flags & runnel::kPoisoned) != 0, true);
  return RN_OK;
}

int rn_set(const rn_program* program, void* state, int32_t input, const void* value) {
  if (!program || !runnel::Aligned(state) || !value || input < 0 || input >= program->inputs.size) {
    return RN_BAD_ARGUMENT;
  }
  const runnel::Input& port = program->inputs[input];
  auto& header = *static_cast<StateHeader*>(state);
  if (port.rate != 0) return RN_BAD_ARGUMENT;
  if (!runnel::IsStateOf(*program, header)) return RN_BAD_STATE;
  if (port.is_float32 && runnel::HasNonfinite(value, port.outer * port.inner_bytes / 4)) return RN_NOT_FINITE;
  const runnel::Buffer& buffer = program->buffers[port.buffer];
  auto* memory = static_cast<uint8_t*>(state) + buffer.base;
  memcpy(memory, value, static_cast<size_t>(port.outer * port.inner_bytes));
  runnel::Counters ignored;
  runnel::Mirror(buffer, memory, 0, 1, ignored);
  header.flags |= runnel::kStale;
  return RN_OK;
}

int rn_check_state(const rn_program* program, const void* bytes, size_t n) {
  constexpr int64_t kAllowed = runnel::kFlushed | runnel::kPoisoned | runnel::kStale;
  StateHeader header;
  const auto size = static_cast<int64_t>(n);
  if (!program || !bytes || size < static_cast<int64_t>(sizeof header)) return RN_BAD_STATE;
  if (!program->caches.size && size != program->state_bytes) return RN_BAD_STATE;
  memcpy(&header, bytes, sizeof header);
  bool ok = runnel::IsStateOf(*program, header) && header.bytes == size && header.t >= 0 &&
            header.t <= program->most_frames && (header.flags & ~kAllowed) == 0;
  for (int64_t zero : header.zero) ok = ok && zero == 0;
  const runnel::Counters& counted = header.counters;
  const int64_t counts[] = {counted.steps, counted.calls, counted.mirrored, counted.macs};
  for (int64_t count : counts) ok = ok && count >= 0 && count <= runnel::kMaxCount;
  if (ok && program->caches.size) {
    ok = runnel::CheckCaches(*program, static_cast<const uint8_t*>(bytes), size, header.t);
  }
  return ok ? RN_OK : RN_BAD_STATE;
}

int64_t rn_position(const rn_program*, const void* state) { return static_cast<const StateHeader*>(state)->t; }

void rn_counters(const void* state, int64_t counters[4]) {
  const auto& from = static_cast<const StateHeader*>(state)->counters;
  counters[0] = from.steps;
  counters[1] = from.calls;
  counters[2] = from.mirrored;
  counters[3] = from.macs;
}

}  // extern "C"
