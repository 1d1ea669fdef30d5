// The versions of one model on a board, in the working directory.
//
//   current -> versions/ID     replaced by one rename, so that it is the old version or the new one
//   versions/ID/               model.rnl, runnel-run, spec, and previous: the version that it replaced
//   incoming/ID/               one that is not whole yet; what is there of it is used when it is sent again
#ifndef RUNNEL_AGENT_STORE_H_
#define RUNNEL_AGENT_STORE_H_

#include "channel.h"
#include "spec.h"

namespace runnel_agent {

class Store {
 public:
  explicit Store(Channel& channel) : channel_(channel) {}

  // Each answers what was asked: one message, after lines of log.
  void Begin(const uint8_t* text, size_t n);
  void Put(const uint8_t* body, size_t n);
  void Commit(bool use);
  void Rollback();
  void Trust(const uint8_t* text, size_t n);

  // What was begun is given up; its files stay.
  void Forget() { begun_ = false; }

 private:
  bool Fail(const char* format, ...) __attribute__((format(printf, 2, 3)));
  bool Reserve(int file, const File& about, const char* path);
  bool Fill();
  bool IsWhole(const char* folder, const Spec& spec);
  bool Seal();
  bool Allowed(const char* folder);
  bool Play(const char* folder);
  bool Switch(const char* id, bool forward);
  void Clean(const char* also);
  bool Alive();

  Channel& channel_;
  Spec spec_;
  Bytes have_;  // a byte for each chunk
  bool begun_ = false, there_ = false;
  char folder_[64] = "";
};

// The version that `current` or a file `previous` names; empty where there is none.
void CurrentVersion(char id[kId + 1]);
void PreviousVersion(const char* id, char previous[kId + 1]);

// 0 or an errno.
int MakeFolder(const char* path);
int SyncFolder(const char* path);
int WriteSmall(const char* path, const void* bytes, size_t n);
bool ReadText(const char* path, size_t most, Bytes* text);
// Removes a folder of files, and what lies in it; nothing that a link in it names.
void RemoveFolder(const char* path);

}  // namespace runnel_agent

#endif  // RUNNEL_AGENT_STORE_H_
