// Messages between a laptop and the agent, over the standard streams or a serial line.
//
// A message is its size (32 bits, little-endian), its kind (1 byte) and its bytes. docs/deploy.md lists the kinds.
#ifndef RUNNEL_AGENT_CHANNEL_H_
#define RUNNEL_AGENT_CHANNEL_H_

#include "bytes.h"
#include "line.h"

namespace runnel_agent {

constexpr uint32_t kMostMessage = 32u << 20;
constexpr char kFine = 'o', kRefused = 'e', kLog = 'l';

int64_t Milliseconds();

class Channel {
 public:
  // line: null where what comes from `in` is whole and in order already.
  Channel(int in, int out, Line* line) : in_(in), out_(out), line_(line) {}

  // Waits up to `wait` milliseconds for bytes from the other side, or from `also`; false where the other side is gone.
  bool Pump(int wait, int also = -1);
  // The next whole message, which lives until the next call or Pump; false where there is none. One that is too large
  // ends it.
  bool Next(char* kind, const uint8_t** body, size_t* size);
  void Send(char kind, const void* body, size_t size);
  __attribute__((format(printf, 3, 4))) void Say(char kind, const char* format, ...);
  // Waits until all that was sent has arrived, at most `wait` milliseconds.
  void Drain(int wait);
  bool gone() const { return gone_ || restarted_; }
  // True once after the other side began anew: what it asked for before is to be given up, and is not answered.
  bool TakeRestart() {
    const bool was = restarted_;
    restarted_ = false;
    return was;
  }

 private:
  bool Read();
  void Flush();

  int in_, out_;
  Line* line_;
  Bytes received_;
  size_t taken_ = 0;
  bool gone_ = false, restarted_ = false;
};

}  // namespace runnel_agent

#endif  // RUNNEL_AGENT_CHANNEL_H_
