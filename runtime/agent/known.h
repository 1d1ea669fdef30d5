// Chunks that versions on the board have already, by their hash.
#ifndef RUNNEL_AGENT_KNOWN_H_
#define RUNNEL_AGENT_KNOWN_H_

#include "spec.h"

namespace runnel_agent {

class Known {
 public:
  // Every version but one that is only begun.
  void Read();
  // Copies the chunk of that hash and size into `bytes` and checks it; false where there is none.
  bool Find(const uint8_t hash[32], uint8_t* bytes, size_t n) const;

 private:
  struct Place {
    uint8_t hash[32];
    char version[kId + 1];
    uint8_t file;
    uint32_t chunk;
  };
  Bytes places_;
};

bool ReadChunk(int file, uint32_t chunk, uint8_t* bytes, size_t n);

}  // namespace runnel_agent

#endif  // RUNNEL_AGENT_KNOWN_H_
