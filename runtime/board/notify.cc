#include "notify.h"

#include <unistd.h>

#include <cstddef>
#include <cstdlib>
#include <cstring>

namespace runnel_run {

Notifier::Notifier() {
  const char* path = getenv("NOTIFY_SOCKET");
  const size_t n = path ? strlen(path) : 0;
  if (n < 2 || n >= sizeof to_.sun_path || (path[0] != '/' && path[0] != '@')) return;
  socket_ = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  to_.sun_family = AF_UNIX;
  memcpy(to_.sun_path, path, n);
  if (path[0] == '@') to_.sun_path[0] = 0;  // a name that is no file
  to_bytes_ = static_cast<socklen_t>(offsetof(struct sockaddr_un, sun_path) + n);
  const char* period = getenv("WATCHDOG_USEC");
  const char* owner = getenv("WATCHDOG_PID");
  if (period && (!owner || strtol(owner, nullptr, 10) == getpid())) period_ = strtoll(period, nullptr, 10) * 1000 / 4;
}

void Notifier::Alive(int64_t now) {
  if (period_ <= 0 || now < next_) return;
  next_ = now + period_;
  Send("WATCHDOG=1");
}

void Notifier::Send(const char* text) {
  if (socket_ < 0) return;
  sendto(socket_, text, strlen(text), MSG_NOSIGNAL | MSG_DONTWAIT, reinterpret_cast<const struct sockaddr*>(&to_),
         to_bytes_);
}

}  // namespace runnel_run
