// The C ABI: bundles.
#include "bundle_state.h"
#include "cpu.h"
#include "zipfile.h"

namespace runnel {
namespace {

constexpr uint64_t kAlignment = 64 * 1024;
constexpr uint64_t kMostManifest = uint64_t{16} << 20;
constexpr size_t kMostReading = size_t{64} << 20;
constexpr char kManifest[] = "manifest.json", kSum[] = "manifest.sha256", kSignatures[] = "manifest.sig",
               kPad[] = ".pad/";

bool IsListed(Text name) {
  return !name.Is(kManifest) && !name.Is(kSum) && !name.Is(kSignatures) && !name.Starts(kPad);
}

}  // namespace
}  // namespace runnel

using runnel::Arena;
using runnel::Directory;
using runnel::Json;
using runnel::Listed;
using runnel::Report;
using runnel::Shown;
using runnel::Text;
using runnel::ZipEntry;

namespace runnel {
namespace {

class Loader {
 public:
  Loader(rn_bundle& bundle, const rn_paging* paging, const Report& report)
      : bundle_(bundle), paging_(paging), report_(report), reading_(kMostReading) {}
  ~Loader() {
    if (fd_ >= 0) CloseFile(fd_);
  }

  bool Load() {
    return Open() && ReadDirectory(bundle_.file, reading_, report_, &directory_) && ReadTheManifest() &&
           CheckEntries() && CheckCode() && CheckBackend() && CheckProcessor() && MapKernels() && CheckWeights() &&
           MakeProgram() && CheckPorts(true) && CheckPorts(false);
  }

 private:
  bool Open() {
    uint64_t bytes = 0;
    if (const int error = OpenFile(bundle_.path, &fd_, &bytes)) {
      return report_.Say("'%s' cannot be opened: %s; check the path.", bundle_.path, Reason(error));
    }
    if (!bytes) return report_.Say("'%s' is empty; copy or compile the bundle again.", bundle_.path);
    const int error = bytes > SIZE_MAX ? -1 : MapFile(fd_, 0, static_cast<size_t>(bytes), false, &bundle_.file);
    if (!error && paging_) ReadSparsely(bundle_.file);
    return !error || report_.Say("'%s' cannot be mapped (%s); name a bundle's file.", bundle_.path, Reason(error));
  }

  static const char* Reason(int error) { return error < 0 ? "it is too large" : ErrorText(error); }

  bool ReadTheManifest() {
    const ZipEntry* entry = directory_.Find(kManifest);
    if (!entry || entry->bytes > kMostManifest) {
      return report_.Say("'%s' has no '%s', so it is no bundle; name one made by runnel compile.", bundle_.path,
                         kManifest);
    }
    const ZipEntry* given = directory_.Find(kSum);
    if (!given) {
      return report_.Say("'%s': '%s' lacks its '%s'; compile the model again.", bundle_.path, kManifest, kSum);
    }
    const uint8_t* text = bundle_.file.data + entry->offset;
    uint8_t digest[32];
    char sum[65];
    Sha256(text, entry->bytes, digest);
    WriteHex(digest, sum);
    sum[64] = '\n';
    const uint8_t* said = bundle_.file.data + given->offset;
    if (given->bytes != sizeof sum || memcmp(said, sum, sizeof sum) != 0) {
      return report_.Say("'%s': entry '%s' was altered (its sha256 differs); copy the bundle again.", bundle_.path,
                         kManifest);
    }
    bundle_.text = {reinterpret_cast<const char*>(text), static_cast<size_t>(entry->bytes)};
    if (const ZipEntry* signatures = directory_.Find(kSignatures)) {
      bundle_.signatures = {reinterpret_cast<const char*>(bundle_.file.data + signatures->offset),
                            static_cast<size_t>(signatures->bytes)};
    }
    return ReadManifest(text, entry->bytes, reading_, bundle_.arena, report_, &bundle_.manifest);
  }

  bool CheckEntries() {
    const Json& listed = *bundle_.manifest.json->Find("entries");
    for (int32_t i = 0; i < directory_.size; ++i) {
      const Text name = directory_.entries[i].name;
      if (IsListed(name) && !listed.Find(name)) {
        return report_.Say("'%s': entry '%.*s' is not in the manifest; compile the model again.", bundle_.path,
                           Shown(name), name.data);
      }
    }
    bundle_.entries = bundle_.arena.Make<Listed>(static_cast<size_t>(listed.size) + 1);
    if (!bundle_.entries) return report_.NoMemory();
    for (const Json* item = listed.child; item; item = item->next) {
      const ZipEntry* entry = directory_.Find(item->key);
      if (!entry) {
        return report_.Say("'%s': entry '%.*s' is missing; copy the bundle again.", bundle_.path, Shown(item->key),
                           item->key.data);
      }
      const int64_t bytes = item->Find("bytes")->integer;
      if (entry->bytes != static_cast<uint64_t>(bytes)) {
        return report_.Say("'%s': entry '%.*s' has %llu bytes and should have %lld; copy the bundle again.",
                           bundle_.path, Shown(item->key), item->key.data,
                           static_cast<unsigned long long>(entry->bytes), static_cast<long long>(bytes));
      }
      Listed& kept = bundle_.entries[bundle_.entry_count++];
      kept.name = entry->name;
      kept.data = bundle_.file.data + entry->offset;
      kept.bytes = entry->bytes;
      const Text sum = item->Find("sha256")->text;
      ReadHex(sum.data, sum.bytes, kept.sha256);
    }
    return true;
  }

  bool CheckCode() const {
    for (int32_t i = 0; i < bundle_.entry_count; ++i) {
      const Listed& entry = bundle_.entries[i];
      if ((entry.name.Is("plan") || entry.name.Starts("kernels/")) && !bundle_.CheckEntry(entry, report_)) return false;
    }
    return true;
  }

  bool CheckBackend() const {
    for (const Json* item = bundle_.manifest.json->Find("backends")->child; item; item = item->next) {
      if (item->text.Is("native")) return true;
    }
    const Json& why = *bundle_.manifest.json->Find("native_refusal");
    return report_.Say(
        "'%s' has no form for the native backend%s%.*s%s; run it from Python with backend='onnxruntime'.", bundle_.path,
        why.text.bytes ? " (" : "", Shown(why.text), why.text.data, why.text.bytes ? ")" : "");
  }

  bool CheckProcessor() const {
    const rn_facts& facts = bundle_.manifest.facts;
    if (strcmp(facts.arch, Architecture()) != 0) {
      return report_.Say("'%s' is made for %s (%s) and this machine is %s; compile the model for this machine.",
                         bundle_.path, facts.arch, facts.target, Architecture());
    }
    const Features features;
    char lacking[256];
    size_t used = 0;
    for (const Json* item = bundle_.manifest.json->Find("target")->Find("features")->child; item; item = item->next) {
      if (!features.Known() || features.Has(item->text) || used + item->text.bytes + 3 > sizeof lacking) continue;
      if (used) lacking[used++] = ',', lacking[used++] = ' ';
      memcpy(lacking + used, item->text.data, item->text.bytes);
      used += item->text.bytes;
    }
    return !used || report_.Say(
                        "'%s' needs a processor with %.*s, which this one lacks; compile the model for this "
                        "machine.",
                        bundle_.path, static_cast<int>(used), lacking);
  }

  // The entry <folder>/<name>, at a multiple of 64 KiB.
  bool Aligned(const char* folder, Text name, const Listed** found) const {
    *found = nullptr;
    for (int32_t i = 0; i < bundle_.entry_count && !*found; ++i) {
      const Text whole = bundle_.entries[i].name;
      const size_t before = strlen(folder);
      if (whole.Starts(folder) && Text{whole.data + before, whole.bytes - before}.Is(name)) {
        *found = &bundle_.entries[i];
      }
    }
    if (!*found) {
      return report_.Say("'%s' has no entry '%s%.*s'; compile the model for this target.", bundle_.path, folder,
                         Shown(name), name.data);
    }
    if (static_cast<uint64_t>((*found)->data - bundle_.file.data) % kAlignment == 0) return true;
    return report_.Say("'%s': entry '%s%.*s' is not aligned to 64 KiB; write the bundle again.", bundle_.path, folder,
                       Shown(name), name.data);
  }

  bool MapKernels() {
    const Listed* entry = nullptr;
    const char* target = bundle_.manifest.facts.target;
    if (!Aligned("kernels/", {target, strlen(target)}, &entry)) return false;
    if (!entry->bytes) {
      return report_.Say("'%s': entry 'kernels/%s' is empty; compile the model again.", bundle_.path, target);
    }
    const auto offset = static_cast<uint64_t>(entry->data - bundle_.file.data);
    const int error = MapFile(fd_, offset, static_cast<size_t>(entry->bytes), true, &bundle_.image);
    return !error || report_.Say(
                         "'%s': the system does not let code run from there (%s); move the bundle to a folder "
                         "that is not mounted noexec.",
                         bundle_.path, Reason(error));
  }

  bool CheckWeights() {
    const Json& weights = *bundle_.manifest.json->Find("weights");
    if (!weights.size) return true;
    if (!Aligned("weights/", weights.Find("layout")->text, &weights_)) return false;
    if (paging_) return ListSegments(*weights.Find("segments"));
    for (const Json* segment = weights.Find("segments")->child; segment; segment = segment->next) {
      const int64_t start = segment->Find("offset")->integer, size = segment->Find("bytes")->integer;
      const uint32_t found = rn_crc32c(weights_->data + start, static_cast<size_t>(size), 0);
      if (found == static_cast<uint32_t>(segment->Find("crc32c")->integer)) continue;
      return report_.Say("'%s': entry '%.*s' is damaged between bytes %lld and %lld; copy the bundle again.",
                         bundle_.path, Shown(weights_->name), weights_->name.data, static_cast<long long>(start),
                         static_cast<long long>(start + size));
    }
    return true;
  }

  // Weights that pass through memory are checked whenever they are read.
  bool ListSegments(const Json& listed) {
    auto* table = bundle_.arena.Make<rn_segment>(static_cast<size_t>(listed.size) + 1);
    if (!table) return report_.NoMemory();
    for (const Json* segment = listed.child; segment; segment = segment->next) {
      table[segments_++] = {static_cast<uint64_t>(segment->Find("offset")->integer),
                            static_cast<uint64_t>(segment->Find("bytes")->integer),
                            static_cast<uint32_t>(segment->Find("crc32c")->integer), 0};
    }
    table_ = table;
    return true;
  }

  bool MakePaged(const Listed& plan) {
    if (!weights_) {
      return report_.Say("'%s' has no weights that could pass through memory; open it without a budget.", bundle_.path);
    }
    rn_paging paging = *paging_;
    paging.path = bundle_.path;
    paging.offset = static_cast<uint64_t>(weights_->data - bundle_.file.data);
    paging.segments = table_;
    paging.segment_count = segments_;
    char why[256] = "";
    const int code = rn_open_paged(plan.data, static_cast<size_t>(plan.bytes), static_cast<size_t>(weights_->bytes),
                                   bundle_.image.data, bundle_.image.bytes, bundle_.manifest.program_hash, &paging,
                                   &bundle_.program, why, sizeof why);
    if (code == RN_NO_MEMORY || code == RN_STORAGE) {
      return report_.Say("'%s' does not open under its budget of RAM: %s.", bundle_.path,
                         why[0] ? why : rn_message(code));
    }
    return code == RN_OK || Unfit(why[0] ? why : rn_message(code));
  }

  bool Unfit(const char* why) const {
    return report_.Say("the plan of '%s' cannot be used: %s; compile the model again.", bundle_.manifest.facts.name,
                       why);
  }

  bool MakeProgram() {
    const Listed* plan = bundle_.Find({"plan", 4});
    if (!plan) return report_.Say("'%s' has no entry 'plan'; compile the model again.", bundle_.path);
    if (paging_) return MakePaged(*plan);
    char why[256] = "";
    const int code = rn_open(plan->data, static_cast<size_t>(plan->bytes), weights_ ? weights_->data : nullptr,
                             weights_ ? static_cast<size_t>(weights_->bytes) : 0, bundle_.image.data,
                             bundle_.image.bytes, bundle_.manifest.program_hash, &bundle_.program, why, sizeof why);
    return code == RN_OK || Unfit(why[0] ? why : rn_message(code));
  }

  bool CheckPorts(bool inputs) const {
    const rn_program* program = bundle_.program;
    const runnel::Manifest& manifest = bundle_.manifest;
    const int32_t count = inputs ? rn_input_count(program) : rn_output_count(program);
    const int32_t said = inputs ? manifest.input_count : manifest.output_count;
    char why[256];
    if (count != said) {
      snprintf(why, sizeof why, "it has %d ports and the manifest %d", count, said);
      return Unfit(why);
    }
    for (int32_t i = 0; i < count; ++i) {
      const rn_port& port = (inputs ? manifest.inputs : manifest.outputs)[i];
      if (inputs && rn_input_rate(program, i) != port.per_tick) {
        snprintf(why, sizeof why, "input '%.100s' has another rate than in the manifest", port.name);
        return Unfit(why);
      }
      const int64_t planned = inputs ? rn_input_frame_bytes(program, i) : rn_output_frame_bytes(program, i);
      int64_t bytes = port.item_bytes;
      for (int32_t k = 0; k < port.dimensions; ++k) bytes *= port.shape[k] < 0 ? 1 : port.shape[k];
      // What has no time may be several frames, of which the last ones are all that is given.
      if (port.axis < 0 && !inputs ? planned > 0 && bytes % planned == 0 : planned == bytes) continue;
      snprintf(why, sizeof why, "a frame of '%.100s' has %lld bytes and %lld in the manifest", port.name,
               static_cast<long long>(planned), static_cast<long long>(bytes));
      return Unfit(why);
    }
    return true;
  }

  rn_bundle& bundle_;
  const rn_paging* paging_;  // null: all weights are mapped
  const Report& report_;
  Arena reading_;
  Directory directory_;
  const Listed* weights_ = nullptr;
  const rn_segment* table_ = nullptr;
  int32_t segments_ = 0;
  int fd_ = -1;
};

}  // namespace
}  // namespace runnel

extern "C" {

int rn_load(const char* path, rn_bundle** out, char* message, size_t message_bytes) {
  return rn_load_paged(path, nullptr, out, message, message_bytes);
}

int rn_load_paged(const char* path, const rn_paging* paging, rn_bundle** out, char* message, size_t message_bytes) {
  if (message && message_bytes) message[0] = 0;
  if (!out) return RN_BAD_ARGUMENT;
  *out = nullptr;
  if (!path) return RN_BAD_ARGUMENT;
  int code = RN_OK;
  const Report report = {path, message, message_bytes, &code};
  void* block = runnel::PlatformAlloc(sizeof(rn_bundle));
  if (!block) return report.NoMemory(), code;
  auto* bundle = runnel::Place<rn_bundle>(block, SIZE_MAX / 2);
  bundle->path = bundle->arena.Copy({path, strlen(path)});
  if (!bundle->path) {
    report.NoMemory();
  } else {
    runnel::Loader(*bundle, paging, report).Load();
  }
  bundle->manifest.json = nullptr;  // it was in the reader's memory
  if (code != RN_OK) {
    rn_unload(bundle);
  } else {
    *out = bundle;
  }
  return code;
}

void rn_unload(rn_bundle* bundle) {
  if (!bundle) return;
  rn_close(bundle->program);
  runnel::Unmap(&bundle->image);
  runnel::Unmap(&bundle->file);
  bundle->~rn_bundle();
  runnel::PlatformFree(bundle);
}

}  // extern "C"
