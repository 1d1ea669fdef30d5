// Reads JSON (RFC 8259) strictly: UTF-8, no key twice, no NaN, nothing after the value, at most 64 levels.
#ifndef RUNNEL_JSON_H_
#define RUNNEL_JSON_H_

#include "arena.h"

namespace runnel {

enum class JsonType : uint8_t { kNull, kBool, kInteger, kNumber, kString, kArray, kObject };

// A value; in an array or object, `next` is the one after it, and `key` is its name in an object.
struct Json {
  JsonType type;
  bool truth;
  int32_t size;     // of an array or object
  int64_t integer;  // of kInteger; one beyond int64 is a kNumber
  double number;    // of kInteger and kNumber
  Text text;
  Text key;
  const Json* child;
  const Json* next;

  bool IsNull() const { return type == JsonType::kNull; }
  bool IsString() const { return type == JsonType::kString; }
  bool IsArray() const { return type == JsonType::kArray; }
  bool IsObject() const { return type == JsonType::kObject; }
  bool IsNumber() const { return type == JsonType::kInteger || type == JsonType::kNumber; }
  bool Between(int64_t low, int64_t high) const {
    return type == JsonType::kInteger && integer >= low && integer <= high;
  }
  // The value of a key; null where there is none.
  const Json* Find(const char* name) const;
  const Json* Find(Text name) const;
};

// The value in `arena`, null where the text is not JSON or too large for the arena.
const Json* ReadJson(const uint8_t* text, size_t bytes, Arena& arena);

// Whether the bytes are UTF-8 without surrogates and overlong forms.
bool IsUtf8(const uint8_t* text, size_t bytes);
// The character at *at, which moves on. Only for UTF-8.
uint32_t NextCharacter(const uint8_t* text, size_t* at);

}  // namespace runnel

#endif  // RUNNEL_JSON_H_
