// The C ABI: what an open bundle holds.
#include <cstring>

#include "bundle_state.h"
#include "report.h"

using runnel::Listed;
using runnel::Report;

extern "C" {

const rn_program* rn_bundle_program(const rn_bundle* bundle) { return bundle->program; }
const rn_facts* rn_bundle_facts(const rn_bundle* bundle) { return &bundle->manifest.facts; }

const char* rn_bundle_manifest(const rn_bundle* bundle, size_t* bytes) {
  *bytes = bundle->text.bytes;
  return bundle->text.data;
}

const rn_port* rn_bundle_input(const rn_bundle* bundle, int32_t input) {
  if (input < 0 || input >= bundle->manifest.input_count) return nullptr;
  return &bundle->manifest.inputs[input];
}

const rn_port* rn_bundle_output(const rn_bundle* bundle, int32_t output) {
  if (output < 0 || output >= bundle->manifest.output_count) return nullptr;
  return &bundle->manifest.outputs[output];
}

int rn_bundle_entry(const rn_bundle* bundle, const char* name, const void** bytes, size_t* size, char* message,
                    size_t message_bytes) {
  if (!bundle || !name || !bytes || !size) return RN_BAD_ARGUMENT;
  int code = RN_OK;
  const Report report = {bundle->path, message, message_bytes, &code};
  const Listed* entry = bundle->Find({name, strlen(name)});
  if (!entry) {
    report.Say("'%s' has no entry '%s'; compile the model again.", bundle->path, name);
  } else if (bundle->CheckEntry(*entry, report)) {
    *bytes = entry->data;
    *size = static_cast<size_t>(entry->bytes);
  }
  return code;
}

const char* rn_bundle_signatures(const rn_bundle* bundle, size_t* bytes) {
  *bytes = bundle->signatures.bytes;
  return bundle->signatures.data;
}

int rn_bundle_verify(const rn_bundle* bundle, char* message, size_t message_bytes) {
  if (!bundle) return RN_BAD_ARGUMENT;
  int code = RN_OK;
  const Report report = {bundle->path, message, message_bytes, &code};
  for (int32_t i = 0; i < bundle->entry_count && code == RN_OK; ++i) bundle->CheckEntry(bundle->entries[i], report);
  return code;
}

}  // extern "C"
