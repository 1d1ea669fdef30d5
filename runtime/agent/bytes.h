// Bytes that grow, for a program that allocates with malloc and ends where there is no memory.
#ifndef RUNNEL_AGENT_BYTES_H_
#define RUNNEL_AGENT_BYTES_H_

#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace runnel_agent {

constexpr int kNoMemory = 3;  // the exit code

class Bytes {
 public:
  Bytes() = default;
  Bytes(const Bytes&) = delete;
  Bytes& operator=(const Bytes&) = delete;
  ~Bytes() { free(block_); }

  uint8_t* data() { return block_ + start_; }
  const uint8_t* data() const { return block_ + start_; }
  const char* text() const { return reinterpret_cast<const char*>(data()); }
  size_t size() const { return stop_ - start_; }

  // Room for n more at the end.
  uint8_t* Add(size_t n) {
    if (n > room_ - stop_) Grow(n);
    uint8_t* added = block_ + stop_;
    stop_ += n;
    return added;
  }
  void Put(const void* bytes, size_t n) {
    if (n) memcpy(Add(n), bytes, n);
  }
  void Put(const char* words) { Put(words, strlen(words)); }
  void Put32(uint32_t value) {
    uint8_t* at = Add(4);
    for (int i = 0; i < 4; ++i) at[i] = static_cast<uint8_t>(value >> (8 * i));
  }
  // Takes n off the front, or off the end.
  void Drop(size_t n) {
    start_ += n;
    if (start_ == stop_) start_ = stop_ = 0;
  }
  void Cut(size_t n) { stop_ -= n; }
  void Clear() { start_ = stop_ = 0; }

 private:
  void Grow(size_t n) {
    const size_t held = size();
    if (start_ >= held && n <= room_ - held) {
      if (held) memmove(block_, block_ + start_, held);
    } else {
      const size_t wanted = held + n < held ? 0 : (held + n) * 2;
      auto* moved = wanted ? static_cast<uint8_t*>(malloc(wanted)) : nullptr;
      if (!moved) _exit(kNoMemory);
      if (held) memcpy(moved, block_ + start_, held);
      free(block_);
      block_ = moved;
      room_ = wanted;
    }
    start_ = 0;
    stop_ = held;
  }

  uint8_t* block_ = nullptr;
  size_t start_ = 0, stop_ = 0, room_ = 0;
};

inline uint32_t Number32(const uint8_t* at) {
  return uint32_t{at[0]} | uint32_t{at[1]} << 8 | uint32_t{at[2]} << 16 | uint32_t{at[3]} << 24;
}

}  // namespace runnel_agent

#endif  // RUNNEL_AGENT_BYTES_H_
