// A plan (docs/plan.md), checked and decoded once by rn_open.
#ifndef RUNNEL_PLAN_H_
#define RUNNEL_PLAN_H_

#include <cstddef>
#include <cstdint>

namespace runnel {

constexpr int64_t kMaxFrames = int64_t{1} << 44;         // input frames of one stream
constexpr int64_t kMaxVirtualFrames = int64_t{1} << 45;  // with the steps after the end
constexpr int64_t kMaxEndSteps = int64_t{1} << 20;
constexpr int64_t kMaxMacs = int64_t{1} << 46;  // of one call of a kernel
constexpr int64_t kMaxCount = int64_t{1} << 62;
constexpr int64_t kMaxClocks = 4096;
constexpr int kMaxArguments = 16;
constexpr int kMaxApart = 16;
constexpr int64_t kMaxGathered = int64_t{1} << 28;
constexpr int64_t kStateHeaderBytes = 128;
constexpr int64_t kMissPoints = 9;
constexpr int64_t kPiece = int64_t{1} << 20;  // of a unit, that is read at once
constexpr int64_t kPage = 4096;               // of storage: segments of the weights are multiples of it

// Division of non-negative numbers by a constant without a division.
struct Divider {
  uint64_t divisor = 1;
  uint64_t inverse = 0;  // floor((2^64 - 1) / divisor)

  static Divider Of(int64_t d) { return {static_cast<uint64_t>(d), ~uint64_t{0} / static_cast<uint64_t>(d)}; }

  int64_t Divide(int64_t x) const {
#ifdef __SIZEOF_INT128__
    // The estimate is at most one too small for any x < 2^64.
    auto n = static_cast<uint64_t>(x);
    const uint64_t q = Estimate(n);
    return static_cast<int64_t>(q + (n - q * divisor >= divisor));
#else
    return x / static_cast<int64_t>(divisor);
#endif
  }
  int64_t Modulo(int64_t x) const {
#ifdef __SIZEOF_INT128__
    auto n = static_cast<uint64_t>(x);
    const uint64_t rest = n - Estimate(n) * divisor;
    return static_cast<int64_t>(rest >= divisor ? rest - divisor : rest);
#else
    return x % static_cast<int64_t>(divisor);
#endif
  }

 private:
#ifdef __SIZEOF_INT128__
  uint64_t Estimate(uint64_t n) const {
    return static_cast<uint64_t>((static_cast<unsigned __int128>(n) * inverse) >> 64);
  }
#endif
};

enum class ClockOp : int32_t { kInput = 0, kAffine = 1, kMin = 2, kMax = 3, kConst = 4, kEnded = 5 };

struct Clock {
  ClockOp op;
  int32_t a, b;
  int64_t mul, add;
  Divider div;
};

enum class Space : int32_t { kState = 1, kScratch = 2 };

// What every step reads of buffers, operands and instructions lies together: their weights leave them little of the
// nearest cache.
struct alignas(64) Buffer {
  Space space;
  int32_t made;  // a clock
  int64_t base;
  int64_t frame_bytes;
  int64_t slots, margin;
  Divider ring;
  uint32_t fill;   // float32 bits
  int32_t length;  // a clock
  int64_t lead, init_offset, init_frames;
  bool tail;
  int32_t last_writer;  // index of a top-level instruction, -1: an input or nothing
};

enum class OperandKind : int32_t {
  kWeights = 0,
  kIn = 1,
  kOut = 2,
  kRun = 3,
  kLast = 4,
  kFrame = 5,
  kRing = 6,
  kShare = 7,
  kUnits = 8
};

struct Operand {
  OperandKind kind;
  int32_t buffer;  // of kFrame: the length clock
  union {
    int64_t weights_offset;  // of kWeights; offset is how many bytes
    int64_t stride;
  };
  int64_t offset, dilation;  // of kOut: where in a frame, and how many bytes
  int32_t taps;
  // Of kUnits: the table; buffer is that of its slots, taps which of the chosen, -1 for where all slots begin, offset
  // where in the unit.
  int32_t table;

  int32_t Pointers() const { return (kind == OperandKind::kIn && taps > 1) || kind == OperandKind::kRing ? 2 : 1; }
};

enum class InstructionOp : int32_t {
  kCall = 1,
  kRepeat = 2,
  kCopy = 3,
  kSkipIf = 4,
  kAttend = 6,
  kFetch = 7,
  kChoose = 8
};
enum class CopyMode : int32_t { kFill = 0, kReflect = 1, kEdge = 2 };

// A kernel and the multiply-adds of one call.
struct Entry {
  const uint8_t* code;
  int64_t macs;
};

struct alignas(64) Instruction {
  InstructionOp op;
  int32_t guard = -1;    // the SKIP_IF that it runs under, -1: none
  int32_t made, length;  // clocks
  int32_t work;          // its number among calls and copies
  // CALL
  Entry kernel;
  int32_t first_operand, operands, arguments;
  // REPEAT
  int32_t body;
  bool together;  // also of a CALL: whether a kernel for rows apart is called
  // CALL
  bool shared;        // whether workers may share a call: it has a kShare operand
  bool plain;         // a CALL whose operands are all of kWeights, kIn, kRun and kOut
  Entry kernel_rows;  // no code: none
  int64_t rows;
  Entry kernel_apart;  // for rows that lie apart, such as those of several streams; no code: none
  int32_t rows_apart;
  // COPY
  int32_t source, target, source_length;
  int64_t offset;
  CopyMode mode;
  uint32_t fill;
  // SKIP_IF, with source: whose frame's first byte says which frames are not skipped
  uint8_t wanted;
  int32_t covered;
  // FETCH, with source, target and offset
  int64_t stride;
  int64_t table, row_bytes, in_block, block_bytes;  // `rows` rows, in_block of them in a block
  // CHOOSE, with source and target (-1: a guess that may be wrong)
  int32_t units;   // its table
  bool chooses;    // also of a REPEAT: whether its body chooses units
  int32_t joined;  // how many after it are made with it; -1: it is made with one before it
  // ATTEND. Buffers; -1: none
  int32_t cache, query, key, value, out, retain, positions;
};

// What a stream chooses of its caches, within what the plan allows.
enum CacheParam { kSlots, kSink, kWindow, kHeavy, kObserve, kSpare, kSystem, kVision, kAudio, kCacheParams = 12 };
enum class Family : int32_t { kFull, kWindow, kHeavy, kScissorhands, kRetain, kSnap, kMerge, kExternal, kPools };
enum class Positions : int32_t { kAbsolute = 0, kContiguous = 1 };

// Keys and values of one attention (docs/kv.md). Kernels have fixed arguments.
struct Cache {
  int32_t heads, kv_heads, key_dim, value_dim;
  int32_t block;                 // slots whose keys are interleaved
  int32_t pitch;                 // of scores and biases, from one query head to the next
  int32_t key_bits, value_bits;  // of an element; no bits: values are the first features of keys
  int32_t pairs, start;          // features that turn with the position, by two, and the first; no pairs: none
  int32_t distances;             // of a bias, 0: none
  int32_t axes;                  // positions of a frame that is told its own, 0: it has its number
  int32_t first_head;            // of the heads of all caches
  int64_t window;                // frames that the model itself sees, 0: all
  float factor;                  // of sines and cosines
  const uint64_t* turns;         // for each pair: turns per position, in 2^-128, low word first
  const int32_t* sections;       // for each pair: which of the frame's positions
  const float* bias;             // (heads, distances)
  const double* slopes;          // (heads)
  const float* ranks;            // (slots, 2, pairs): cosines and sines of ranks, for keys that are stored unturned
  const float* sinks;            // (heads)
  int32_t rows;                  // frames that attend_rows takes, 0: there is none
  const uint8_t *turn_query, *turn_key, *store, *attend, *attend_rows;
  int64_t macs;  // of one query and one kept slot
};

// What all caches of a plan have in common.
struct CacheRules {
  Family family;
  Positions positions;
  int64_t most[kCacheParams];
};

struct Input {
  int32_t buffer;
  bool is_float32;
  int64_t outer, inner_bytes;
  int64_t rate;  // frames for one of the stream's clock; 0: a static input, one frame that is set
};

struct Output {
  int32_t buffer;
  int32_t made, length;  // clocks
  int64_t shift;
  int64_t outer, inner_bytes;
  int64_t tail_start, tail_stop;  // tail_start > 0: only the frames [length - start, length - stop), at the end
};

template <typename T>
struct Span {
  T* data = nullptr;
  int32_t size = 0;
  T& operator[](int64_t i) const { return data[i]; }
  T* begin() const { return data; }
  T* end() const { return data + size; }
};

class Pager;

// Parts of the weights that are there when they were chosen: `units` of unit_bytes each, one after the other.
struct UnitTable {
  int64_t offset, units, unit_bytes;
  int64_t sums;  // where the CRC32C of each unit's pieces lie
  int32_t most;  // chosen at a time
  // Units that a frame chooses and that are not there, in 2^-8, where slots hold 0, 1/8, … of all units of this size,
  // if the plan told.
  bool told;
  bool window;  // whether units are kept in the order in which they were chosen last, whatever the policy
  int64_t misses[kMissPoints];

  int64_t Pieces() const { return (unit_bytes + kPiece - 1) / kPiece; }
};

struct Program {
  uint8_t hash[32];
  int64_t layout;  // hash of the plan's bytes: what the bytes of a state mean
  int64_t hop;
  int64_t most_frames;                 // input frames of one stream
  int64_t state_bytes, scratch_bytes;  // of the plan; a state with caches as large as they may be
  int64_t rings_end;                   // of the state: where caches begin
  int64_t work_at;                     // of the scratch: where attention works
  int64_t working_bytes;               // scratch with what the interpreter keeps behind the plan's part
  int64_t statics_end;                 // of the state: where what static inputs hold ends and the rest begins
  int64_t tap_entries;                 // of the longest tap tables of one call
  int64_t gathered_bytes;              // of the frames of a call for rows apart
  int64_t macs;                        // about those of a step: one frame of each call
  size_t own_bytes;                    // of the block that this begins
  const uint8_t* weights;
  Pager* pager;  // null: all weights are in memory
  Span<Clock> clocks;
  Span<int32_t> output_clocks;  // the clocks that outputs depend on, in order
  Span<Buffer> buffers;
  Span<Input> inputs;
  Span<Output> outputs;
  Span<Operand> operands;
  Span<Instruction> instructions;  // of the first entry point
  int32_t works;                   // calls and copies among them
  Span<Instruction> prefill;       // of the second: what states need and outputs do not; none: empty
  Span<Cache> caches;
  Span<UnitTable> tables;
  Span<int32_t> cache_heads;  // for each head of each cache: 1 keeps all, 0 as the rules say, else its slots at most
  CacheRules rules;
  int64_t angle_pairs;  // the most of a cache
  int64_t most_slots;   // of a head
};

// What rn_open was given.
struct Sources {
  const uint8_t* plan;
  size_t plan_bytes;
  const uint8_t* weights;
  size_t weights_bytes;
  const uint8_t* image;
  size_t image_bytes;
  const uint8_t* hash;
};

struct Message {
  char* text;
  size_t bytes;
};

// Checks everything and makes a program in one block of PlatformAlloc. Returns an rn_code; writes one sentence on
// failure.
int DecodePlan(const Sources& sources, Program** out, Message message);

// values[i] = clock i at t, for all clocks. lengths: the clocks at the end, null while the stream goes on.
void EvaluateClocks(const Program& program, int64_t t, const int64_t* lengths, int64_t* values);

inline int64_t EvaluateClock(const Clock& clock, int64_t t, const int64_t* lengths, const int64_t* values) {
  switch (clock.op) {
    case ClockOp::kInput:
      return t;
    case ClockOp::kAffine: {
      int64_t x = values[clock.a] * clock.mul + clock.add;
      return x <= 0 ? 0 : clock.div.divisor == 1 ? x : clock.div.Divide(x);
    }
    case ClockOp::kMin:
      return values[clock.a] < values[clock.b] ? values[clock.a] : values[clock.b];
    case ClockOp::kMax:
      return values[clock.a] > values[clock.b] ? values[clock.a] : values[clock.b];
    case ClockOp::kEnded:
      return lengths && values[clock.a] >= lengths[clock.b];
    default:
      return clock.add;
  }
}

}  // namespace runnel

#endif  // RUNNEL_PLAN_H_
