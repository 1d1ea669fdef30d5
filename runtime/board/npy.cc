#include "npy.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace runnel_run {
namespace {

constexpr size_t kMostHeader = 65536;

// What stands behind 'key': in the header.
const char* Value(const char* header, const char* key) {
  const char* found = strstr(header, key);
  if (!found) return nullptr;
  found += strlen(key);
  while (*found == ' ' || *found == ':') ++found;
  return found;
}

int64_t ItemBytes(const char* type) { return strcmp(type, "b1") == 0 ? 1 : atoi(type + 1); }

const char* ReadHeader(const char* header, Npy* npy) {
  const char *descr = Value(header, "'descr'"), *order = Value(header, "'fortran_order'"),
             *shape = Value(header, "'shape'");
  if (!descr || !order || !shape || *descr != '\'' || *shape != '(') return "its header is damaged";
  if (descr[1] != '<' && descr[1] != '|') return "its numbers are not little-endian";
  size_t n = 0;
  for (const char* c = descr + 2; *c && *c != '\'' && n < sizeof npy->type - 1; ++c) npy->type[n++] = *c;
  npy->type[n] = 0;
  if (strncmp(order, "False", 5) != 0) return "it is in Fortran order";
  for (const char* c = shape + 1; *c && *c != ')';) {
    if (*c < '0' || *c > '9') {
      ++c;
      continue;
    }
    char* end = nullptr;
    const long long size = strtoll(c, &end, 10);
    if (npy->dimensions == kMostDimensions || size < 0 || size > (1ll << 48)) return "its shape is not believed";
    npy->shape[npy->dimensions++] = size;
    c = end;
  }
  return nullptr;
}

}  // namespace

const char* ReadNpy(const uint8_t* bytes, size_t size, Npy* npy) {
  *npy = Npy{};
  if (size < 12 || memcmp(bytes, "\x93NUMPY", 6) != 0) return "it does not begin as one";
  const bool wide = bytes[6] >= 2;
  const size_t start = wide ? 12 : 10;
  size_t length = bytes[8] | static_cast<size_t>(bytes[9]) << 8;
  if (wide) length |= static_cast<size_t>(bytes[10]) << 16 | static_cast<size_t>(bytes[11]) << 24;
  if (length > kMostHeader || length > size - start) return "its header is cut off";
  char* header = static_cast<char*>(malloc(length + 1));
  if (!header) return "there is not enough memory";
  memcpy(header, bytes + start, length);
  header[length] = 0;
  const char* wrong = ReadHeader(header, npy);
  free(header);
  if (wrong) return wrong;
  int64_t needed = ItemBytes(npy->type);
  for (int i = 0; i < npy->dimensions; ++i) {
    if (__builtin_mul_overflow(needed, npy->shape[i], &needed)) return "its shape is not believed";
  }
  npy->data = bytes + start + length;
  return needed < 0 || static_cast<uint64_t>(needed) > size - start - length ? "it is cut off" : nullptr;
}

const char* TypeCode(const rn_port& port) {
  static const char* const kCodes[][2] = {{"float32", "f4"}, {"float64", "f8"}, {"float16", "f2"},
                                          {"int8", "i1"},    {"uint8", "u1"},   {"int16", "i2"},
                                          {"int32", "i4"},   {"int64", "i8"},   {"bool", "b1"}};
  for (const auto& code : kCodes) {
    if (strcmp(code[0], port.dtype) == 0) return code[1];
  }
  return "";
}

bool FitsPort(const Npy& npy, const rn_port& port) {
  if (strcmp(npy.type, TypeCode(port)) != 0 || npy.dimensions != port.dimensions) return false;
  for (int i = 0; i < npy.dimensions; ++i) {
    if (port.shape[i] >= 0 && port.shape[i] != npy.shape[i]) return false;
  }
  return true;
}

void WriteNpyHeader(const rn_port& port, int64_t frames, char header[kNpyHeader]) {
  memset(header, ' ', kNpyHeader);
  memcpy(header, "\x93NUMPY\x01\x00", 8);
  header[8] = static_cast<char>((kNpyHeader - 10) & 255);
  header[9] = static_cast<char>((kNpyHeader - 10) >> 8);
  char text[kNpyHeader];
  int n = snprintf(text, sizeof text, "{'descr': '%c%s', 'fortran_order': False, 'shape': (",
                   port.item_bytes == 1 ? '|' : '<', TypeCode(port));
  for (int i = 0; i < port.dimensions && n < 440; ++i) {
    const int64_t size = port.shape[i] < 0 ? frames : port.shape[i];
    n += snprintf(text + n, sizeof text - static_cast<size_t>(n), "%lld,%s", static_cast<long long>(size),
                  i + 1 < port.dimensions ? " " : "");
  }
  n += snprintf(text + n, sizeof text - static_cast<size_t>(n), "), }");
  memcpy(header + 10, text, static_cast<size_t>(n));
  header[kNpyHeader - 1] = '\n';
}

}  // namespace runnel_run
