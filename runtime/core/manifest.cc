#include "manifest.h"

#include <initializer_list>

#include "sha256.h"

namespace runnel {
namespace {

constexpr int64_t kSchema = 1;
constexpr int64_t kMostHop = int64_t{1} << 24, kMostDimension = int64_t{1} << 31, kMostFrames = int64_t{1} << 44;
constexpr int64_t kMostBytes = int64_t{1} << 62;
constexpr double kTolerance = 1e-5;  // where the proof names no limit

// In the order in which a missing one is told.
constexpr const char* kKeys[] = {"backends", "clock",          "entries", "hop",     "inputs",       "kernels",
                                 "kv",       "latency_frames", "macs",    "made_by", "mode",         "modes",
                                 "name",     "native_refusal", "onnx",    "outputs", "program_hash", "proof",
                                 "schema",   "target",         "weights", "window"};

struct Type {
  const char* name;
  int32_t bytes;
};
constexpr Type kTypes[] = {{"float32", 4}, {"float64", 8}, {"float16", 2}, {"int8", 1}, {"uint8", 1},
                           {"int16", 2},   {"int32", 4},   {"int64", 8},   {"bool", 1}};

class Checker {
 public:
  Checker(const Json& json, Arena& kept, const Report& report, Manifest* out)
      : json_(json), kept_(kept), report_(report), out_(*out) {}

  bool Check() {
    const Json* schema = json_.Find("schema");
    if (schema && schema->type == JsonType::kInteger && schema->integer > kSchema) {
      return report_.Say("'%s' has bundle schema %lld and this runnel reads up to %lld; update runnel.", report_.path,
                         static_cast<long long>(schema->integer), static_cast<long long>(kSchema));
    }
    if (!schema || !schema->Between(kSchema, kSchema)) return Wrong("schema");
    return Keys() && Plain() && Target() && Clock() && Entries() && Weights() && Window() && Modes() && Proof() &&
           Ports("inputs", &out_.inputs, &out_.input_count) && Ports("outputs", &out_.outputs, &out_.output_count) &&
           Order();
  }

 private:
  bool Wrong(const char* key, const char* how = "has a value that makes no sense") const {
    return report_.Say("'%s': the manifest's key '%s' %s; compile the model again.", report_.path, key, how);
  }
  const Json& At(const char* key) const { return *json_.Find(key); }

  bool Keys() const {
    for (const Json* item = json_.child; item; item = item->next) {
      bool known = false;
      for (const char* key : kKeys) known |= item->key.Is(key);
      if (known) continue;
      return report_.Say("'%s': the manifest's key '%.*s' is unknown; compile the model again.", report_.path,
                         Shown(item->key), item->key.data);
    }
    for (const char* key : kKeys) {
      if (!json_.Find(key)) return Wrong(key, "is missing");
    }
    return true;
  }

  bool Keep(const Json& text, const char** kept) const {
    *kept = kept_.Copy(text.text);
    return *kept || report_.NoMemory();
  }

  static bool IsText(const Json* value) { return value && value->IsString(); }

  bool Plain() {
    const Json &name = At("name"), &hash = At("program_hash"), &mode = At("mode");
    if (!name.IsString()) return Wrong("name");
    if (!hash.IsString() || !ReadHex(hash.text.data, hash.text.bytes, out_.program_hash)) return Wrong("program_hash");
    if (!At("hop").Between(1, kMostHop)) return Wrong("hop");
    if (!At("latency_frames").Between(0, kMostBytes)) return Wrong("latency_frames");
    const Text m = mode.text;
    if (!mode.IsString() || !(m.Is("sequence") || m.Is("window") || m.Is("exact") || m.Is("reuse"))) {
      return Wrong("mode");
    }
    for (const char* key : {"target", "entries", "weights", "clock", "proof", "modes", "macs"}) {
      if (!At(key).IsObject()) return Wrong(key);
    }
    if (!At("onnx").IsNull() && !At("onnx").IsObject()) return Wrong("onnx");
    if (!At("native_refusal").IsNull() && !At("native_refusal").IsString()) return Wrong("native_refusal");
    const Json& backends = At("backends");
    if (!backends.IsArray() || !backends.size) return Wrong("backends");
    for (const Json* item = backends.child; item; item = item->next) {
      if (!item->IsString()) return Wrong("backends");
    }
    out_.facts.hop = At("hop").integer;
    out_.facts.latency_frames = At("latency_frames").integer;
    return Keep(name, &out_.facts.name);
  }

  bool Target() {
    const Json& target = At("target");
    const Json* features = target.Find("features");
    if (!IsText(target.Find("name")) || !IsText(target.Find("arch")) || !IsText(target.Find("os")) || !features ||
        !features->IsArray()) {
      return Wrong("target");
    }
    for (const Json* item = features->child; item; item = item->next) {
      if (!item->IsString()) return Wrong("target");
    }
    const Json *glibc = target.Find("glibc"), *page = target.Find("page_bytes");
    if ((glibc && !glibc->IsString()) || (page && !page->Between(1 << 12, 1 << 16))) return Wrong("target");
    return Keep(*target.Find("name"), &out_.facts.target) && Keep(*target.Find("arch"), &out_.facts.arch);
  }

  // A positive number or none.
  static bool Rate(const Json* value, double* rate) {
    *rate = value && value->IsNumber() ? value->number : 0;
    return !value || value->IsNull() || (value->IsNumber() && value->number > 0);
  }

  bool Clock() {
    const Json& clock = At("clock");
    rn_facts& facts = out_.facts;
    const Json *ahead = clock.Find("ahead"), *shortest = clock.Find("shortest"), *lengths = clock.Find("lengths"),
               *most = clock.Find("max_frames"), *reason = clock.Find("max_frames_reason");
    if (!Rate(clock.Find("rate"), &facts.rate) || (ahead && !ahead->Between(1, kMostHop)) ||
        (shortest && !shortest->Between(0, kMostFrames)) ||
        (most && !most->IsNull() && !most->Between(1, kMostFrames)) || (reason && !reason->IsString())) {
      return Wrong("clock");
    }
    facts.ahead = ahead ? ahead->integer : 0;
    facts.shortest = shortest ? shortest->integer : 0;
    facts.max_frames = most && !most->IsNull() ? most->integer : 0;
    facts.period = facts.remainder_count = 1;
    const Json *period = nullptr, *rests = nullptr;
    if (lengths) {
      if (!lengths->IsArray() || lengths->size != 2) return Wrong("clock");
      period = lengths->child, rests = period->next;
      if (!rests->IsArray() || !rests->size || !period->Between(1, kMostHop)) return Wrong("clock");
      facts.period = period->integer;
      facts.remainder_count = rests->size;
    }
    auto* kept = kept_.Make<int64_t>(static_cast<size_t>(facts.remainder_count));
    if (!kept) return report_.NoMemory();
    facts.remainders = kept;
    for (const Json* rest = rests ? rests->child : nullptr; rest; rest = rest->next) {
      if (!rest->Between(0, facts.period - 1)) return Wrong("clock");
      *kept++ = rest->integer;
    }
    return Keep(reason ? *reason : Json{}, &facts.max_frames_reason);
  }

  bool Entries() const {
    for (const Json* entry = At("entries").child; entry; entry = entry->next) {
      const Json *bytes = entry->Find("bytes"), *sum = entry->Find("sha256");
      uint8_t digest[32];
      if (!bytes || !bytes->Between(0, kMostBytes) || !IsText(sum) ||
          !ReadHex(sum->text.data, sum->text.bytes, digest)) {
        return Wrong("entries");
      }
    }
    return true;
  }

  bool Weights() {
    const Json& weights = At("weights");
    if (!weights.size) return true;
    const Json *layout = weights.Find("layout"), *segments = weights.Find("segments");
    if (!IsText(layout) || !segments || !segments->IsArray()) return Wrong("weights");
    const Json* entry = nullptr;
    for (const Json* item = At("entries").child; item; item = item->next) {
      if (!item->key.Starts("weights/")) continue;
      if (Text{item->key.data + 8, item->key.bytes - 8}.Is(layout->text)) entry = item;
    }
    if (!entry) return Wrong("weights");
    const int64_t whole = entry->Find("bytes")->integer;
    int64_t covered = 0;
    for (const Json* segment = segments->child; segment; segment = segment->next) {
      const Json *offset = segment->Find("offset"), *bytes = segment->Find("bytes"), *crc = segment->Find("crc32c");
      if (!offset || !offset->Between(covered, covered) || !bytes || !bytes->Between(1, whole - covered) || !crc ||
          !crc->Between(0, UINT32_MAX)) {
        return Wrong("weights");
      }
      covered += bytes->integer;
    }
    out_.facts.weights_bytes = static_cast<uint64_t>(whole);
    return covered == whole || Wrong("weights");
  }

  bool Window() const {
    const Json& window = At("window");
    if (window.IsNull()) return true;
    const Json *frames = window.Find("frames"), *hop = window.Find("hop"), *mode = window.Find("mode"),
               *nrmse = window.Find("nrmse");
    if (!window.IsObject() || window.size != 4 || !frames || !hop || !mode || !nrmse) return Wrong("window");
    const bool fine = frames->Between(1, kMostHop) && hop->Between(1, kMostHop) && mode->IsString() &&
                      (mode->text.Is("exact") || mode->text.Is("reuse")) &&
                      (nrmse->IsNull() || (nrmse->type == JsonType::kNumber && nrmse->number >= 0));
    return fine || Wrong("window");
  }

  bool Modes() const {
    const Json& modes = At("modes");
    if (!modes.size) return true;
    const Json *used = modes.Find("used"), *deviation = modes.Find("deviation"), *recording = modes.Find("calibration");
    if (modes.size != 3 || !used || !used->IsObject() || !used->size || !deviation || !deviation->IsObject() ||
        !recording || !recording->IsObject() || recording->size != 3 || !recording->Find("name") ||
        !recording->Find("frames") || !recording->Find("sha256")) {
      return Wrong("modes");
    }
    for (const Json* mode = used->child; mode; mode = mode->next) {
      const Json *value = mode->Find("value"), *nodes = mode->Find("nodes"), *cost = mode->Find("deviation");
      const Json *why = mode->Find("why"), *layers = mode->Find("layers");
      const int known = 3 + (why != nullptr) + (layers != nullptr);
      if (!mode->IsObject() || mode->size != known || (why && !IsText(why)) || (layers && !layers->IsArray()) ||
          !IsText(value) || !nodes || !nodes->IsArray() || !cost || !(cost->IsNull() || cost->IsObject())) {
        return Wrong("modes");
      }
      for (const Json* node = nodes->child; node; node = node->next) {
        if (!node->IsString()) return Wrong("modes");
      }
    }
    return true;
  }

  bool Proof() {
    const Json* limit = At("proof").Find("limit");
    out_.facts.tolerance = limit && limit->IsNumber() && limit->number != 0 ? limit->number : kTolerance;
    return true;
  }

  bool Ports(const char* key, rn_port** ports, int32_t* count) {
    const Json& list = At(key);
    if (!list.IsArray() || !list.size) return Wrong(key);
    *ports = kept_.Make<rn_port>(static_cast<size_t>(list.size));
    if (!*ports) return report_.NoMemory();
    *count = 0;
    for (const Json* item = list.child; item; item = item->next) {
      if (!Port(*item, key, &(*ports)[*count])) return false;
      for (int32_t i = 0; i < *count; ++i) {
        if (strcmp((*ports)[i].name, (*ports)[*count].name) == 0) return Wrong(key);
      }
      ++*count;
    }
    return true;
  }

  bool Port(const Json& item, const char* key, rn_port* port) {
    const Json *name = item.Find("name"), *dtype = item.Find("dtype"), *shape = item.Find("shape"),
               *axis = item.Find("axis"), *per_tick = item.Find("per_tick");
    if (!IsText(name) || !IsText(dtype) || !shape || !shape->IsArray() || shape->size > 32) return Wrong(key);
    for (const Type& type : kTypes) {
      if (dtype->text.Is(type.name)) port->dtype = type.name, port->item_bytes = type.bytes;
    }
    auto* sizes = kept_.Make<int64_t>(static_cast<size_t>(shape->size));
    if (!sizes) return report_.NoMemory();
    port->shape = sizes;
    port->axis = -1;
    int64_t bytes = port->item_bytes;
    for (const Json* size = shape->child; size; size = size->next) {
      if (size->IsNull()) {
        if (port->axis >= 0) return Wrong(key);
        port->axis = port->dimensions;
      } else if (!size->Between(0, kMostDimension) || __builtin_mul_overflow(bytes, size->integer, &bytes)) {
        return Wrong(key);
      }
      sizes[port->dimensions++] = size->IsNull() ? -1 : size->integer;
    }
    port->per_tick = per_tick ? per_tick->integer : 1;
    const bool timed = axis && !axis->IsNull();
    const bool fine = port->dtype && bytes > 0 && bytes <= kMostDimension && Rate(item.Find("rate"), &port->rate) &&
                      (!per_tick || per_tick->Between(0, kMostDimension)) && (port->per_tick > 0 || !timed) &&
                      (timed ? axis->Between(port->axis, port->axis) && port->axis >= 0 : port->axis < 0);
    return fine ? Keep(*name, &port->name) : Wrong(key);
  }

  // Static inputs come last, and there is one that is not.
  bool Order() const {
    if (out_.inputs[0].per_tick == 0) return Wrong("inputs");
    for (int32_t i = 1; i < out_.input_count; ++i) {
      if (out_.inputs[i - 1].per_tick == 0 && out_.inputs[i].per_tick != 0) return Wrong("inputs");
    }
    return true;
  }

  const Json& json_;
  Arena& kept_;
  const Report& report_;
  Manifest& out_;
};

}  // namespace

bool ReadManifest(const uint8_t* text, size_t bytes, Arena& reading, Arena& kept, const Report& report,
                  Manifest* manifest) {
  manifest->json = ReadJson(text, bytes, reading);
  if (!manifest->json || !manifest->json->IsObject()) {
    return report.Say("'%s': the manifest is not JSON; compile the model again.", report.path);
  }
  return Checker(*manifest->json, kept, report, manifest).Check();
}

}  // namespace runnel
