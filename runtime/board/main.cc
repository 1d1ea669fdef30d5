// runnel-run: a bundle on a board that has nothing installed.
#include <cstdio>

#include "options.h"
#include "runnel_bundle.h"
#include "say.h"

namespace runnel_run {
namespace {

constexpr char kHelp[] =
    "runnel-run: runs a bundle without Python.\n"
    "\n"
    "  runnel-run run m.rnl --in [INPUT=]URI [--out [OUTPUT=]URI] [--set INPUT=VALUE] [--chunk N|all] [--rate HZ]\n"
    "             [--seconds S] [--pixels OFFSET:SCALE] [--load-state FILE] [--save-state FILE]\n"
    "             [--on-nonfinite error|zero|reset] [--realtime] [--late catch-up|drop] [--priority N] [--core N]\n"
    "  runnel-run verify m.rnl         play the bundle's golden input in several chunkings and compare\n"
    "  runnel-run bench m.rnl [--seconds S] [--chunk N] [--realtime] [--priority N] [--core N]\n"
    "  with --threads N run and bench share the steps of large networks; the same bits come out\n"
    "  runnel-run profile m.rnl [--seconds S] [--chunk N] [--priority N] [--core N]   what each instruction takes\n"
    "  with --ram 256M [--io auto|io_uring|threads|plain] [--io-threads N] [--patience S\n"
    "    [--slow stop|warn]] weights pass through memory\n"
    "  and with --experts lru|lfu|cost|predict|none [--experts-ahead auto|off|on] experts stay\n"
    "  runnel-run info m.rnl           its inputs, outputs and sizes\n"
    "\n"
    "URI: a file in .wav, .npy, .raw (numbers of the port's type, frame by frame), .json (lines) or .txt, the same as\n"
    "scheme:PATH (raw:- is the standard stream), alsa:CARD,DEVICE (a sound card), v4l2:PATH (a camera), or - for mono\n"
    "PCM s16le. --json prints figures as JSON.\n";

int Info(const Options& options) {
  char message[1024];
  rn_bundle* bundle = nullptr;
  if (rn_load(options.bundle, &bundle, message, sizeof message) != RN_OK) Refuse("%s", message);
  const rn_facts& facts = *rn_bundle_facts(bundle);
  const rn_program* program = rn_bundle_program(bundle);
  printf("model    %s for %s (%s)\n", facts.name, facts.target, facts.arch);
  for (int kind = 0; kind < 2; ++kind) {
    for (int32_t i = 0;; ++i) {
      const rn_port* port = kind ? rn_bundle_output(bundle, i) : rn_bundle_input(bundle, i);
      if (!port) break;
      printf("%s   %s: %s [", kind ? "output" : "input ", port->name, port->dtype);
      for (int32_t k = 0; k < port->dimensions; ++k) {
        if (k) printf(", ");
        if (port->shape[k] < 0) {
          printf("frames");
        } else {
          printf("%lld", static_cast<long long>(port->shape[k]));
        }
      }
      printf("]%s\n", !kind && port->per_tick == 0 ? ", static" : "");
    }
  }
  printf("hop      %lld frames, look-ahead %lld\n", static_cast<long long>(facts.hop),
         static_cast<long long>(facts.latency_frames));
  printf("memory   state %zu bytes, scratch %zu, weights %llu\n", rn_state_bytes(program), rn_scratch_bytes(program),
         static_cast<unsigned long long>(facts.weights_bytes));
  rn_unload(bundle);
  return 0;
}

}  // namespace
}  // namespace runnel_run

int main(int count, char** words) {
  using namespace runnel_run;
  static const struct {
    const char* name;
    int (*run)(const Options&);
  } kCommands[] = {{"run", Run}, {"verify", Verify}, {"bench", Bench}, {"profile", Profile}, {"info", Info}};
  for (const auto& command : kCommands) {
    if (count > 1 && strcmp(words[1], command.name) == 0) return command.run(ReadOptions(count - 2, words + 2));
  }
  const bool asked = count > 1 && (strcmp(words[1], "--help") == 0 || strcmp(words[1], "-h") == 0);
  fputs(kHelp, asked ? stdout : stderr);
  return asked ? 0 : 2;
}
