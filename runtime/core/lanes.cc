// The C ABI: several streams of one program in one call.
#include <new>

#include "platform.h"
#include "runnel.h"
#include "stream.h"
#include "workers.h"

namespace runnel {
namespace {

// What rn_push_many was given; a lane with frames below 0 rests.
struct Lanes {
  rn_workers* workers;
  const Program& program;
  int32_t count;
  void* const* states;
  uint8_t* scratch;
  const void* const* inputs;
  const int64_t* frames;
  void* const* outputs;
  const int64_t* capacity;
  int64_t* written;
  const int* nonfinite;
};

constexpr int64_t kShareMacs = 1 << 20;  // of a call from which on its lanes are shared by workers

size_t LaneScratch(const Program& program) { return (static_cast<size_t>(program.working_bytes) + 63) & ~size_t{63}; }

// What each worker needs to gather the rows of its lanes.
size_t GatherScratch(const Program& program) {
  return (static_cast<size_t>(program.gathered_bytes) + 63) & ~size_t{63};
}

// Shares of two lanes or more, so that each has rows to put together.
int32_t MostShares(int32_t together) { return together < 4 ? 1 : together / 2; }

// The steps of some lanes, a share for each worker.
struct Shares {
  const Step* const* steps;
  int32_t count, shares;
  uint8_t* gathered;
  size_t each;
};

int32_t RunShare(const void* context, int32_t share) {
  const Shares& all = *static_cast<const Shares*>(context);
  const int32_t first = all.count * share / all.shares, end = all.count * (share + 1) / all.shares;
  uint8_t* gathered = all.gathered ? all.gathered + all.each * static_cast<size_t>(share) : nullptr;
  return RunSteps(all.steps + first, end - first, gathered);
}

// Up to RN_LANES_TOGETHER lanes, each in a scratch of its own: every instruction runs for all of them before the next
// one, so that its weights are read once.
class Group {
 public:
  explicit Group(const Lanes& all) : all_(all), help_{all.workers, nullptr} {}

  // Takes the next lanes with frames, from lane `first` on; the lane after them, or -1 where there were none.
  int32_t Take(int32_t first) {
    size_ = 0;
    for (; first < all_.count && size_ < RN_LANES_TOGETHER; ++first) {
      if (all_.frames[first] < 0) continue;
      const int64_t i = first * all_.program.inputs.size, o = first * all_.program.outputs.size;
      const Arrays arrays{all_.inputs + i, all_.frames[first], all_.outputs + o, all_.capacity + o, all_.written + o};
      new (Memory(size_)) Stream(all_.program, all_.states[first], LaneMemory(size_), help_, arrays);
      lanes_[size_++] = first;
    }
    return size_ ? first : -1;
  }

  int Check(int32_t* failed) {
    for (int32_t k = 0; k < size_; ++k) {
      *failed = lanes_[k];
      const int policy = all_.nonfinite[lanes_[k]];
      if (policy < RN_NONFINITE_ERROR || policy > RN_NONFINITE_RESET) return RN_BAD_ARGUMENT;
      if (int code = CheckCall(all_.program, all_.states[lanes_[k]], all_.scratch)) return code;
      if (int code = At(k).Check(policy)) return code;
    }
    return RN_OK;
  }

  int Room(int32_t* failed) {
    int result = RN_OK;
    for (int32_t k = 0; k < size_; ++k) {
      if (At(k).Room() == RN_OK) continue;
      *failed = lanes_[k];
      result = RN_CAPACITY;
    }
    return result;
  }

  int Run() {
    for (int32_t k = 0; k < size_; ++k) At(k).Begin();
    for (;;) {
      int32_t running[RN_LANES_TOGETHER], n = 0;
      const Step* steps[RN_LANES_TOGETHER];
      int code = RN_OK;
      for (int32_t k = 0; k < size_ && code == RN_OK; ++k) {
        if (!At(k).More()) continue;
        code = At(k).Prepare();
        steps[n] = &At(k).TheStep();
        running[n++] = k;
      }
      if (n == 0) return RN_OK;
      if (code == RN_OK) code = RunLanes(steps, n);
      for (int32_t k = 0; k < n; ++k) {
        const int given = At(running[k]).Finish(code);
        if (code == RN_OK) code = given;
      }
      if (code != RN_OK) return code;
    }
  }

 private:
  int RunLanes(const Step* const* steps, int32_t n) {
    const int32_t together = all_.count < RN_LANES_TOGETHER ? all_.count : RN_LANES_TOGETHER;
    int32_t shares = ThreadsOf(all_.workers);
    if (shares > MostShares(n)) shares = MostShares(n);
    if (all_.program.macs * n < kShareMacs) shares = 1;
    uint8_t* gathered = all_.program.gathered_bytes ? LaneMemory(together) : nullptr;
    const Shares all{steps, n, shares, gathered, GatherScratch(all_.program)};
    return RunTasks(all_.workers, RunShare, &all, shares);
  }

  uint8_t* LaneMemory(int32_t k) { return all_.scratch + LaneScratch(all_.program) * static_cast<size_t>(k); }
  void* Memory(int32_t k) { return streams_ + sizeof(Stream) * static_cast<size_t>(k); }
  Stream& At(int32_t k) { return *static_cast<Stream*>(Memory(k)); }

  const Lanes& all_;
  const Help help_;
  int32_t size_ = 0;
  int32_t lanes_[RN_LANES_TOGETHER];
  alignas(Stream) unsigned char streams_[sizeof(Stream) * RN_LANES_TOGETHER];
};

int PushMany(const Lanes& all, int32_t* failed) {
  Group group(all);
  int room = RN_OK;
  int32_t groups = 0;
  for (int32_t next = 0; (next = group.Take(next)) >= 0; ++groups) {
    if (int code = group.Check(failed)) return code;
  }
  for (int32_t next = 0; (next = group.Take(next)) >= 0;) {
    group.Check(failed);
    if (int code = group.Room(failed)) room = code;
    if (groups == 1) break;
  }
  if (room != RN_OK) return room;
  *failed = -1;
  if (groups == 1) return group.Run();
  for (int32_t next = 0, lane = 0; (next = group.Take(next)) >= 0;) {
    group.Check(&lane);
    group.Room(&lane);
    if (int code = group.Run()) return code;
  }
  return RN_OK;
}

}  // namespace
}  // namespace runnel

extern "C" {

size_t rn_batch_scratch_bytes(const rn_program* program, int32_t lanes) {
  const int32_t together = lanes < RN_LANES_TOGETHER ? lanes : RN_LANES_TOGETHER;
  return runnel::LaneScratch(*program) * static_cast<size_t>(together) +
         runnel::GatherScratch(*program) * static_cast<size_t>(runnel::MostShares(together));
}

int rn_push_many(const rn_program* program, int32_t lanes, void* const* states, void* scratch,
                 const void* const* inputs, const int64_t* frames, void* const* outputs, const int64_t* capacity,
                 int64_t* written, const int* nonfinite, int32_t* failed) {
  return rn_push_many_on(nullptr, program, lanes, states, scratch, inputs, frames, outputs, capacity, written,
                         nonfinite, failed);
}

int rn_push_many_on(rn_workers* workers, const rn_program* program, int32_t lanes, void* const* states, void* scratch,
                    const void* const* inputs, const int64_t* frames, void* const* outputs, const int64_t* capacity,
                    int64_t* written, const int* nonfinite, int32_t* failed) {
  if (!program || lanes < 0 || !states || !inputs || !frames || !outputs || !capacity || !written || !nonfinite ||
      !failed || !runnel::Aligned(scratch)) {
    return RN_BAD_ARGUMENT;
  }
  runnel::FlushDenormals mode;
  const runnel::Lanes all{workers, *program, lanes,   states,   static_cast<uint8_t*>(scratch), inputs, frames,
                          outputs, capacity, written, nonfinite};
  return runnel::PushMany(all, failed);
}

}  // extern "C"
