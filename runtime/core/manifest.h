// The bundle's manifest, checked key by key before anything in it is used.
#ifndef RUNNEL_MANIFEST_H_
#define RUNNEL_MANIFEST_H_

#include "json.h"
#include "report.h"
#include "runnel_bundle.h"

namespace runnel {

// What is kept of a manifest; the numbers of `json` live in the arena of the reading.
struct Manifest {
  rn_facts facts;
  rn_port* inputs;
  rn_port* outputs;
  int32_t input_count, output_count;
  uint8_t program_hash[32];
  const Json* json;
};

// Strings and ports are put into `kept`, everything else into `reading`.
bool ReadManifest(const uint8_t* text, size_t bytes, Arena& reading, Arena& kept, const Report& report,
                  Manifest* manifest);

}  // namespace runnel

#endif  // RUNNEL_MANIFEST_H_
