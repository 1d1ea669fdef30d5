// Steps streams from C and tells how long that took, and measures what this machine can do at most.
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace {

using Push = int (*)(const void* program, void* state, void* scratch, const void* const* inputs, int64_t frames,
                     void* const* outputs, const int64_t* capacity, int64_t* written, int nonfinite);
using PushMany = int (*)(const void* program, int32_t lanes, void* const* states, void* scratch,
                         const void* const* inputs, const int64_t* frames, void* const* outputs,
                         const int64_t* capacity, int64_t* written, const int* nonfinite, int32_t* failed);

// The processor time of this process, which neighbours on the core do not lengthen, or the time of the day.
double Now(clockid_t clock = CLOCK_PROCESS_CPUTIME_ID) {
  timespec now;
  clock_gettime(clock, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

constexpr int kChains = 12;  // independent accumulators: latency times throughput of a multiply-add, and some

#if defined(__AVX512F__)
constexpr int kVector = 64;
#elif defined(__AVX__)
constexpr int kVector = 32;
#else
constexpr int kVector = 16;
#endif
typedef float Floats __attribute__((vector_size(kVector), aligned(4), may_alias));

}  // namespace

extern "C" {

// One stream. inputs: `count` sets of `ports` pointers that take turns. seconds[b]: of each of `steps` steps of block
// b.
__attribute__((visibility("default"))) int time_steps(Push push, const void* program, void* state, void* scratch,
                                                      const void* const* inputs, int64_t count, int64_t ports,
                                                      int64_t frames, void* const* outputs, const int64_t* capacity,
                                                      int64_t* written, int64_t blocks, int64_t steps,
                                                      double* seconds) {
  int64_t turn = 0;
  for (int64_t b = 0; b < blocks; ++b) {
    const double start = Now();
    for (int64_t s = 0; s < steps; ++s) {
      const int code = push(program, state, scratch, inputs + turn * ports, frames, outputs, capacity, written, 0);
      if (code) return code;
      turn = turn + 1 == count ? 0 : turn + 1;
    }
    seconds[b] = (Now() - start) / static_cast<double>(steps);
  }
  return 0;
}

// One stream pushed frame by frame. seconds[r * period + p]: of push p of round r.
__attribute__((visibility("default"))) int time_phases(Push push, const void* program, void* state, void* scratch,
                                                       const void* const* inputs, void* const* outputs,
                                                       const int64_t* capacity, int64_t* written, int64_t period,
                                                       int64_t rounds, double* seconds) {
  for (int64_t i = 0; i < period * rounds; ++i) {
    const double start = Now(CLOCK_MONOTONIC);
    const int code = push(program, state, scratch, inputs, 1, outputs, capacity, written, 0);
    if (code) return code;
    seconds[i] = Now(CLOCK_MONOTONIC) - start;
  }
  return 0;
}

// `lanes` streams that are pushed together; the arrays are those of rn_push_many.
__attribute__((visibility("default"))) int time_lanes(PushMany push, const void* program, int32_t lanes,
                                                      void* const* states, void* scratch, const void* const* inputs,
                                                      const int64_t* frames, void* const* outputs,
                                                      const int64_t* capacity, int64_t* written, const int* nonfinite,
                                                      int64_t blocks, int64_t steps, double* seconds) {
  int32_t failed = -1;
  for (int64_t b = 0; b < blocks; ++b) {
    const double start = Now();
    for (int64_t s = 0; s < steps; ++s) {
      const int code =
          push(program, lanes, states, scratch, inputs, frames, outputs, capacity, written, nonfinite, &failed);
      if (code) return code;
    }
    seconds[b] = (Now() - start) / static_cast<double>(steps);
  }
  return 0;
}

// Bytes a second that one core reads from a block of `bytes` (a multiple of 1024) that it has read before.
__attribute__((visibility("default"))) double read_bandwidth(const void* block, size_t bytes, double least) {
  const auto* base = static_cast<const char*>(block);
  Floats sums[8] = {};
  double start = Now(), taken = 0;
  const int64_t each = 1 + (int64_t{1} << 22) / static_cast<int64_t>(bytes);  // between two looks at the clock
  int64_t passes = -each;                                                     // the first ones only bring the block in
  while (taken < least || passes < 1) {
    for (int64_t i = 0; i < each; ++i) {
      for (const char* p = base; p < base + bytes; p += 8 * kVector) {
        for (int k = 0; k < 8; ++k) sums[k] += *reinterpret_cast<const Floats*>(p + k * kVector);
      }
    }
    passes += each;
    if (passes == 0) start = Now();
    taken = Now() - start;
  }
  volatile float kept = 0;
  for (auto& sum : sums) kept = kept + sum[0];
  return static_cast<double>(bytes) * static_cast<double>(passes) / taken;
}

// Float32 multiply-adds a second of one core, on registers alone.
__attribute__((visibility("default"))) double peak_float32(double least) {
  Floats sums[kChains] = {};
  Floats x = {}, y = {};
  x += 0.5f, y += 0.25f;
  int64_t rounds = 0;
  const double start = Now();
  double taken = 0;
  while (taken < least) {
    for (int i = 0; i < 20000; ++i) {
#pragma GCC unroll 12
      for (int c = 0; c < kChains; ++c) sums[c] = sums[c] * x + y;
    }
    rounds += 20000;
    taken = Now() - start;
  }
  volatile float kept = 0;
  for (auto& sum : sums) kept = kept + sum[0];
  return static_cast<double>(rounds) * kChains * (kVector / 4) / taken;
}

// Multiply-adds a second of one core on int8 codes with int32 sums, by the widest dot product of its instructions.
// 0 where this compiler was not told of any.
__attribute__((visibility("default"))) double peak_int8(double least) {
#if defined(__AVX512VNNI__)
  __m512i sums[kChains], x = _mm512_set1_epi8(3), y = _mm512_set1_epi8(5);
  for (auto& sum : sums) sum = _mm512_setzero_si512();
#define STEP(sum) _mm512_dpbusd_epi32(sum, x, y)
  constexpr int kLanes = 64;
#elif defined(__AVX2__)
  __m256i sums[kChains], x = _mm256_set1_epi8(3), y = _mm256_set1_epi8(5);
  for (auto& sum : sums) sum = _mm256_setzero_si256();
#define STEP(sum) \
  _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(x, _mm256_xor_si256(y, sum)), _mm256_set1_epi16(1)))
  constexpr int kLanes = 32;
#elif defined(__ARM_FEATURE_DOTPROD)
  int32x4_t sums[kChains];
  int8x16_t x = vdupq_n_s8(3), y = vdupq_n_s8(5);
  for (auto& sum : sums) sum = vdupq_n_s32(0);
#define STEP(sum) vdotq_s32(sum, x, y)
  constexpr int kLanes = 16;
#else
  (void)least;
  return 0;
#endif
#if defined(STEP)
  int64_t rounds = 0;
  const double start = Now();
  double taken = 0;
  while (taken < least) {
    for (int i = 0; i < 20000; ++i) {
#pragma GCC unroll 12
      for (int c = 0; c < kChains; ++c) sums[c] = STEP(sums[c]);
    }
    rounds += 20000;
    taken = Now() - start;
  }
  volatile char kept = 0;
  for (auto& sum : sums) {
    char bytes[sizeof sum];
    memcpy(bytes, &sum, sizeof sum);
    kept = static_cast<char>(kept + bytes[0]);
  }
  return static_cast<double>(rounds) * kChains * kLanes / taken;
#endif
}

}  // extern "C"
