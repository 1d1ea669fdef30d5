// The C ABI: which recordings the offline model takes.
#include "report.h"
#include "runnel_bundle.h"

extern "C" {

int rn_check_length(const rn_bundle* bundle, int64_t frames, char* message, size_t message_bytes) {
  if (!bundle || frames < 0) return RN_BAD_ARGUMENT;
  const rn_facts& facts = *rn_bundle_facts(bundle);
  int code = RN_OK;
  const runnel::Report report = {facts.name, message, message_bytes, &code};
  if (frames < facts.shortest) {
    report.Say("the stream has %lld frames and the offline model takes no fewer than %lld; push more before flush.",
               static_cast<long long>(frames), static_cast<long long>(facts.shortest));
    return RN_BAD_LENGTH;
  }
  int64_t more = facts.period;  // frames until the next length that is taken
  for (int64_t i = 0; i < facts.remainder_count; ++i) {
    const int64_t wait = (facts.remainders[i] - frames % facts.period + facts.period) % facts.period;
    if (wait < more) more = wait;
  }
  if (more == 0) return RN_OK;
  report.Say("the stream has %lld frames, a length that the offline model does not take; push %lld more before flush.",
             static_cast<long long>(frames), static_cast<long long>(more));
  return RN_BAD_LENGTH;
}

}  // extern "C"
