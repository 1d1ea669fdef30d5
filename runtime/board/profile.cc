// What each instruction of a bundle's plan takes, on noise.
#include <cstdio>

#include "../core/json.h"
#include "noise.h"
#include "realtime.h"

namespace runnel_run {
namespace {

using runnel::Json;

constexpr int kWarm = 20;
constexpr size_t kMostNames = size_t{256} << 20;

struct Row {
  runnel::Text output, ops;
  int64_t spent, calls, macs;
};

void PrintText(runnel::Text text) {
  for (size_t i = 0; i < text.bytes; ++i) {
    const auto byte = static_cast<unsigned char>(text.data[i]);
    if (byte < 0x20 || byte == '"' || byte == '\\') {
      printf("\\u%04x", byte);
    } else {
      putchar(byte);
    }
  }
}

// The names that the manifest gives to instructions, in their order; none where it tells of another number of them.
// They live in the arena.
void ReadNames(const rn_bundle* bundle, runnel::Arena* arena, Array<Row>* rows) {
  size_t bytes = 0;
  const char* text = rn_bundle_manifest(bundle, &bytes);
  const Json* manifest = runnel::ReadJson(reinterpret_cast<const uint8_t*>(text), bytes, *arena);
  const Json* kernels = manifest ? manifest->Find("kernels") : nullptr;
  if (!kernels || !kernels->IsArray() || static_cast<size_t>(kernels->size) != rows->size) return;
  Row* row = rows->data;
  for (const Json* kernel = kernels->child; kernel; kernel = kernel->next, ++row) {
    const Json *output = kernel->Find("output"), *ops = kernel->Find("ops");
    if (output && output->IsString()) row->output = output->text;
    if (ops && ops->IsString()) row->ops = ops->text;
  }
}

}  // namespace

int Profile(const Options& options) {
  rn_bundle* bundle = OpenBundle(options);
  const rn_facts& facts = *rn_bundle_facts(bundle);
  Player player(bundle, RN_NONFINITE_ERROR);
  const int64_t chunk = BenchChunk(options, player);
  const Noise noise(&player, chunk);
  player.Prepare(chunk);
  const auto count = static_cast<size_t>(rn_instructions(player.program()));
  Array<int64_t> figures;
  memset(figures.Add(3 * count), 0, 3 * count * sizeof(int64_t));
  const rn_profile profile = {Now, figures.data, figures.data + count, figures.data + 2 * count};
  if (options.core >= 0) UseCore(options.core);
  if (options.priority) UsePriority(options.priority);
  CatchSignals();
  auto push = [&] {
    if (facts.max_frames && player.position() > facts.max_frames - chunk) player.Reset();
    player.Push(noise.data(), chunk);
  };
  for (int i = 0; i < kWarm; ++i) push();
  player.UseProfile(&profile);
  int64_t steps = 0, whole = 0;
  for (const int64_t stop = Now() + static_cast<int64_t>(SecondsOr(options, 2) * 1e9); !Stopped() && Now() < stop;
       ++steps) {
    const int64_t from = Now();
    push();
    whole += Now() - from;
  }
  if (!steps) steps = 1;
  Array<Row> rows;
  rows.Add(count);
  int64_t sum = 0;
  for (size_t i = 0; i < count; ++i) {
    rows.data[i] = {{}, {}, profile.spent[i], profile.calls[i], profile.macs[i]};
    sum += profile.spent[i];
  }
  runnel::Arena names(kMostNames);
  ReadNames(bundle, &names, &rows);
  const double each = 1e-9 / static_cast<double>(steps);
  auto share = [sum](const Row& row) { return sum ? static_cast<double>(row.spent) / static_cast<double>(sum) : 0; };
  if (options.json) {
    printf("{\"steps\": %lld, \"chunk_frames\": %lld, \"step\": %.9f, \"instructions\": [",
           static_cast<long long>(steps), static_cast<long long>(chunk), static_cast<double>(whole) * each);
    for (size_t i = 0; i < count; ++i) {
      const Row& row = rows.data[i];
      printf("%s{\"seconds\": %.9f, \"share\": %.6f, \"calls\": %.3f, \"macs\": %.0f, \"output\": \"", i ? ", " : "",
             static_cast<double>(row.spent) * each, share(row),
             static_cast<double>(row.calls) / static_cast<double>(steps),
             static_cast<double>(row.macs) / static_cast<double>(steps));
      PrintText(row.output);
      printf("\", \"ops\": \"");
      PrintText(row.ops);
      printf("\"}");
    }
    printf("]}\n");
    return 0;
  }
  printf("%lld steps of %lld frames, %.9f s each with the clock asked twice an instruction\n",
         static_cast<long long>(steps), static_cast<long long>(chunk), static_cast<double>(whole) * each);
  qsort(rows.data, count, sizeof(Row), [](const void* a, const void* b) {
    const int64_t x = static_cast<const Row*>(a)->spent, y = static_cast<const Row*>(b)->spent;
    return x < y ? 1 : x > y ? -1 : 0;
  });
  printf("%7s %12s %9s %12s  %s\n", "share", "seconds", "calls", "mult-adds", "what it makes");
  for (const Row& row : rows) {
    printf("%6.2f%% %12.9f %9.2f %12.0f  ", 100 * share(row), static_cast<double>(row.spent) * each,
           static_cast<double>(row.calls) / static_cast<double>(steps),
           static_cast<double>(row.macs) / static_cast<double>(steps));
    PrintText(row.output);
    printf(" (");
    PrintText(row.ops);
    printf(")\n");
  }
  return 0;
}

}  // namespace runnel_run
