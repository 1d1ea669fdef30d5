// A stream of bytes, whole and in order, over a serial line that drops, changes and delays them.
//
// Frames are COBS (Cheshire and Baker, 1999) between zero bytes: kind (1 byte), session, number, expected, beyond (32
// bits each, little-endian), up to 512 bytes, CRC-32C of all of it. A frame with data has the next number of its side.
// Every frame acknowledges: all numbers before `expected`, and expected + 1 + i where bit i of `beyond` is set. Up to
// 32 frames are under way; a line keeps the order, so one is lost where a later one was acknowledged (selective
// repeat).
#ifndef RUNNEL_AGENT_LINE_H_
#define RUNNEL_AGENT_LINE_H_

#include "bytes.h"

namespace runnel_agent {

class Line {
 public:
  static constexpr size_t kPayload = 512, kHead = 17, kSum = 4;
  static constexpr uint32_t kWindow = 32;
  enum Kind : uint8_t { kOpen = 1, kOpened = 2, kData = 3, kAcknowledge = 4, kAsk = 5, kEnd = 6 };

  // window: how many frames may be under way, so that what waits inside the system takes less than a second.
  explicit Line(uint32_t window = kWindow) : window_(window) {}

  // From now on silence counts.
  void Start(int64_t now) { heard_ = now; }
  // What came from the line, at a time in milliseconds.
  void Receive(const uint8_t* bytes, size_t n, int64_t now);
  // Puts the frames that are due into out().
  void Poll(int64_t now);
  // What shall go onto the line.
  Bytes& out() { return out_; }

  void Write(const uint8_t* bytes, size_t n) { sending_.Put(bytes, n); }
  // What arrived, in order.
  Bytes& received() { return received_; }

  bool open() const { return open_; }
  bool ended() const { return ended_; }
  // True once after the other side began a session: what the one before left is gone.
  bool TakeRestart() {
    const bool was = restarted_;
    restarted_ = false;
    return was;
  }
  // Whether all that was written has arrived.
  bool idle() const { return next_ == first_ && sending_.size() == 0; }
  // When a frame came last.
  int64_t heard() const { return heard_; }

 private:
  struct Sent {
    uint8_t bytes[kPayload];
    size_t size;
    int64_t at;      // when it was sent last
    uint64_t order;  // counts frames as they are sent
    int times;
    bool arrived, lost;
  };
  struct Early {
    uint8_t bytes[kPayload];
    size_t size;
    bool there;
  };

  void Frame(int64_t now);
  void Restart(uint32_t session);
  void Acknowledged(uint32_t expected, uint32_t beyond, int64_t now);
  void Take(uint32_t number, const uint8_t* bytes, size_t n);
  void Send(Kind kind, uint32_t number, const uint8_t* bytes, size_t n);
  void SendSlot(uint32_t number, int64_t now);

  Bytes in_, out_, sending_, received_;
  Sent sent_[kWindow];
  Early early_[kWindow];
  uint32_t window_, session_ = 0, first_ = 0, next_ = 0, expected_ = 0;
  uint64_t order_ = 0;
  int64_t heard_ = 0, retried_ = 0, retry_ = 1000, smooth_ = 0, spread_ = 0;
  bool open_ = false, ended_ = false, restarted_ = false, owes_ = false, touched_ = false;
};

}  // namespace runnel_agent

#endif  // RUNNEL_AGENT_LINE_H_
