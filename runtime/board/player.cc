#include "player.h"

#include <sys/stat.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

#include "forecast.h"
#include "signature.h"

namespace runnel_run {
namespace {

constexpr uint64_t kOwnBytes = uint64_t{3} << 20;  // of this program, its stack, and what the system keeps for it
constexpr uint64_t kMapped = 512;                  // bytes whose entry in the system's page tables takes one
constexpr uint64_t kFewBytes = uint64_t{1} << 16;  // of them, for what goes in and comes out

// What a push brings and gives, twice its frames as Player::Prepare does.
uint64_t PushedBytes(const Options& options, const rn_program* program) {
  const bool all = options.chunk && strcmp(options.chunk, "all") == 0;
  const double frames = options.chunk && !all ? strtod(options.chunk, nullptr) : static_cast<double>(rn_hop(program));
  double bytes = 0;
  for (int32_t i = 0; i < rn_input_count(program); ++i) bytes += static_cast<double>(rn_input_frame_bytes(program, i));
  for (int32_t i = 0; i < rn_output_count(program); ++i) {
    bytes += 2 * static_cast<double>(rn_output_frame_bytes(program, i));
  }
  return static_cast<uint64_t>(bytes * frames);
}

// What the system keeps of pages for as many bytes as the bundle has, whatever the budget: so the least is the same.
uint64_t TableBytes(const char* bundle) {
  struct stat file;
  return stat(bundle, &file) == 0 ? static_cast<uint64_t>(file.st_size) / kMapped : 0;
}

}  // namespace

Layout::Layout(const rn_port& port) : inner_bytes(port.item_bytes) {
  for (int32_t i = 0; i < port.dimensions; ++i) {
    if (i < port.axis) {
      outer *= port.shape[i];
    } else if (port.shape[i] >= 0) {
      inner_bytes *= port.shape[i];
    }
  }
}

rn_bundle* OpenBundle(const Options& options) {
  rn_bundle* bundle = nullptr;
  char message[1024];
  rn_paging paging = {};
  paging.io = options.io;
  paging.threads = options.io_threads;
  paging.streams = 1;
  paging.ram = options.ram;
  paging.elsewhere = kOwnBytes + TableBytes(options.bundle);
  paging.patience_us = static_cast<int64_t>(options.patience * 1e6);
  paging.units = options.experts;
  paging.ahead = options.experts_ahead;
  paging.slow = options.slow;
  const auto load = [&] {
    const int code = rn_load_paged(options.bundle, options.ram ? &paging : nullptr, &bundle, message, sizeof message);
    if (code != RN_OK) Refuse("%s", message[0] ? message : rn_message(code));
  };
  load();
  rn_paging_facts facts;
  const uint64_t pushed = PushedBytes(options, rn_bundle_program(bundle));
  const bool chooses =
      rn_paging_status(rn_bundle_program(bundle), &facts) == RN_OK && facts.units.all > facts.units.room;
  if (options.ram && (pushed > kFewBytes || chooses)) {  // known only now
    rn_unload(bundle);
    if (pushed > kFewBytes) paging.elsewhere += pushed;
    if (chooses && (paging.read_bytes = ReadCost(options))) {
      fprintf(stderr, "storage: one more read takes as long as reading %.1f KiB more\n",
              static_cast<double>(paging.read_bytes) / 1024);
    }
    load();
  }
  RequireSignature(bundle, options.bundle);
  if (rn_paging_status(rn_bundle_program(bundle), &facts) == RN_OK) {
    if (facts.streamed || facts.tables) {
      fprintf(stderr, "mode: pinned %.1f MiB, streaming %.1f MiB per step\n",
              static_cast<double>(facts.pinned) / 1048576, static_cast<double>(facts.streamed) / 1048576);
    } else {
      fputs("mode: all in RAM\n", stderr);
    }
  }
  return bundle;
}

void SayPaging(const rn_program* program, bool json, double seconds) {
  rn_paging_facts facts;
  if (rn_paging_status(program, &facts) != RN_OK) return;
  uint64_t passes = 0, seen = 0;
  for (const uint64_t count : facts.stalls) passes += count;
  int32_t half = 0;
  while (half < RN_STALLS - 1 && (seen += facts.stalls[half]) * 2 < passes) ++half;
  double stall = half ? 1e-3 : 0;  // milliseconds
  for (int32_t i = 0; i < half; ++i) stall *= 1.189207115002721;
  const double hits = facts.uses ? 1 - static_cast<double>(facts.waits) / static_cast<double>(facts.uses) : 1;
  printf(json ? ", \"ram_budget\": %llu, \"ram_peak\": %llu, \"pinned_bytes\": %llu, \"streamed_bytes_per_step\": "
                "%llu, \"read_bytes_per_s\": %.0f, \"stall_ms_p50\": %.6f, \"hit_rate\": %.6f, \"direct\": %d"
              : "budget %llu bytes, peak %llu, pinned %llu, streamed a step %llu; read %.0f bytes a second, stalls of "
                "%.3f ms (median), hit rate %.4f, past the cache: %d\n",
         static_cast<unsigned long long>(facts.ram), static_cast<unsigned long long>(facts.peak),
         static_cast<unsigned long long>(facts.pinned), static_cast<unsigned long long>(facts.streamed),
         static_cast<double>(facts.bytes_read) / (seconds > 0 ? seconds : 1), stall, hits, facts.direct);
}

Player::Player(const rn_bundle* bundle, int nonfinite)
    : bundle_(bundle),
      program_(rn_bundle_program(bundle)),
      inputs_(rn_input_count(program_)),
      outputs_(rn_output_count(program_)),
      nonfinite_(nonfinite),
      state_(Allocate(rn_state_bytes(program_))),
      scratch_(Allocate(rn_scratch_bytes(program_))),
      data_(static_cast<void**>(Allocate(static_cast<size_t>(outputs_) * sizeof(void*)))),
      capacity_(static_cast<int64_t*>(Allocate(static_cast<size_t>(outputs_) * 8))),
      written_(static_cast<int64_t*>(Allocate(static_cast<size_t>(outputs_) * 8))),
      due_(static_cast<int64_t*>(Allocate(static_cast<size_t>(outputs_) * 8))) {
  for (int32_t i = 0; i < outputs_; ++i) data_[i] = Allocate(0);
  if (const int code = rn_init(program_, state_, 0)) Explain(code, 0);
}

Player::~Player() {
  rn_workers_close(workers_);
  for (int32_t i = 0; i < outputs_; ++i) free(data_[i]);
  for (void* block : {state_, scratch_, static_cast<void*>(data_), static_cast<void*>(capacity_),
                      static_cast<void*>(written_), static_cast<void*>(due_)}) {
    free(block);
  }
}

void Player::Explain(int code, int64_t frames) const {
  const rn_facts& facts = *rn_bundle_facts(bundle_);
  if (code == RN_TOO_LONG && facts.max_frames) {
    Refuse("a push of %lld frames to a stream of %lld passes its limit of %lld: %s; flush the stream, and start again.",
           static_cast<long long>(frames), static_cast<long long>(position()), static_cast<long long>(facts.max_frames),
           facts.max_frames_reason[0] ? facts.max_frames_reason : "the program says so");
  }
  if (code == RN_NOT_FINITE) {
    Refuse("an input sample is NaN or infinite after frame %lld; mend the input, or give --on-nonfinite zero.",
           static_cast<long long>(position()));
  }
  Fail("%s.", code == RN_STORAGE ? rn_paging_error(program_) : rn_message(code));
}

void Player::WatchStorage() {
  rn_paging_facts facts;
  if (slow_said_ || rn_paging_status(program_, &facts) != RN_OK || !facts.late) return;
  slow_said_ = true;
  fprintf(stderr,
          "runnel-run: storage is slow: a step waited longer than --patience for weights and goes on; by now %.3f s of "
          "waiting in %llu passes of %.1f MiB each.\n",
          static_cast<double>(facts.stall_ns) * 1e-9, static_cast<unsigned long long>(facts.passes),
          static_cast<double>(facts.streamed) / 1048576);
}

void Player::Set(int32_t input, const void* value) {
  if (const int code = rn_set(program_, state_, input, value)) Explain(code, 0);
}

void Player::Reset() { rn_reset(program_, state_); }

void Player::Load(const char* path) {
  size_t bytes = 0;
  const uint8_t* snapshot = MapWhole(path, &bytes);
  if (rn_check_state(program_, snapshot, bytes) != RN_OK) {
    Refuse("'%s' is no state of this bundle: it belongs to another program, or is damaged; start without it.", path);
  }
  memcpy(state_, snapshot, bytes);
  UnmapWhole(snapshot, bytes);
}

void Player::Save(const char* path) const {
  OutputFile file;
  file.Open(path);
  file.Write(state_, state_bytes());
  file.Finish();
}

void Player::Grow(const int64_t* frames) {
  for (int32_t i = 0; i < outputs_; ++i) {
    if (frames[i] <= capacity_[i]) continue;
    free(data_[i]);
    capacity_[i] = frames[i];
    data_[i] = Allocate(static_cast<size_t>(frames[i] * rn_output_frame_bytes(program_, i)));
  }
}

void Player::UseThreads(int threads) {
  if (threads < 2) return;
  if (rn_workers_open(threads, &workers_) != RN_OK) Refuse("the system does not give %d threads; give fewer.", threads);
}

void Player::Prepare(int64_t frames) {
  const rn_facts& facts = *rn_bundle_facts(bundle_);
  const int64_t most = facts.max_frames && facts.max_frames < 2 * frames ? facts.max_frames : 2 * frames;
  if (rn_due(program_, state_, most, 0, due_) == RN_OK) Grow(due_);
}

void Player::Push(const void* const* inputs, int64_t frames) {
  auto push = [&] {
    return profile_ ? rn_push_profiled(program_, state_, scratch_, inputs, frames, data_, capacity_, written_,
                                       nonfinite_, profile_)
                    : rn_push_on(workers_, program_, state_, scratch_, inputs, frames, data_, capacity_, written_,
                                 nonfinite_);
  };
  int code = push();
  if (code == RN_CAPACITY) {
    Grow(written_);
    code = push();
  }
  if (code != RN_OK) Explain(code, frames);
  if (!slow_said_) WatchStorage();
}

bool Player::MayEnd(char* message, size_t bytes) const {
  return rn_check_length(bundle_, position(), message, bytes) == RN_OK;
}

void Player::Flush() {
  int code = rn_due(program_, state_, 0, 1, due_);
  if (code == RN_OK) {
    Grow(due_);
    code = rn_flush(program_, state_, scratch_, data_, capacity_, written_);
  }
  if (code != RN_OK) Explain(code, 0);
}

}  // namespace runnel_run
