#include "channel.h"

#include <poll.h>
#include <time.h>

#include <cerrno>
#include <cstdarg>
#include <cstdio>

namespace runnel_agent {
namespace {

constexpr int64_t kSilence = 60000;  // of a serial line, after which the other side is taken for gone
constexpr int kTurn = 20;            // milliseconds between two looks at what is to be sent again

}  // namespace

int64_t Milliseconds() {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<int64_t>(now.tv_sec) * 1000 + now.tv_nsec / 1000000;
}

bool Channel::Read() {
  uint8_t bytes[16384];
  const ssize_t got = read(in_, bytes, sizeof bytes);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return true;
  if (got <= 0) return false;
  if (line_) {
    line_->Receive(bytes, static_cast<size_t>(got), Milliseconds());
    if (line_->TakeRestart()) {
      received_.Clear();
      taken_ = 0;
      restarted_ = true;
    }
    if (line_->received().size()) {
      received_.Put(line_->received().data(), line_->received().size());
      line_->received().Clear();
    }
  } else {
    received_.Put(bytes, static_cast<size_t>(got));
  }
  return true;
}

void Channel::Flush() {
  Bytes& out = line_->out();
  while (out.size()) {
    const ssize_t put = write(out_, out.data(), out.size());
    if (put < 0 && errno != EAGAIN && errno != EINTR) gone_ = true;
    if (put <= 0) return;
    out.Drop(static_cast<size_t>(put));
  }
}

bool Channel::Pump(int wait, int also) {
  if (gone_) return false;
  const int64_t until = Milliseconds() + wait;
  for (;;) {
    if (line_) {
      line_->Poll(Milliseconds());
      Flush();
    }
    const int64_t now = Milliseconds(), left = until > now ? until - now : 0;
    const bool full = line_ && line_->out().size();
    struct pollfd polled[] = {{in_, POLLIN, 0}, {also, POLLIN, 0}, {full ? out_ : -1, POLLOUT, 0}};
    const int turn = line_ && left > kTurn ? kTurn : static_cast<int>(left);
    if (poll(polled, 3, turn) < 0 && errno != EINTR) return false;
    if (polled[0].revents) {
      if (!Read()) gone_ = true;
      if (line_ && line_->ended()) gone_ = true;
      if (line_) {
        line_->Poll(Milliseconds());
        Flush();
      }
      return !gone_;
    }
    if (line_ && Milliseconds() - line_->heard() > kSilence) gone_ = true;
    if (gone_ || polled[1].revents || Milliseconds() >= until) return !gone_;
  }
}

bool Channel::Next(char* kind, const uint8_t** body, size_t* size) {
  received_.Drop(taken_);
  taken_ = 0;
  if (received_.size() < 5) return false;
  const uint32_t bytes = Number32(received_.data());
  if (bytes > kMostMessage) {
    gone_ = true;
    return false;
  }
  if (received_.size() - 5 < bytes) return false;
  *kind = static_cast<char>(received_.data()[4]);
  *body = received_.data() + 5;
  *size = bytes;
  taken_ = size_t{5} + bytes;
  return true;
}

void Channel::Send(char kind, const void* body, size_t size) {
  Bytes message;
  message.Put32(static_cast<uint32_t>(size));
  message.Put(&kind, 1);
  message.Put(body, size);
  if (line_) {
    if (!restarted_) line_->Write(message.data(), message.size());
    return;
  }
  while (message.size() && !gone_) {
    const ssize_t put = write(out_, message.data(), message.size());
    if (put < 0 && errno == EINTR) continue;
    if (put <= 0) {
      gone_ = true;
    } else {
      message.Drop(static_cast<size_t>(put));
    }
  }
}

void Channel::Say(char kind, const char* format, ...) {
  char text[1024];
  va_list arguments;
  va_start(arguments, format);
  const int n = vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  Send(kind, text, n < 0 ? 0 : static_cast<size_t>(n) < sizeof text ? static_cast<size_t>(n) : sizeof text - 1);
}

void Channel::Drain(int wait) {
  const int64_t until = Milliseconds() + wait;
  while (line_ && !line_->idle() && Milliseconds() < until && Pump(kTurn)) {
  }
}

}  // namespace runnel_agent
