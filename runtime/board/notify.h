// Tells the service manager that the program is ready, alive or stopping (sd_notify(3), without its library).
#ifndef RUNNEL_BOARD_NOTIFY_H_
#define RUNNEL_BOARD_NOTIFY_H_

#include <sys/socket.h>
#include <sys/un.h>

#include <cstdint>

namespace runnel_run {

// Does nothing where the environment names no socket: then nobody asked.
class Notifier {
 public:
  Notifier();
  void Ready() { Send("READY=1"); }
  // At most four times in the period after which the manager takes the program for hung. now: in nanoseconds.
  void Alive(int64_t now);
  void Stopping() { Send("STOPPING=1"); }

 private:
  void Send(const char* text);

  int socket_ = -1;
  struct sockaddr_un to_ = {};
  socklen_t to_bytes_ = 0;
  int64_t period_ = 0, next_ = 0;
};

}  // namespace runnel_run

#endif  // RUNNEL_BOARD_NOTIFY_H_
