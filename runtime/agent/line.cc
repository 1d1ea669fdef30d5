#include "line.h"

#include "runnel.h"

namespace runnel_agent {
namespace {

constexpr size_t kMostFrame = Line::kHead + Line::kPayload + Line::kSum;
constexpr size_t kMostCoded = kMostFrame + kMostFrame / 254 + 1;
constexpr size_t kMostWaiting = 4096;  // of what is to go onto the line, so that what is sent is what is due now
constexpr int64_t kLeastRetry = 100, kMostRetry = 4000;

// The bytes between two zeros; how many bytes they stand for, 0 where they are not a frame.
size_t Decode(const uint8_t* coded, size_t n, uint8_t* bytes) {
  size_t size = 0;
  for (size_t at = 0; at < n;) {
    const size_t run = coded[at++];
    if (run == 0 || run - 1 > n - at || size + run > kMostFrame + 1) return 0;
    memcpy(bytes + size, coded + at, run - 1);
    size += run - 1;
    at += run - 1;
    if (run < 255 && at < n) bytes[size++] = 0;
  }
  return size;
}

void Encode(const uint8_t* bytes, size_t n, Bytes* out) {
  for (size_t at = 0;;) {
    size_t run = 0;
    while (at + run < n && run < 254 && bytes[at + run]) ++run;
    *out->Add(1) = static_cast<uint8_t>(run + 1);
    out->Put(bytes + at, run);
    at += run;
    if (at >= n) return;
    if (run < 254) ++at;  // the zero that this run stands for
    if (at == n && run < 254) {
      *out->Add(1) = 1;
      return;
    }
  }
}

}  // namespace

void Line::Receive(const uint8_t* bytes, size_t n, int64_t now) {
  for (size_t i = 0; i < n; ++i) {
    if (bytes[i]) {
      if (in_.size() <= kMostCoded) *in_.Add(1) = bytes[i];
      continue;
    }
    if (in_.size() && in_.size() <= kMostCoded) Frame(now);
    in_.Clear();
  }
}

void Line::Frame(int64_t now) {
  uint8_t frame[kMostFrame + 2];
  const size_t size = Decode(in_.data(), in_.size(), frame);
  if (size < kHead + kSum || size > kMostFrame) return;
  if (rn_crc32c(frame, size - kSum, 0) != Number32(frame + size - kSum)) return;
  const uint8_t kind = frame[0];
  const uint32_t session = Number32(frame + 1), number = Number32(frame + 5);
  if (kind == kOpen) {
    if (!open_ || session != session_) Restart(session);
    if (!touched_) Send(kOpened, 0, nullptr, 0);
    heard_ = now;
    return;
  }
  if (!open_ || session != session_) return;
  heard_ = now;
  touched_ = true;
  Acknowledged(Number32(frame + 9), Number32(frame + 13), now);
  if (kind == kData) Take(number, frame + kHead, size - kHead - kSum);
  owes_ |= kind == kData || kind == kAsk;
  ended_ |= kind == kEnd;
}

void Line::Restart(uint32_t session) {
  session_ = session;
  first_ = next_ = expected_ = 0;
  for (Early& slot : early_) slot.there = false;
  out_.Clear();
  sending_.Clear();
  received_.Clear();
  open_ = restarted_ = true;
  ended_ = owes_ = touched_ = false;
}

void Line::Acknowledged(uint32_t expected, uint32_t beyond, int64_t now) {
  if (expected - first_ > next_ - first_) return;  // not of what is under way
  uint64_t latest = 0;
  auto arrived = [&](uint32_t number) {
    Sent& slot = sent_[number % kWindow];
    if (slot.arrived) return;
    slot.arrived = true;
    if (slot.order > latest) latest = slot.order;
    if (slot.times > 1) return;  // it is not known which of them is answered (Karn and Partridge, 1987)
    const int64_t took = now - slot.at;
    spread_ += ((took > smooth_ ? took - smooth_ : smooth_ - took) - spread_) / 4;
    smooth_ += smooth_ ? (took - smooth_) / 8 : took;
    retry_ = smooth_ + 4 * spread_;
    retry_ = retry_ < kLeastRetry ? kLeastRetry : retry_ > kMostRetry ? kMostRetry : retry_;
  };
  for (uint32_t number = first_; number != expected; ++number) arrived(number);
  for (uint32_t i = 0; i < kWindow; ++i) {
    const uint32_t number = expected + 1 + i;
    if (beyond >> i & 1 && number - first_ < next_ - first_) arrived(number);
  }
  first_ = expected;
  for (uint32_t number = first_; number != next_; ++number) {
    Sent& slot = sent_[number % kWindow];
    slot.lost |= !slot.arrived && slot.order < latest;
  }
}

void Line::Take(uint32_t number, const uint8_t* bytes, size_t n) {
  if (number - expected_ >= kWindow) return;
  Early& slot = early_[number % kWindow];
  memcpy(slot.bytes, bytes, n);
  slot.size = n;
  slot.there = true;
  for (;; ++expected_) {
    Early& due = early_[expected_ % kWindow];
    if (!due.there) return;
    received_.Put(due.bytes, due.size);
    due.there = false;
  }
}

void Line::Poll(int64_t now) {
  if (!open_) return;
  for (uint32_t number = first_; number != next_ && out_.size() < kMostWaiting; ++number) {
    if (sent_[number % kWindow].lost) SendSlot(number, now);
  }
  // Where nothing is answered, the first frame alone is sent again: its answer says which others are lost.
  if (first_ != next_ && now - sent_[first_ % kWindow].at >= retry_ && now - retried_ >= retry_) {
    retried_ = now;
    if (retry_ < kMostRetry) retry_ += retry_ / 2;
    SendSlot(first_, now);
  }
  while (sending_.size() && next_ - first_ < window_ && out_.size() < kMostWaiting) {
    Sent& slot = sent_[next_ % kWindow];
    slot.size = sending_.size() < kPayload ? sending_.size() : kPayload;
    memcpy(slot.bytes, sending_.data(), slot.size);
    sending_.Drop(slot.size);
    slot.times = 0;
    slot.arrived = false;
    SendSlot(next_++, now);
  }
  if (owes_) Send(kAcknowledge, 0, nullptr, 0);
}

void Line::SendSlot(uint32_t number, int64_t now) {
  Sent& slot = sent_[number % kWindow];
  slot.at = now;
  slot.lost = false;
  slot.order = ++order_;
  ++slot.times;
  Send(kData, number, slot.bytes, slot.size);
}

void Line::Send(Kind kind, uint32_t number, const uint8_t* bytes, size_t n) {
  uint8_t frame[kMostFrame];
  uint32_t beyond = 0;
  for (uint32_t i = 0; i + 1 < kWindow; ++i) {
    beyond |= uint32_t{early_[(expected_ + 1 + i) % kWindow].there} << i;
  }
  const uint32_t numbers[] = {session_, number, expected_, beyond};
  frame[0] = kind;
  for (int i = 0; i < 16; ++i) frame[1 + i] = static_cast<uint8_t>(numbers[i / 4] >> (8 * (i % 4)));
  if (n) memcpy(frame + kHead, bytes, n);
  const uint32_t sum = rn_crc32c(frame, kHead + n, 0);
  for (int i = 0; i < 4; ++i) frame[kHead + n + i] = static_cast<uint8_t>(sum >> (8 * i));
  *out_.Add(1) = 0;
  Encode(frame, kHead + n + kSum, &out_);
  *out_.Add(1) = 0;
  owes_ = false;
}

}  // namespace runnel_agent
