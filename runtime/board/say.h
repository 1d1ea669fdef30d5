// Ends the program with one sentence, and small memory that it keeps until then.
#ifndef RUNNEL_BOARD_SAY_H_
#define RUNNEL_BOARD_SAY_H_

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace runnel_run {

// Prints the sentence and exits: 2 for what the user gave, 1 for a fault of ours. Unfinished files are removed.
[[noreturn]] __attribute__((format(printf, 1, 2))) void Refuse(const char* format, ...);
[[noreturn]] __attribute__((format(printf, 1, 2))) void Fail(const char* format, ...);

// The bytes of a whole file, mapped; exits where it cannot be read.
const uint8_t* MapWhole(const char* path, size_t* bytes);
void UnmapWhole(const uint8_t* data, size_t bytes);

// A file that is written beside its place and gets its name when it is whole; `-` is the standard output. What is there
// and no file, such as a pipe or /dev/null, is written into and stays.
class OutputFile {
 public:
  void Open(const char* path);
  void Write(const void* bytes, size_t n);
  void WriteAt(long offset, const void* bytes, size_t n);
  void Flush();
  void Finish();

 private:
  const char* path_ = nullptr;
  char *place_ = nullptr, *temporary_ = nullptr;  // what it becomes at the end, and what it is until then
  void* file_ = nullptr;
};

// Memory at a multiple of 64 bytes, of which every page was written; exits where there is none.
void* Allocate(size_t bytes);

// An array that grows.
template <typename T>
struct Array {
  T* data = nullptr;
  size_t size = 0, room = 0;

  T* Add(size_t count) {
    if (count > room - size) {
      const size_t wanted = size + count > 2 * room ? size + count : 2 * room;
      T* moved = static_cast<T*>(realloc(data, wanted * sizeof(T)));
      if (!moved) Fail("there is not enough memory.");
      data = moved;
      room = wanted;
    }
    T* added = data + size;
    size += count;
    return added;
  }
  T* begin() { return data; }
  T* end() { return data + size; }
  void Put(const T& value) { *Add(1) = value; }
};

}  // namespace runnel_run

#endif  // RUNNEL_BOARD_SAY_H_
