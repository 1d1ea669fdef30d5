// Memory that is taken piece by piece and given back at once, and text in it.
#ifndef RUNNEL_ARENA_H_
#define RUNNEL_ARENA_H_

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>

#include "platform.h"

namespace runnel {

// UTF-8, without an end.
struct Text {
  const char* data = "";
  size_t bytes = 0;

  bool Is(const char* other) const { return bytes == strlen(other) && memcmp(data, other, bytes) == 0; }
  bool Is(Text other) const { return bytes == other.bytes && memcmp(data, other.data, bytes) == 0; }
  bool Starts(const char* other) const { return bytes >= strlen(other) && memcmp(data, other, strlen(other)) == 0; }
};

// Makes an object in a block of PlatformAlloc.
template <typename T, typename... Arguments>
T* Place(void* block, Arguments... arguments) {
  return new (block) T(arguments...);
}

class Arena {
 public:
  explicit Arena(size_t most) : left_(most) {}
  ~Arena() {
    while (last_) {
      Chunk* before = last_->before;
      PlatformFree(last_);
      last_ = before;
    }
  }
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // Zeroed, aligned to 16 bytes; null where there is no more.
  void* Take(size_t bytes) {
    if (bytes > left_) return nullptr;
    bytes = (bytes + 15) & ~size_t{15};
    if (!last_ || bytes > room_) {
      const size_t size = bytes > kChunk ? bytes : kChunk;
      auto* chunk = static_cast<Chunk*>(PlatformAlloc(sizeof(Chunk) + size));
      if (!chunk) return nullptr;
      chunk->before = last_;
      last_ = chunk;
      next_ = reinterpret_cast<uint8_t*>(chunk + 1);
      room_ = size;
    }
    void* taken = next_;
    next_ += bytes;
    room_ -= bytes;
    left_ -= bytes < left_ ? bytes : left_;
    return taken;
  }

  template <typename T>
  T* Make(size_t count) {
    return count > left_ / sizeof(T) ? nullptr : static_cast<T*>(Take(count * sizeof(T)));
  }

  // A copy with an end; null where there is no memory.
  const char* Copy(Text text) {
    auto* copy = static_cast<char*>(Take(text.bytes + 1));
    if (copy && text.bytes) memcpy(copy, text.data, text.bytes);
    return copy;
  }

 private:
  static constexpr size_t kChunk = 16 * 1024;
  struct alignas(16) Chunk {
    Chunk* before;
  };
  Chunk* last_ = nullptr;
  uint8_t* next_ = nullptr;
  size_t room_ = 0, left_;
};

}  // namespace runnel

#endif  // RUNNEL_ARENA_H_
