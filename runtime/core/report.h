// One sentence about what is wrong with a file.
#ifndef RUNNEL_REPORT_H_
#define RUNNEL_REPORT_H_

#include <cstdarg>
#include <cstdio>

#include "arena.h"
#include "runnel.h"

namespace runnel {

struct Report {
  const char* path;
  char* text;
  size_t bytes;
  int* code;

  // Writes the sentence; false, for the caller to pass on.
  __attribute__((format(printf, 2, 3))) bool Say(const char* format, ...) const {
    va_list arguments;
    va_start(arguments, format);
    *code = RN_BAD_BUNDLE;
    if (text && bytes) vsnprintf(text, bytes, format, arguments);
    va_end(arguments);
    return false;
  }
  bool NoMemory() const {
    Say("there is not enough memory to open '%s'.", path);
    *code = RN_NO_MEMORY;
    return false;
  }
};

// For "%.*s".
inline int Shown(Text text) { return text.bytes > 200 ? 200 : static_cast<int>(text.bytes); }

}  // namespace runnel

#endif  // RUNNEL_REPORT_H_
