// The C ABI: several streams of one program in one call.
#include <new>

#include "platform.h"
#include "runnel.h"
#include "stream.h"

namespace runnel {
namespace {

// What rn_push_many was given; a lane with frames below 0 rests.
struct Lanes {
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

size_t LaneScratch(const Program& program) { return (static_cast<size_t>(program.working_bytes) + 63) & ~size_t{63}; }

// Up to RN_LANES_TOGETHER lanes, each in a scratch of its own: every instruction runs for all of them before the next
// one, so that its weights are read once.
class Group {
 public:
  explicit Group(const Lanes& all) : all_(all) {}

  // Takes the next lanes with frames, from lane `first` on; the lane after them, or -1 where there were none.
  int32_t Take(int32_t first) {
    size_ = 0;
    for (; first < all_.count && size_ < RN_LANES_TOGETHER; ++first) {
      if (all_.frames[first] < 0) continue;
      const int64_t i = first * all_.program.inputs.size, o = first * all_.program.outputs.size;
      const Arrays arrays{all_.inputs + i, all_.frames[first], all_.outputs + o, all_.capacity + o, all_.written + o};
      new (Memory(size_)) Stream(all_.program, all_.states[first],
                                 all_.scratch + LaneScratch(all_.program) * static_cast<size_t>(size_), arrays);
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
      if (code == RN_OK) code = RunSteps(steps, n);
      for (int32_t k = 0; k < n; ++k) {
        const int given = At(running[k]).Finish(code);
        if (code == RN_OK) code = given;
      }
      if (code != RN_OK) return code;
    }
  }

 private:
  void* Memory(int32_t k) { return streams_ + sizeof(Stream) * static_cast<size_t>(k); }
  Stream& At(int32_t k) { return *static_cast<Stream*>(Memory(k)); }

  const Lanes& all_;
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
  return runnel::LaneScratch(*program) * static_cast<size_t>(together);
}

int rn_push_many(const rn_program* program, int32_t lanes, void* const* states, void* scratch,
                 const void* const* inputs, const int64_t* frames, void* const* outputs, const int64_t* capacity,
                 int64_t* written, const int* nonfinite, int32_t* failed) {
  if (!program || lanes < 0 || !states || !inputs || !frames || !outputs || !capacity || !written || !nonfinite ||
      !failed || !runnel::Aligned(scratch)) {
    return RN_BAD_ARGUMENT;
  }
  runnel::FlushDenormals mode;
  const runnel::Lanes all{*program, lanes,   states,   static_cast<uint8_t*>(scratch), inputs, frames, outputs,
                          capacity, written, nonfinite};
  return runnel::PushMany(all, failed);
}

}  // extern "C"
