// Ends a program at its Nth change of a file, as a cut of the power would: RUNNEL_DIES_AT counts from 1. Linked around
// the calls by --wrap.
#include <fcntl.h>
#include <stdarg.h>
#include <sys/types.h>
#include <unistd.h>

#include <cstdlib>

namespace {

void Change() {
  static long left = -1;
  if (left < 0) {
    const char* text = getenv("RUNNEL_DIES_AT");
    left = text ? atol(text) : 0;
  }
  if (left > 0 && --left == 0) _exit(99);
}

}  // namespace

#define WRAPPED(result, name, parameters, arguments) \
  extern "C" result __real_##name parameters;        \
  extern "C" result __wrap_##name parameters {       \
    Change();                                        \
    return __real_##name arguments;                  \
  }

WRAPPED(ssize_t, pwrite, (int file, const void* bytes, size_t n, off_t at), (file, bytes, n, at))
WRAPPED(int, posix_fallocate, (int file, off_t at, off_t n), (file, at, n))
WRAPPED(int, ftruncate, (int file, off_t n), (file, n))
WRAPPED(int, fsync, (int file), (file))
WRAPPED(int, fchmod, (int file, mode_t mode), (file, mode))
WRAPPED(int, rename, (const char* from, const char* to), (from, to))
WRAPPED(int, symlink, (const char* to, const char* path), (to, path))
WRAPPED(int, unlink, (const char* path), (path))
WRAPPED(int, unlinkat, (int folder, const char* path, int flags), (folder, path, flags))
WRAPPED(int, mkdir, (const char* path, mode_t mode), (path, mode))
WRAPPED(int, rmdir, (const char* path), (path))
