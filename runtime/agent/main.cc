// runnel-agent DIR [--line]: keeps the versions of a model in DIR for a laptop that speaks over the standard streams,
// or over the serial line that they are.
#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/utsname.h>
#include <termios.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <new>

#include "../core/cpu.h"
#include "../core/files.h"
#include "../core/sha256.h"
#include "../sign/trust.h"
#include "channel.h"
#include "store.h"

namespace runnel_agent {
namespace {

constexpr char kVersion[] = "1";

// One "key value" line each: what the laptop asks of a board before it sends anything.
void Describe(Channel& channel, const uint8_t* features, size_t n) {
  Bytes text;
  char line[256], digits[65] = "";
  auto say = [&](const char* key, const char* value) {
    text.Put(key);
    text.Put(" ");
    text.Put(value);
    text.Put("\n");
  };
  int file = -1;
  uint64_t size = 0;
  runnel::Mapped self;
  if (runnel::OpenFile("/proc/self/exe", &file, &size) == 0) {
    if (runnel::MapFile(file, 0, static_cast<size_t>(size), false, &self) == 0) {
      uint8_t digest[32];
      runnel::Sha256(self.data, self.bytes, digest);
      runnel::WriteHex(digest, digits);
      runnel::Unmap(&self);
    }
    runnel::CloseFile(file);
  }
  say("protocol", kVersion);
  say("self", digits);
  say("arch", runnel::Architecture());
  snprintf(line, sizeof line, "%ld", sysconf(_SC_PAGESIZE));
  say("page", line);
  char memory[4096];
  const size_t got = runnel::ReadSmallFile("/proc/meminfo", memory, sizeof memory - 1);
  memory[got] = 0;
  long long kib = 0;
  const char* available = strstr(memory, "MemAvailable:");
  if (available) kib = strtoll(available + 13, nullptr, 10);
  snprintf(line, sizeof line, "%lld", kib);
  say("available_kib", line);
  struct statvfs disk;
  const uint64_t free = statvfs(".", &disk) == 0 ? uint64_t{disk.f_bavail} * disk.f_frsize : 0;
  snprintf(line, sizeof line, "%llu", static_cast<unsigned long long>(free));
  say("disk", line);
  Bytes lacking;
  const runnel::Features known;
  for (size_t at = 0; at < n && known.Known();) {
    size_t stop = at;
    while (stop < n && features[stop] != ' ') ++stop;
    if (stop > at && !known.Has({reinterpret_cast<const char*>(features) + at, stop - at})) {
      lacking.Put(features + at, stop - at);
      lacking.Put(" ");
    }
    at = stop + 1;
  }
  *lacking.Add(1) = 0;
  say("lacking", lacking.text());
  char current[kId + 1], previous[kId + 1];
  CurrentVersion(current);
  PreviousVersion(current, previous);
  say("current", current);
  say("previous", previous);
  runnel_sign::Keys keys;
  keys.Read(runnel_sign::kBoardKeys);
  keys.Read(runnel_sign::kStoreKeys);
  say("keyed", keys.told ? "yes" : "no");
  channel.Send(kFine, text.data(), text.size());
}

// False where the laptop is done.
bool Answer(Channel& channel, Store& store, char kind, const uint8_t* body, size_t n) {
  switch (kind) {
    case 'H':
      Describe(channel, body, n);
      return true;
    case 'B':
      store.Begin(body, n);
      return true;
    case 'P':
      store.Put(body, n);
      return true;
    case 'C':
      store.Commit(n > 0 && body[0] == 1);
      return true;
    case 'R':
      store.Rollback();
      return true;
    case 'T':
      store.Trust(body, n);
      return true;
    case 'Q':
      channel.Send(kFine, nullptr, 0);
      return false;
    default:
      channel.Say(kRefused, "the agent on the board does not know what was asked; update it.");
      return true;
  }
}

int Serve(Channel& channel) {
  Store store(channel);
  for (;;) {
    char kind;
    const uint8_t* body;
    size_t n;
    if (channel.TakeRestart()) store.Forget();
    if (channel.Next(&kind, &body, &n)) {
      if (!Answer(channel, store, kind, body, n)) break;
    } else if (!channel.Pump(1000)) {
      return 1;
    }
  }
  channel.Drain(3000);
  return 0;
}

// Speeds of a line in bits a second.
uint32_t Window(const struct termios& line) {
  static const struct {
    speed_t code;
    uint32_t bits;
  } kSpeeds[] = {{B1200, 1200},   {B2400, 2400},   {B4800, 4800},     {B9600, 9600},     {B19200, 19200},
                 {B38400, 38400}, {B57600, 57600}, {B115200, 115200}, {B230400, 230400}, {B460800, 460800}};
  for (const auto& speed : kSpeeds) {
    if (speed.code != cfgetospeed(&line)) continue;
    const uint32_t frames = speed.bits / 10 * 7 / 10 / Line::kPayload;  // of 0.7 s
    return frames < 2 ? 2 : frames < Line::kWindow ? frames : Line::kWindow;
  }
  return Line::kWindow;
}

int OnLine() {
  struct termios before, raw;
  if (tcgetattr(0, &before) != 0) {
    fprintf(stderr, "runnel-agent: the standard input is no serial line: %s\n", strerror(errno));
    return 2;
  }
  raw = before;
  cfmakeraw(&raw);
  raw.c_cflag |= CLOCAL | CREAD;
  raw.c_cc[VMIN] = 1;
  raw.c_cc[VTIME] = 0;
  tcsetattr(0, TCSANOW, &raw);
  const int flags = fcntl(0, F_GETFL);
  fcntl(0, F_SETFL, flags | O_NONBLOCK);
  void* room = malloc(sizeof(Line));
  if (!room) return kNoMemory;
  Line* line = new (room) Line(Window(before));
  line->Start(Milliseconds());
  Channel channel(0, 0, line);
  const int code = Serve(channel);
  fcntl(0, F_SETFL, flags);
  tcsetattr(0, TCSADRAIN, &before);
  return code;
}

int Main(int count, char** words) {
  const bool on_line = count == 3 && strcmp(words[2], "--line") == 0;
  if (count < 2 || (count == 3 && !on_line) || count > 3) {
    fputs("runnel-agent DIR [--line]: keeps the versions of a model in DIR; runnel push starts it.\n", stderr);
    return 2;
  }
  signal(SIGPIPE, SIG_IGN);
  signal(SIGHUP, SIG_IGN);
  signal(SIGXFSZ, SIG_IGN);
  umask(022);
  if (chdir(words[1]) != 0) {
    fprintf(stderr, "runnel-agent: the folder '%s' cannot be used: %s\n", words[1], strerror(errno));
    return 2;
  }
  const int lock = open("lock", O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0644);
  if (lock < 0 || flock(lock, LOCK_EX | LOCK_NB) != 0) {
    fprintf(stderr, "runnel-agent: the folder '%s' %s: %s\n", words[1],
            lock < 0 ? "cannot be written" : "is in use by another push", strerror(errno));
    return 2;
  }
  if (on_line) return OnLine();
  Channel channel(0, 1, nullptr);
  return Serve(channel);
}

}  // namespace
}  // namespace runnel_agent

int main(int count, char** words) { return runnel_agent::Main(count, words); }
