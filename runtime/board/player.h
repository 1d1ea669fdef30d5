// A stream of a bundle: its state, its scratch, and room for what comes out.
#ifndef RUNNEL_BOARD_PLAYER_H_
#define RUNNEL_BOARD_PLAYER_H_

#include "options.h"
#include "runnel_bundle.h"
#include "say.h"

namespace runnel_run {

constexpr int kMostPorts = 64;

// Where time lies in a port's array [outer, frames, inner].
struct Layout {
  int64_t outer = 1, inner_bytes = 1;

  explicit Layout(const rn_port& port);
  int64_t frame_bytes() const { return outer * inner_bytes; }
};

// Opens the bundle, under its budget of RAM if there is one, or exits with the loader's sentence. With a budget the
// mode is said on the error stream.
rn_bundle* OpenBundle(const Options& options);
// What paging cost so far, as `, "name": value` pairs or a line of text; nothing without a budget.
void SayPaging(const rn_program* program, bool json, double seconds);

class Player {
 public:
  Player(const rn_bundle* bundle, int nonfinite);
  ~Player();
  Player(const Player&) = delete;
  Player& operator=(const Player&) = delete;

  const rn_bundle* bundle() const { return bundle_; }
  const rn_program* program() const { return program_; }
  int32_t inputs() const { return inputs_; }
  int32_t outputs() const { return outputs_; }
  int64_t position() const { return rn_position(program_, state_); }
  size_t state_bytes() const { return rn_state_bytes(program_); }

  // Gives a static input its value, one unpadded frame.
  void Set(int32_t input, const void* value);
  void Reset();
  // Goes on from a snapshot; exits where the file is none of this program.
  void Load(const char* path);
  // Writes a snapshot, whole or not at all.
  void Save(const char* path) const;
  // Lets threads share the steps, the caller's among them.
  void UseThreads(int threads);
  // From here on pushes note what each instruction takes.
  void UseProfile(const rn_profile* profile) { profile_ = profile; }
  // Room for all that any push of up to `frames` gives, and the pages of everything touched.
  void Prepare(int64_t frames);
  // Takes frames of the stream's clock; what came out is in `output` and `written`. Exits where the stream refuses.
  void Push(const void* const* inputs, int64_t frames);
  // Whether the stream may end here; a sentence where it may not.
  bool MayEnd(char* message, size_t bytes) const;
  void Flush();

  const uint8_t* output(int32_t i) const { return static_cast<const uint8_t*>(data_[i]); }
  int64_t written(int32_t i) const { return written_[i]; }
  // Frames that the output's array has room for, which is the distance between its outer parts.
  int64_t pitch(int32_t i) const { return capacity_[i]; }

 private:
  void Grow(const int64_t* frames);
  // Says once that storage is slow.
  void WatchStorage();
  [[noreturn]] void Explain(int code, int64_t frames) const;

  const rn_bundle* bundle_;
  const rn_program* program_;
  int32_t inputs_, outputs_;
  int nonfinite_;
  void* state_;
  void* scratch_;
  const rn_profile* profile_ = nullptr;
  rn_workers* workers_ = nullptr;
  void** data_;
  int64_t* capacity_;
  int64_t* written_;
  int64_t* due_;
  bool slow_said_ = false;
};

}  // namespace runnel_run

#endif  // RUNNEL_BOARD_PLAYER_H_
