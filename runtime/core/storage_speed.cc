// The C ABI: how fast a file is read.
#include <cstring>

#include "reserve.h"
#include "runnel_paging.h"
#include "storage.h"
#include "work_clock.h"

namespace {

constexpr uint64_t kPage = 4096, kMostBytes = uint64_t{4} << 20;
constexpr int32_t kMostDepth = 16;

}  // namespace

extern "C" int rn_read_speed(const char* path, int io, int32_t threads, uint64_t span, uint64_t bytes, int32_t depth,
                             int32_t count, int64_t* nanoseconds, int32_t* direct) {
  if (!path || !nanoseconds || !direct || bytes < kPage || bytes > kMostBytes || bytes % kPage || span < bytes ||
      depth < 1 || depth > kMostDepth || count < 1) {
    return RN_BAD_ARGUMENT;
  }
  runnel::Storage storage;
  if (storage.Open(path, io, threads)) return RN_STORAGE;
  const uint64_t room = runnel::InLargePages(bytes * static_cast<uint64_t>(depth));
  uint8_t* memory = runnel::Reserve(room);  // as the pager's buffers
  if (!memory) return RN_NO_MEMORY;
  runnel::TakeLargePages(memory, room);
  memset(memory, 1, room);
  uint64_t random = 0x9e3779b97f4a7c15u;
  const uint64_t places = (span - bytes) / kPage + 1;
  auto submit = [&](int32_t ticket) {
    random ^= random << 13, random ^= random >> 7, random ^= random << 17;  // xorshift64 (Marsaglia, 2003)
    const auto at = static_cast<uint64_t>(ticket) * bytes;
    storage.Submit(ticket, random % places * kPage, bytes, memory + at);
  };
  const int64_t from = runnel::WorkClock();
  int32_t sent = 0;
  for (; sent < depth && sent < count; ++sent) submit(sent);
  int code = RN_OK;
  for (int32_t done = 0; done < sent; ++done) {
    bool waited;
    if (storage.Wait(done % depth, 0, &waited)) code = RN_STORAGE;
    if (sent < count && code == RN_OK) {
      submit(done % depth);
      ++sent;
    }
  }
  *nanoseconds = runnel::WorkClock() - from;
  *direct = storage.direct();
  storage.Close();
  runnel::Unreserve(memory, room);
  return code;
}
