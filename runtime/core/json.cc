#include "json.h"

namespace runnel {
namespace {

constexpr int kMostLevels = 64;
constexpr int32_t kMostKeys = 8192;

class Reader {
 public:
  Reader(const uint8_t* text, size_t bytes, Arena& arena) : at_(text), end_(text + bytes), arena_(arena) {}

  const Json* Read() {
    Json* value = arena_.Make<Json>(1);
    if (!value || !Value(value, 0)) return nullptr;
    Space();
    return at_ == end_ ? value : nullptr;
  }

 private:
  void Space() {
    while (at_ < end_ && (*at_ == ' ' || *at_ == '\n' || *at_ == '\r' || *at_ == '\t')) ++at_;
  }

  bool Take(char c) {
    if (at_ == end_ || *at_ != c) return false;
    ++at_;
    return true;
  }

  bool Word(const char* word) {
    const size_t n = strlen(word);
    if (static_cast<size_t>(end_ - at_) < n || memcmp(at_, word, n) != 0) return false;
    at_ += n;
    return true;
  }

  bool Value(Json* value, int level) {
    Space();
    if (at_ == end_ || level > kMostLevels) return false;
    switch (*at_) {
      case '{':
      case '[':
        return Container(value, level);
      case '"':
        value->type = JsonType::kString;
        return String(&value->text);
      case 't':
        value->type = JsonType::kBool;
        value->truth = true;
        return Word("true");
      case 'f':
        value->type = JsonType::kBool;
        return Word("false");
      case 'n':
        value->type = JsonType::kNull;
        return Word("null");
      default:
        return Number(value);
    }
  }

  bool Container(Json* value, int level) {
    const bool object = *at_++ == '{';
    value->type = object ? JsonType::kObject : JsonType::kArray;
    const char close = object ? '}' : ']';
    Space();
    if (Take(close)) return true;
    const Json** link = &value->child;
    for (;;) {
      Json* item = arena_.Make<Json>(1);
      if (!item) return false;
      if (object) {
        Space();
        if (!String(&item->key)) return false;
        Space();
        if (!Take(':') || value->size == kMostKeys || value->Find(item->key)) return false;
      }
      if (!Value(item, level + 1)) return false;
      *link = item;
      link = &item->next;
      ++value->size;
      Space();
      if (Take(close)) return true;
      if (!Take(',')) return false;
    }
  }

  static int Hex(uint8_t c) {
    if (c >= '0' && c <= '9') return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
  }

  bool Unit(uint32_t* unit) {
    if (end_ - at_ < 4) return false;
    *unit = 0;
    for (int i = 0; i < 4; ++i) {
      const int digit = Hex(*at_++);
      if (digit < 0) return false;
      *unit = *unit << 4 | static_cast<uint32_t>(digit);
    }
    return true;
  }

  bool Escape(char** out) {
    static const char kNames[] = "\"\\/bfnrt", kMeant[] = "\"\\/\b\f\n\r\t";
    if (at_ == end_) return false;
    const char c = static_cast<char>(*at_++);
    if (c != 'u') {
      const char* found = c ? strchr(kNames, c) : nullptr;
      if (!found) return false;
      *(*out)++ = kMeant[found - kNames];
      return true;
    }
    uint32_t code, low;
    if (!Unit(&code) || (code >= 0xdc00 && code < 0xe000)) return false;
    if (code >= 0xd800 && code < 0xdc00) {
      if (!Take('\\') || !Take('u') || !Unit(&low) || low < 0xdc00 || low >= 0xe000) return false;
      code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    }
    Append(out, code);
    return true;
  }

  static void Append(char** out, uint32_t code) {
    auto put = [out](uint32_t byte) { *(*out)++ = static_cast<char>(byte); };
    if (code < 0x80) {
      put(code);
    } else if (code < 0x800) {
      put(0xc0 | code >> 6), put(0x80 | (code & 63));
    } else if (code < 0x10000) {
      put(0xe0 | code >> 12), put(0x80 | (code >> 6 & 63)), put(0x80 | (code & 63));
    } else {
      put(0xf0 | code >> 18), put(0x80 | (code >> 12 & 63)), put(0x80 | (code >> 6 & 63)), put(0x80 | (code & 63));
    }
  }

  bool String(Text* text) {
    if (!Take('"')) return false;
    const uint8_t* start = at_;
    bool escaped = false;
    while (at_ < end_ && *at_ != '"') {
      if (*at_ < 0x20) return false;
      if (*at_ == '\\') {
        escaped = true;
        if (++at_ == end_) return false;
      }
      ++at_;
    }
    if (at_ >= end_) return false;
    const uint8_t* stop = at_;
    const auto size = static_cast<size_t>(stop - start);
    if (!escaped) {
      ++at_;
      *text = {reinterpret_cast<const char*>(start), size};
      return true;
    }
    auto* copy = static_cast<char*>(arena_.Take(size));  // an escape is longer than what it means
    if (!copy) return false;
    char* out = copy;
    at_ = start;
    while (at_ < stop) {
      if (*at_ != '\\') {
        *out++ = static_cast<char>(*at_++);
      } else if (++at_, !Escape(&out)) {
        return false;
      }
    }
    if (at_ != stop) return false;
    ++at_;
    *text = {copy, static_cast<size_t>(out - copy)};
    return true;
  }

  bool Digits() {
    const uint8_t* start = at_;
    while (at_ < end_ && *at_ >= '0' && *at_ <= '9') {
      const int digit = *at_++ - '0';
      if (mantissa_ > (UINT64_MAX - 9) / 10) {
        ++dropped_;
        whole_ = false;
      } else {
        mantissa_ = mantissa_ * 10 + static_cast<uint64_t>(digit);
      }
    }
    return at_ > start;
  }

  bool Number(Json* value) {
    const bool negative = Take('-');
    const uint8_t* start = at_;
    mantissa_ = 0;
    dropped_ = 0;
    whole_ = true;
    if (!Digits() || (*start == '0' && at_ - start > 1)) return false;
    int64_t exponent = dropped_;
    bool integer = whole_;
    if (Take('.')) {
      integer = false;
      const uint8_t* fraction = at_;
      dropped_ = 0;
      if (!Digits()) return false;
      exponent -= at_ - fraction - dropped_;
    }
    if (at_ < end_ && (*at_ == 'e' || *at_ == 'E')) {
      integer = false;
      ++at_;
      const bool down = Take('-');
      if (!down) Take('+');
      int64_t power = 0;
      const uint8_t* first = at_;
      while (at_ < end_ && *at_ >= '0' && *at_ <= '9') {
        if (power < 100000) power = power * 10 + (*at_ - '0');
        ++at_;
      }
      if (at_ == first) return false;
      exponent += down ? -power : power;
    }
    value->type = integer && mantissa_ <= INT64_MAX ? JsonType::kInteger : JsonType::kNumber;
    if (value->type == JsonType::kInteger) value->integer = static_cast<int64_t>(mantissa_) * (negative ? -1 : 1);
    double number = static_cast<double>(mantissa_), scale = 10;
    const bool smaller = exponent < 0;
    for (uint64_t n = static_cast<uint64_t>(smaller ? -exponent : exponent); n && number != 0; n >>= 1) {
      if (n & 1) number = smaller ? number / scale : number * scale;
      scale *= scale;
    }
    value->number = negative ? -number : number;
    return true;
  }

  const uint8_t* at_;
  const uint8_t* end_;
  Arena& arena_;
  uint64_t mantissa_ = 0;
  int64_t dropped_ = 0;
  bool whole_ = true;
};

}  // namespace

const Json* Json::Find(Text name) const {
  for (const Json* item = child; item; item = item->next) {
    if (item->key.Is(name)) return item;
  }
  return nullptr;
}

const Json* Json::Find(const char* name) const { return Find(Text{name, strlen(name)}); }

const Json* ReadJson(const uint8_t* text, size_t bytes, Arena& arena) {
  return IsUtf8(text, bytes) ? Reader(text, bytes, arena).Read() : nullptr;
}

bool IsUtf8(const uint8_t* text, size_t bytes) {
  for (size_t at = 0; at < bytes;) {
    const uint8_t first = text[at++];
    if (first < 0x80) continue;
    const int more = first >= 0xf0 ? 3 : first >= 0xe0 ? 2 : 1;
    if (first < 0xc2 || first > 0xf4 || bytes - at < static_cast<size_t>(more)) return false;
    uint32_t code = first & (0x3f >> more);
    for (int i = 0; i < more; ++i) {
      if ((text[at] & 0xc0) != 0x80) return false;
      code = code << 6 | (text[at++] & 0x3fu);
    }
    static constexpr uint32_t kLeast[] = {0, 0x80, 0x800, 0x10000};
    if (code < kLeast[more] || code > 0x10ffff || (code >= 0xd800 && code < 0xe000)) return false;
  }
  return true;
}

uint32_t NextCharacter(const uint8_t* text, size_t* at) {
  const uint8_t first = text[(*at)++];
  if (first < 0x80) return first;
  const int more = first >= 0xf0 ? 3 : first >= 0xe0 ? 2 : 1;
  uint32_t code = first & (0x3f >> more);
  for (int i = 0; i < more; ++i) code = code << 6 | (text[(*at)++] & 0x3fu);
  return code;
}

}  // namespace runnel
