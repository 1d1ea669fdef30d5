// A version that is whole is checked, tried and made the current one.
#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <initializer_list>

#include "../core/sha256.h"
#include "../core/zipfile.h"
#include "../sign/trust.h"
#include "known.h"
#include "store.h"

namespace runnel_agent {
namespace {

constexpr unsigned kExchange = 2;  // of renameat2
constexpr size_t kMostArena = size_t{64} << 20;
constexpr size_t kMostSaid = 512;  // of what a program says that is kept

int Exchange(const char* a, const char* b) {
  return syscall(SYS_renameat2, AT_FDCWD, a, AT_FDCWD, b, kExchange) == 0 ? 0 : errno;
}

int Open(const char* folder, const char* name) {
  char path[128];
  snprintf(path, sizeof path, "%s/%s", folder, name);
  return open(path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
}

}  // namespace

// Whether a folder holds exactly a version, by the hashes of what storage gives.
bool Store::IsWhole(const char* folder, const Spec& spec) {
  static uint8_t bytes[kChunk];
  for (int i = 0; i < Spec::kFiles; ++i) {
    const File& about = spec.file(i);
    const int file = Open(folder, about.name);
    if (file < 0) return false;
    bool good = lseek(file, 0, SEEK_END) == static_cast<off_t>(about.size);
    posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
    for (uint32_t chunk = 0; good && chunk < about.chunks; ++chunk) {
      const size_t n = about.ChunkBytes(chunk);
      uint8_t digest[32];
      good = ReadChunk(file, chunk, bytes, n) && Alive();
      if (!good) break;
      runnel::Sha256(bytes, n, digest);
      good = memcmp(digest, spec.hash(about.first + chunk), sizeof digest) == 0;
    }
    close(file);
    if (!good) return false;
  }
  return true;
}

// Brings what was sent to storage and gives it its modes.
bool Store::Seal() {
  for (int i = 0; i < Spec::kFiles; ++i) {
    const int file = Open(folder_, spec_.file(i).name);
    if (file < 0) return Fail("'%s' has gone from the board; push again.", spec_.file(i).name);
    const int error = fchmod(file, spec_.file(i).mode) != 0 || fsync(file) != 0 ? errno : 0;
    close(file);
    if (error) return Fail("'%s' does not reach the board's storage: %s.", spec_.file(i).name, strerror(error));
    if (!Alive()) return false;
  }
  char path[96];
  snprintf(path, sizeof path, "%s/spec", folder_);
  int error = WriteSmall(path, spec_.text().data(), spec_.text().size());
  if (!error) error = SyncFolder(folder_);
  return !error || Fail("'%s' does not reach the board's storage: %s.", path, strerror(error));
}

// Where the board is told keys: whether one of them signed the bundle and the program.
bool Store::Allowed(const char* folder) {
  runnel_sign::Keys keys;
  keys.Read(runnel_sign::kBoardKeys);
  keys.Read(runnel_sign::kStoreKeys);
  if (!keys.told) return true;
  char path[96], why[512] = "";
  snprintf(path, sizeof path, "%s/%s", folder, kModel);
  int file = -1, code = 0;
  uint64_t size = 0;
  runnel::Mapped mapped;
  runnel::Arena arena(kMostArena);
  runnel::Directory directory;
  const runnel::Report report = {path, why, sizeof why, &code};
  bool read = runnel::OpenFile(path, &file, &size) == 0 && size > 0;
  if (read) read = runnel::MapFile(file, 0, static_cast<size_t>(size), false, &mapped) == 0;
  if (read) read = runnel::ReadDirectory(mapped, arena, report, &directory);
  const runnel::ZipEntry* manifest = read ? directory.Find("manifest.json") : nullptr;
  const runnel::ZipEntry* signatures = read ? directory.Find("manifest.sig") : nullptr;
  bool bundle = false, program = false;
  if (manifest && signatures) {
    const auto* text = reinterpret_cast<const char*>(mapped.data + signatures->offset);
    const auto n = static_cast<size_t>(signatures->bytes);
    bundle = keys.Signed("bundle", mapped.data + manifest->offset, static_cast<size_t>(manifest->bytes), text, n);
    runnel::Mapped code_file;
    int program_file = -1;
    snprintf(path, sizeof path, "%s/%s", folder, kProgram);
    if (runnel::OpenFile(path, &program_file, &size) == 0 &&
        runnel::MapFile(program_file, 0, static_cast<size_t>(size), false, &code_file) == 0) {
      uint8_t digest[32];
      runnel::Sha256(code_file.data, code_file.bytes, digest);
      program = keys.Signed("program", digest, sizeof digest, text, n);
    }
    runnel::Unmap(&code_file);
    if (program_file >= 0) runnel::CloseFile(program_file);
  }
  runnel::Unmap(&mapped);
  if (file >= 0) runnel::CloseFile(file);
  if (bundle && program) return true;
  if (!read && why[0]) return Fail("%s", why);
  return Fail(
      "the board runs only what its key signed, and %s is not; sign it (runnel sign) with a key of the board's and "
      "push "
      "again.",
      bundle ? "the program runnel-run" : "the bundle");
}

// Plays the golden input with the program that was sent.
bool Store::Play(const char* folder) {
  char program[96], model[96];
  snprintf(program, sizeof program, "%s/%s", folder, kProgram);
  snprintf(model, sizeof model, "%s/%s", folder, kModel);
  int pipes[2];
  if (pipe2(pipes, O_CLOEXEC) != 0) return Fail("the program cannot be started on the board: %s.", strerror(errno));
  const pid_t child = fork();
  if (child == 0) {
    const int nothing = open("/dev/null", O_RDONLY);
    dup2(nothing, 0);
    dup2(pipes[1], 1);
    dup2(pipes[1], 2);
    execl(program, program, "verify", model, static_cast<char*>(nullptr));
    dprintf(1, "%s does not start: %s\n", program, strerror(errno));
    _exit(127);
  }
  close(pipes[1]);
  if (child < 0) {
    close(pipes[0]);
    return Fail("the program cannot be started on the board: %s.", strerror(errno));
  }
  Bytes said;
  for (;;) {
    struct pollfd ready = {pipes[0], POLLIN, 0};
    if (!channel_.Pump(1000, pipes[0]) || channel_.gone()) break;
    if (poll(&ready, 1, 0) <= 0) continue;
    char text[512];
    const ssize_t got = read(pipes[0], text, sizeof text);
    if (got <= 0) break;
    channel_.Send(kLog, text, static_cast<size_t>(got));
    said.Put(text, static_cast<size_t>(got));
    if (said.size() > kMostSaid) said.Drop(said.size() - kMostSaid);
  }
  close(pipes[0]);
  if (channel_.gone()) kill(child, SIGKILL);
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (channel_.gone()) return false;
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return true;
  if (WIFSIGNALED(status)) {
    return Fail("the program ended with the signal %d (%s) on the board, which stays with what it had.",
                WTERMSIG(status), strsignal(WTERMSIG(status)));
  }
  while (said.size() && (said.text()[said.size() - 1] == '\n' || said.text()[said.size() - 1] == '.')) said.Cut(1);
  *said.Add(1) = 0;
  const char* line = strrchr(said.text(), '\n');
  return Fail("the bundle is not verified on the board, which stays with what it had: %s.",
              line ? line + 1 : said.text());
}

void Store::Commit(bool use) {
  for (size_t i = 0; begun_ && i < have_.size(); ++i) begun_ = have_.data()[i];
  if (!begun_) {
    Fail("the version is not whole; push again.");
    return;
  }
  begun_ = false;
  if (!there_ && (!Seal() || !Alive())) return;
  if (!there_ && !IsWhole(folder_, spec_)) {
    if (channel_.gone()) return;
    RemoveFolder(folder_);
    Fail("what the board's storage gives is not what was written there; check its card or disk and push again.");
    return;
  }
  if (!Allowed(folder_) || !Play(folder_)) {
    if (!there_ && !channel_.gone()) RemoveFolder(folder_);
    return;
  }
  if (!there_) {
    char whole[64];
    snprintf(whole, sizeof whole, "versions/%s", spec_.id());
    int error = rename(folder_, whole) != 0 ? errno : 0;
    if (error == ENOTEMPTY || error == EEXIST) error = Exchange(folder_, whole);  // a damaged one of that name
    if (!error) error = SyncFolder("versions");
    if (error) {
      Fail("the version cannot be put in its place on the board: %s.", strerror(error));
      return;
    }
  }
  if (use && !Switch(spec_.id(), true)) return;
  Clean(spec_.id());
  channel_.Send(kFine, spec_.id(), kId);
}

// forward: keeps the version that was current as the one before.
bool Store::Switch(const char* id, bool forward) {
  char current[kId + 1], path[64];
  CurrentVersion(current);
  if (strcmp(current, id) == 0) return true;
  int error = 0;
  if (forward && current[0]) {
    snprintf(path, sizeof path, "versions/%s/previous", id);
    current[kId] = '\n';
    error = WriteSmall(path, current, kId + 1);
    snprintf(path, sizeof path, "versions/%s", id);
    if (!error) error = SyncFolder(path);
  }
  snprintf(path, sizeof path, "versions/%s", id);
  unlink("current.part");
  if (!error && symlink(path, "current.part") != 0) error = errno;
  if (!error && rename("current.part", "current") != 0) error = errno;
  if (!error) error = SyncFolder(".");
  return !error || Fail("the board cannot be switched to the version: %s.", strerror(error));
}

void Store::Rollback() {
  begun_ = false;
  char current[kId + 1], previous[kId + 1], path[64];
  CurrentVersion(current);
  PreviousVersion(current, previous);
  Bytes text;
  Spec spec;
  snprintf(path, sizeof path, "versions/%s/spec", previous);
  const bool known = previous[0] && ReadText(path, kMostMessage, &text) && spec.Read(text.data(), text.size());
  if (!known) {
    Fail(current[0] ? "there is no version before the current one on the board." : "the board has no version yet.");
    return;
  }
  snprintf(path, sizeof path, "versions/%s", previous);
  if (!IsWhole(path, spec)) {
    Fail("the version before is damaged on the board, which stays with the current one; push a good one.");
    return;
  }
  if (!Allowed(path) || !Play(path) || !Switch(previous, false)) return;
  channel_.Send(kFine, previous, kId);
}

// Removes the versions that are neither current, nor before it, nor `also`, and what was sent of others.
void Store::Clean(const char* also) {
  char current[kId + 1], previous[kId + 1], path[320];
  CurrentVersion(current);
  PreviousVersion(current, previous);
  for (const char* parent : {"versions", "incoming"}) {
    const bool versions = parent[0] == 'v';
    DIR* listing = opendir(parent);
    if (!listing) continue;
    while (const struct dirent* entry = readdir(listing)) {
      const char* name = entry->d_name;
      const bool kept = versions ? strcmp(name, current) == 0 || strcmp(name, previous) == 0 ||
                                       strcmp(name, spec_.id()) == 0 || (also && strcmp(name, also) == 0)
                                 : !also && strcmp(name, spec_.id()) == 0;
      if (kept || name[0] == '.') continue;
      snprintf(path, sizeof path, "%s/%s", parent, name);
      RemoveFolder(path);
    }
    closedir(listing);
  }
}

void Store::Trust(const uint8_t* text, size_t n) {
  runnel_sign::Keys told;
  told.Read(runnel_sign::kStoreKeys);
  if (!runnel_sign::AreKeys(reinterpret_cast<const char*>(text), n)) {
    Fail("a key is a line of 64 hexadecimal digits; runnel sign --public-key prints one.");
  } else if (told.told) {
    Fail("the board was told a key before; remove %s there by hand to tell it another one.", runnel_sign::kStoreKeys);
  } else if (const int error = WriteSmall(runnel_sign::kStoreKeys, text, n)) {
    Fail("the key cannot be written on the board: %s.", strerror(error));
  } else {
    channel_.Send(kFine, nullptr, 0);
  }
}

}  // namespace runnel_agent
