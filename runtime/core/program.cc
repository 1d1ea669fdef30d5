// The C ABI: programs, and what the codes mean.
#include "pager.h"
#include "plan.h"
#include "platform.h"
#include "runnel.h"
#include "state.h"

extern "C" {

const char* rn_message(int code) {
  switch (code) {
    case RN_OK:
      return "no error";
    case RN_BAD_ARGUMENT:
      return "a null or unaligned pointer, a negative count or an unknown policy was passed";
    case RN_BAD_PLAN:
      return "the plan breaks its own rules; compile the model again";
    case RN_NO_MEMORY:
      return "not enough memory for the program";
    case RN_NOT_FINITE:
      return "an input sample is NaN or infinite";
    case RN_CAPACITY:
      return "an output array is too small for what is due";
    case RN_FLUSHED:
      return "the stream has ended; reset it to start again";
    case RN_BAD_STATE:
      return "the state belongs to another program, or a step on it failed; reset the stream";
    case RN_KERNEL:
      return "a kernel reported a failure; reset the stream";
    case RN_TOO_LONG:
      return "the stream would get longer than the program allows; reset it";
    case RN_UNSUPPORTED:
      return "the plan needs a newer runtime; update runnel";
    case RN_BAD_BUNDLE:
      return "the file is not a whole bundle for this machine";
    case RN_BAD_LENGTH:
      return "the offline model takes no recording of this length";
    case RN_CACHE_FULL:
      return "the cache of keys and values keeps everything and has no room for so many frames; take more slots, or a "
             "policy that drops some";
    case RN_STORAGE:
      return "the weights could not be read from their file";
    default:
      return "unknown error";
  }
}

int rn_abi_version(void) { return RN_ABI_VERSION; }

int rn_open(const void* plan, size_t plan_bytes, const void* weights, size_t weights_bytes, const void* image,
            size_t image_bytes, const uint8_t program_hash[32], rn_program** out, char* message, size_t message_bytes) {
  if (message && message_bytes) message[0] = 0;
  if (!out) return RN_BAD_ARGUMENT;
  *out = nullptr;
  if (!plan || !program_hash || (!weights && weights_bytes) || (!image && image_bytes)) return RN_BAD_ARGUMENT;
  runnel::Sources sources = {static_cast<const uint8_t*>(plan),
                             plan_bytes,
                             static_cast<const uint8_t*>(weights),
                             weights_bytes,
                             static_cast<const uint8_t*>(image),
                             image_bytes,
                             program_hash};
  runnel::Program* program = nullptr;
  int code = runnel::DecodePlan(sources, &program, {message, message_bytes});
  *out = static_cast<rn_program*>(program);
  return code;
}

void rn_close(rn_program* program) {
  if (program && program->pager) {
    program->pager->~Pager();
    runnel::PlatformFree(program->pager);
  }
  runnel::PlatformFree(program);
}

int rn_open_paged(const void* plan, size_t plan_bytes, size_t weights_bytes, const void* image, size_t image_bytes,
                  const uint8_t program_hash[32], const rn_paging* paging, rn_program** out, char* message,
                  size_t message_bytes) {
  if (message && message_bytes) message[0] = 0;
  if (!out) return RN_BAD_ARGUMENT;
  *out = nullptr;
  if (!paging || !paging->path || !paging->segments || paging->segment_count < 1 || paging->offset % 4096 ||
      paging->patience_us < 0 || paging->streams < 0 || !weights_bytes) {
    return RN_BAD_ARGUMENT;
  }
  runnel::Pager* pager = runnel::Pager::Make(weights_bytes);
  if (!pager) return RN_NO_MEMORY;
  rn_program* program = nullptr;
  int code = rn_open(plan, plan_bytes, pager->base(), weights_bytes, image, image_bytes, program_hash, &program,
                     message, message_bytes);
  if (code != RN_OK) {
    pager->~Pager();
    runnel::PlatformFree(pager);
    return code;
  }
  program->pager = pager;
  const uint64_t mapped = plan_bytes + image_bytes;  // from the bundle's file
  const uint64_t used = program->own_bytes + mapped + static_cast<uint64_t>(program->working_bytes);
  code = pager->Open(*program, *paging, used, {message, message_bytes});
  if (code != RN_OK) {
    rn_close(program);
  } else {
    *out = program;
  }
  return code;
}

int rn_paging_status(const rn_program* program, rn_paging_facts* facts) {
  if (!program || !program->pager || !facts) return RN_BAD_ARGUMENT;
  program->pager->Status(facts);
  return RN_OK;
}

const char* rn_paging_error(const rn_program* program) {
  return program && program->pager ? program->pager->error() : "";
}

int rn_set_ram(rn_program* program, uint64_t ram, int32_t streams) {
  if (!program || !program->pager || streams < 0) return RN_BAD_ARGUMENT;
  return program->pager->SetRam(ram, streams);
}

int rn_budget_open(uint64_t ram, rn_budget** out) {
  if (!out) return RN_BAD_ARGUMENT;
  *out = reinterpret_cast<rn_budget*>(runnel::Budget::Make(ram));
  return *out ? RN_OK : RN_NO_MEMORY;
}

void rn_budget_close(rn_budget* budget) {
  if (budget) reinterpret_cast<runnel::Budget*>(budget)->Release();
}

int rn_set_priority(rn_program* program, int32_t priority) {
  return program && program->pager ? program->pager->SetPriority(priority) : RN_BAD_ARGUMENT;
}

size_t rn_state_bytes(const rn_program* program) { return static_cast<size_t>(program->state_bytes); }
size_t rn_scratch_bytes(const rn_program* program) { return static_cast<size_t>(program->working_bytes); }
int32_t rn_instructions(const rn_program* program) { return program->works; }
int64_t rn_hop(const rn_program* program) { return program->hop; }
int rn_has_prefill(const rn_program* program) { return program->prefill.size > 0; }
int32_t rn_input_count(const rn_program* program) { return program->inputs.size; }
int32_t rn_output_count(const rn_program* program) { return program->outputs.size; }

int64_t rn_input_frame_bytes(const rn_program* program, int32_t input) {
  if (input < 0 || input >= program->inputs.size) return -1;
  return program->inputs[input].outer * program->inputs[input].inner_bytes;
}

int64_t rn_input_rate(const rn_program* program, int32_t input) {
  if (input < 0 || input >= program->inputs.size) return -1;
  return program->inputs[input].rate;
}

int64_t rn_output_frame_bytes(const rn_program* program, int32_t output) {
  if (output < 0 || output >= program->outputs.size) return -1;
  return program->outputs[output].outer * program->outputs[output].inner_bytes;
}

}  // extern "C"
