// Only the central directory counts (APPNOTE 6.3.10, sections 4.3.7 to 4.3.16).
#include "zipfile.h"

#include <cstdlib>

#include "json.h"

namespace runnel {
namespace {

constexpr uint64_t kEnd = 22, kEnd64 = 56, kLocator64 = 20, kCentral = 46, kLocal = 30;
constexpr uint64_t kMostEntries = 8192;
constexpr uint32_t kEncrypted = 0x1, kLaterSizes = 0x8;
constexpr uint32_t kFull16 = 0xffff, kFull32 = 0xffffffff;
constexpr uint32_t kTypeBits = 0170000, kRegular = 0100000;

class DirectoryReader {
 public:
  DirectoryReader(const Mapped& file, Arena& arena, const Report& report)
      : data_(file.data), bytes_(file.bytes), arena_(arena), report_(report) {}

  bool Read(Directory* directory) {
    if (!Bounds()) return false;
    if (count_ > kMostEntries || count_ * kCentral > stop_ - start_) {
      return report_.Say("'%s' is not a whole bundle: its directory claims %llu entries; copy or compile it again.",
                         report_.path, static_cast<unsigned long long>(count_));
    }
    directory->entries = arena_.Make<ZipEntry>(count_ + 1);
    if (!directory->entries) return report_.NoMemory();
    uint64_t at = start_;
    for (; directory->size < static_cast<int32_t>(count_); ++directory->size) {
      if (!Central(&at, &directory->entries[directory->size])) return false;
    }
    if (at != stop_) return Broken("its directory has bytes that belong to no entry");
    return Distinct(directory);
  }

 private:
  bool Broken(const char* what) const {
    return report_.Say("'%s' is not a whole bundle: %s; copy or compile it again.", report_.path, what);
  }
  bool BrokenEntry(Text name, const char* what) const {
    return report_.Say("'%s' is not a whole bundle: entry '%.*s' %s; copy or compile it again.", report_.path,
                       Shown(name), name.data, what);
  }

  uint64_t Number(uint64_t at, int bytes) const {
    uint64_t value = 0;
    for (int i = bytes - 1; i >= 0; --i) value = value << 8 | data_[at + static_cast<uint64_t>(i)];
    return value;
  }
  bool Magic(uint64_t at, char a, char b) const {
    return data_[at] == 'P' && data_[at + 1] == 'K' && data_[at + 2] == a && data_[at + 3] == b;
  }

  bool Bounds() {
    if (bytes_ < kEnd) {
      return report_.Say("'%s' is not a whole bundle: it has %llu bytes; copy or compile it again.", report_.path,
                         static_cast<unsigned long long>(bytes_));
    }
    const uint64_t end = bytes_ - kEnd;
    if (!Magic(end, 5, 6) || Number(end + 20, 2)) return Broken("its end is missing");
    uint64_t here = Number(end + 8, 2), size = Number(end + 12, 4);
    count_ = Number(end + 10, 2);
    start_ = Number(end + 16, 4);
    stop_ = end;
    if (here == kFull16 || count_ == kFull16 || size == kFull32 || start_ == kFull32) {
      if (end < kLocator64) return Broken("its zip64 end is missing");
      const uint64_t locator = end - kLocator64;
      if (!Magic(locator, 6, 7) || Number(locator + 16, 4) > 1 || locator < kEnd64 ||
          Number(locator + 8, 8) != locator - kEnd64) {
        return Broken("its zip64 end is missing");
      }
      stop_ = locator - kEnd64;
      if (!Magic(stop_, 6, 6) || Number(stop_ + 16, 4) || Number(stop_ + 20, 4)) {
        return Broken("its zip64 end is damaged");
      }
      here = Number(stop_ + 24, 8);
      count_ = Number(stop_ + 32, 8);
      size = Number(stop_ + 40, 8);
      start_ = Number(stop_ + 48, 8);
    }
    if (Number(end + 4, 2) || Number(end + 6, 2) || here != count_) return Broken("it is one of several parts");
    if (start_ > stop_ || size != stop_ - start_) return Broken("its directory is not where its end says");
    return true;
  }

  bool Central(uint64_t* at, ZipEntry* entry) const {
    if (stop_ - *at < kCentral) return Broken("its directory is damaged");
    const uint64_t name_bytes = Number(*at + 28, 2), extra_bytes = Number(*at + 30, 2);
    const uint64_t extra = *at + kCentral + name_bytes, following = extra + extra_bytes + Number(*at + 32, 2);
    if (!Magic(*at, 1, 2) || following > stop_) return Broken("its directory is damaged");
    entry->name = {reinterpret_cast<const char*>(data_ + *at + kCentral), static_cast<size_t>(name_bytes)};
    if (!PlainName(entry->name)) return false;
    uint64_t packed = Number(*at + 20, 4);
    entry->bytes = Number(*at + 24, 4);
    entry->header = Number(*at + 42, 4);
    if (!Sizes(entry, &packed, extra, extra_bytes)) return false;
    if (Number(*at + 8, 2) & (kEncrypted | kLaterSizes) || Number(*at + 10, 2) || packed != entry->bytes ||
        Number(*at + 34, 2)) {
      return BrokenEntry(entry->name, "is compressed or encrypted, and a bundle's entries are stored");
    }
    const auto kind = static_cast<uint32_t>(Number(*at + 40, 2)) & kTypeBits;
    if ((kind && kind != kRegular) || entry->name.data[entry->name.bytes - 1] == '/') {
      return BrokenEntry(entry->name, "is a link or a folder");
    }
    if (entry->header > start_ || start_ - entry->header < kLocal) {
      return BrokenEntry(entry->name, "lies outside the file");
    }
    *at = following;
    return Local(entry);
  }

  // Takes what does not fit 32 bits from the zip64 extra field.
  bool Sizes(ZipEntry* entry, uint64_t* packed, uint64_t extra, uint64_t extra_bytes) const {
    uint64_t* values[3] = {&entry->bytes, packed, &entry->header};
    uint64_t wanted = 0;
    for (const uint64_t* value : values) wanted += *value == kFull32;
    if (!wanted) return true;
    for (uint64_t at = 0; at + 4 <= extra_bytes;) {
      const uint64_t kind = Number(extra + at, 2), length = Number(extra + at + 2, 2);
      if (kind == 1 && length >= 8 * wanted && at + 4 + 8 * wanted <= extra_bytes) {
        uint64_t from = extra + at + 4;
        for (uint64_t* value : values) {
          if (*value != kFull32) continue;
          *value = Number(from, 8);
          from += 8;
        }
        return true;
      }
      at += 4 + length;
    }
    return BrokenEntry(entry->name, "lacks its zip64 sizes");
  }

  bool Local(ZipEntry* entry) const {
    const uint64_t first = entry->header + kLocal, name_bytes = Number(entry->header + 26, 2);
    entry->offset = first + name_bytes + Number(entry->header + 28, 2);
    if (!Magic(entry->header, 3, 4) || name_bytes != entry->name.bytes || name_bytes > start_ - first ||
        memcmp(data_ + first, entry->name.data, entry->name.bytes) != 0 || Number(entry->header + 8, 2)) {
      return BrokenEntry(entry->name, "has a damaged header");
    }
    if (entry->offset > start_ || entry->bytes > start_ - entry->offset) {
      return BrokenEntry(entry->name, "lies outside the file");
    }
    return true;
  }

  static bool Printable(uint32_t c) {
    if (c < 0x20 || (c >= 0x7f && c <= 0xa0) || c == 0xad || c == 0xfeff || c >= 0xe0000) return false;
    return !((c >= 0x2000 && c <= 0x200f) || (c >= 0x2028 && c <= 0x202f) || (c >= 0x205f && c <= 0x206f) ||
             c == 0x3000 || (c >= 0xe000 && c <= 0xf8ff) || (c >= 0xfff0 && c <= 0xffff));
  }

  bool PlainName(Text name) const {
    const auto* text = reinterpret_cast<const uint8_t*>(name.data);
    if (!IsUtf8(text, name.bytes)) return Broken("an entry's name is not text");
    size_t part = 0, characters = 0;
    bool plain = name.bytes > 0;
    for (size_t at = 0; at <= name.bytes && plain;) {
      const size_t here = at;
      const bool last = here == name.bytes;
      const uint32_t c = last ? '/' : NextCharacter(text, &at);
      if (c == '/') {
        const size_t size = here - part;
        const bool dots = (size == 1 || size == 2) && name.data[part] == '.' && name.data[here - 1] == '.';
        plain = !dots && (size > 0 || last);
        part = here + 1;
        if (last) break;
      } else {
        plain = Printable(c) && c != '\\' && c != ':';
      }
      ++characters;
    }
    if (plain && characters <= 1024) return true;
    char shown[81];  // without what a terminal would take as a command
    size_t n = 0;
    for (; n < name.bytes && n < sizeof shown - 1; ++n)
      shown[n] = text[n] < 0x20 || text[n] > 0x7e ? '?' : name.data[n];
    shown[n] = 0;
    return report_.Say(
        "'%s' is not a whole bundle: entry '%s' has a name that could leave its folder; copy or compile it again.",
        report_.path, shown);
  }

  bool Distinct(Directory* directory) const {
    ZipEntry* entries = directory->entries;
    const auto size = static_cast<size_t>(directory->size);
    qsort(entries, size, sizeof *entries, [](const void* a, const void* b) {
      const uint64_t x = static_cast<const ZipEntry*>(a)->header, y = static_cast<const ZipEntry*>(b)->header;
      return x < y ? -1 : x > y ? 1 : 0;
    });
    const ZipEntry* over = nullptr;
    for (size_t i = 1; i < size && !over; ++i) {
      if (entries[i].header < entries[i - 1].offset + entries[i - 1].bytes) over = &entries[i - 1];
    }
    if (over) {
      const Text name = over->name, other = over[1].name;
      if (name.Is(other)) return BrokenEntry(name, "is there twice");
      return report_.Say("'%s' is not a whole bundle: entries '%.*s' and '%.*s' overlap; copy or compile it again.",
                         report_.path, Shown(name), name.data, Shown(other), other.data);
    }
    qsort(entries, size, sizeof *entries, [](const void* a, const void* b) {
      return Compare(static_cast<const ZipEntry*>(a)->name, static_cast<const ZipEntry*>(b)->name);
    });
    for (size_t i = 1; i < size; ++i) {
      if (entries[i].name.Is(entries[i - 1].name)) return BrokenEntry(entries[i].name, "is there twice");
    }
    return true;
  }

 public:
  static int Compare(Text a, Text b) {
    const int order = memcmp(a.data, b.data, a.bytes < b.bytes ? a.bytes : b.bytes);
    return order ? order : a.bytes < b.bytes ? -1 : a.bytes > b.bytes ? 1 : 0;
  }

 private:
  const uint8_t* data_;
  uint64_t bytes_;
  Arena& arena_;
  const Report& report_;
  uint64_t count_ = 0, start_ = 0, stop_ = 0;
};

}  // namespace

const ZipEntry* Directory::Find(Text name) const {
  int32_t low = 0, high = size;
  while (low < high) {
    const int32_t middle = low + (high - low) / 2;
    const int order = DirectoryReader::Compare(entries[middle].name, name);
    if (order == 0) return &entries[middle];
    if (order < 0) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return nullptr;
}

bool ReadDirectory(const Mapped& file, Arena& arena, const Report& report, Directory* directory) {
  return DirectoryReader(file, arena, report).Read(directory);
}

}  // namespace runnel
