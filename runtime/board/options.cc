#include "options.h"

#include <cstdlib>
#include <cstring>

#include "runnel_bundle.h"
#include "say.h"

namespace runnel_run {
namespace {

double ReadNumber(const char* name, const char* text, double least, double most) {
  char* end = nullptr;
  const double value = strtod(text, &end);
  if (end == text || *end || !(value >= least && value <= most)) {
    Refuse("%s got '%s' and takes a number from %g to %g.", name, text, least, most);
  }
  return value;
}

uint64_t ReadBytes(const char* name, const char* text) {
  char* end = nullptr;
  double value = strtod(text, &end);
  const char* const units = "KMG";
  const char* unit = *end ? strchr(units, *end) : nullptr;
  if (unit) {
    for (const char* u = units; u <= unit; ++u) value *= 1024;
    ++end;
  }
  if (end == text || *end || !(value >= 1 && value < 1e15)) {
    Refuse("%s got '%s' and takes an amount of memory, such as 256M or 1.5G.", name, text);
  }
  return static_cast<uint64_t>(value);
}

int Choose(const char* name, const char* text, const char* const* words, int count) {
  for (int i = 0; i < count; ++i) {
    if (strcmp(words[i], text) == 0) return i;
  }
  Refuse("%s got '%s', which it does not know; the first it knows is %s.", name, text, words[0]);
}

void Add(const char* name, const char* value, const char** list, int* size) {
  if (*size == kMostNamed) Refuse("%s is given more than %d times.", name, kMostNamed);
  list[(*size)++] = value;
}

}  // namespace

const char* ValueOf(const char* text, const char* name) {
  const size_t n = strlen(name);
  return strncmp(text, name, n) == 0 && text[n] == '=' ? text + n + 1 : nullptr;
}

Options ReadOptions(int count, char** words) {
  static const char* const kPolicies[] = {"error", "zero", "reset"};
  static const char* const kWays[] = {"auto", "io_uring", "threads", "plain"};
  static const char* const kExperts[] = {"lru", "lfu", "cost", "predict", "none"};
  static const char* const kAhead[] = {"auto", "off", "on"};
  static const char* const kSlow[] = {"stop", "warn"};
  static const char* const kLate[] = {"catch-up", "drop"};
  Options options;
  for (int i = 0; i < count; ++i) {
    const char* word = words[i];
    auto is = [word](const char* name) { return strcmp(word, name) == 0; };
    if (is("--realtime") || is("--json")) {
      (is("--json") ? options.json : options.realtime) = true;
      continue;
    }
    if (strncmp(word, "--", 2) != 0) {
      if (options.bundle) Refuse("'%s' is one bundle too many.", word);
      options.bundle = word;
      continue;
    }
    const char* value = i + 1 < count ? words[++i] : nullptr;
    if (!value) Refuse("%s needs a value.", word);
    if (is("--in")) {
      Add(word, value, options.in, &options.ins);
    } else if (is("--out")) {
      Add(word, value, options.out, &options.outs);
    } else if (is("--set")) {
      Add(word, value, options.set, &options.sets);
    } else if (is("--chunk")) {
      options.chunk = value;
      if (strcmp(value, "all") != 0) ReadNumber(word, value, 1, 1 << 24);
    } else if (is("--rate")) {
      options.rate = ReadNumber(word, value, 1e-6, 1e9);
    } else if (is("--seconds")) {
      options.seconds = ReadNumber(word, value, 0.001, 1e6);
    } else if (is("--pixels")) {
      const char* scale = strchr(value, ':');
      if (!scale || scale - value > 60) Refuse("--pixels got '%s' and takes OFFSET:SCALE, such as 127:128.", value);
      char offset[64] = "";
      memcpy(offset, value, static_cast<size_t>(scale - value));
      options.pixel_offset = ReadNumber(word, offset, -1e6, 1e6);
      options.pixel_scale = ReadNumber(word, scale + 1, 1e-6, 1e6);
    } else if (is("--priority")) {
      options.priority = static_cast<int>(ReadNumber(word, value, 1, 99));
    } else if (is("--core")) {
      options.core = static_cast<int>(ReadNumber(word, value, 0, 1023));
    } else if (is("--threads")) {
      options.threads = static_cast<int>(ReadNumber(word, value, 1, RN_MOST_WORKERS));
    } else if (is("--on-nonfinite")) {
      options.nonfinite = Choose(word, value, kPolicies, 3);
    } else if (is("--load-state")) {
      options.load_state = value;
    } else if (is("--save-state")) {
      options.save_state = value;
    } else if (is("--ram")) {
      options.ram = ReadBytes(word, value);
    } else if (is("--io")) {
      options.io = Choose(word, value, kWays, 4);
    } else if (is("--io-threads")) {
      options.io_threads = static_cast<int>(ReadNumber(word, value, 1, 32));
    } else if (is("--patience")) {
      options.patience = ReadNumber(word, value, 1e-6, 1e6);
    } else if (is("--experts")) {
      options.experts = Choose(word, value, kExperts, 5);
    } else if (is("--experts-ahead")) {
      options.experts_ahead = Choose(word, value, kAhead, 3);
    } else if (is("--slow")) {
      options.slow = Choose(word, value, kSlow, 2);
    } else if (is("--late")) {
      options.drop = Choose(word, value, kLate, 2) == 1;
    } else {
      Refuse("'%s' is not known; see runnel-run --help.", word);
    }
  }
  if (!options.bundle) Refuse("name a bundle, m.rnl.");
  if (!options.ram && (options.io || options.io_threads || options.patience > 0)) {
    Refuse("--io, --io-threads and --patience are for weights that pass through memory; give --ram.");
  }
  if (!options.ram && (options.experts != RN_UNITS_COST || options.experts_ahead)) {
    Refuse("--experts and --experts-ahead are for experts that pass through memory; give --ram.");
  }
  if (options.slow && !(options.patience > 0))
    Refuse("--slow warn needs --patience, the seconds that a read may take.");
  if (options.threads > 1 && options.core >= 0) Refuse("--core keeps all on one core; give --threads without it.");
  if (options.io == RN_IO_THREADS && !options.io_threads) Refuse("--io threads needs --io-threads.");
  return options;
}

}  // namespace runnel_run
