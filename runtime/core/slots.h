// The slots of one KV head: what lies in them, and the few ways in which they change.
#ifndef RUNNEL_SLOTS_H_
#define RUNNEL_SLOTS_H_

#include "cache.h"

namespace runnel {

// A block of slots outside of a cache.
struct Block {
  uint8_t *keys, *values, *key_scales, *value_scales;
};

class Slots {
 public:
  // work: room for two words a slot. ranked: whether slots know how many older ones there are.
  Slots(const Cache& cache, uint8_t* state, HeadState& head, int32_t* work, bool ranked)
      : cache_(cache),
        head_(head),
        marks_(reinterpret_cast<Mark*>(state + head.marks)),
        keys_(state + head.keys),
        values_(state + head.values),
        ranks_(ranked ? reinterpret_cast<int32_t*>(marks_ + head.slots) : nullptr),
        work_(work) {
    const int64_t padded = (head.slots + cache.block - 1) / cache.block * cache.block;
    key_scales_ = keys_ + KeyBytes(cache, padded);
    value_scales_ = values_ + ValueBytes(cache, padded);
  }

  HeadState& head() const { return head_; }
  int64_t count() const { return head_.count; }
  Mark& mark(int64_t slot) const { return marks_[slot]; }
  const int32_t* ranks() const { return ranks_; }
  int32_t* work() const { return work_; }
  uint8_t* keys() const { return keys_; }
  uint8_t* values() const { return values_; }
  uint8_t* key_scales() const { return key_scales_; }
  uint8_t* value_scales() const { return value_scales_; }

  // Counts the slots behind one that is given up anew, and the frame that takes its place, or comes in at the end.
  void Recount(int64_t slot) const;
  // Puts what lies in a slot into another one.
  void Move(int64_t from, int64_t to) const;
  // Gives a slot up: the last one takes its place.
  void Drop(int64_t slot) const;
  // Notes what a frame takes the place of, and puts it back: false where the note is damaged, such as one with a
  // position outside of first to end - 1. slot: where the frame goes, or went.
  void Note(uint8_t* undo, int64_t slot) const;
  bool Undo(const uint8_t* undo, int64_t first, int64_t end) const;
  // Copies what lies in a slot to a place of another block, whose keys, values and scales lie where these say.
  void Copy(int64_t slot, const Block& block, int64_t place) const;
  // Reads a slot's key, as it was turned, and its value.
  void Read(int64_t slot, float* key, float* value) const;
  // Puts the mean of two slots, each with the weight of the frames that it holds, into the second; the key of the first
  // is turned to the position of the second. Elements of 32 bits only.
  void Merge(int64_t from, int64_t into) const;

 private:
  // Where the elements of a slot's key lie, `step` bytes apart, and how many there are.
  uint8_t* KeyAt(int64_t slot, int64_t* step, int64_t* rows) const;

  const Cache& cache_;
  HeadState& head_;
  Mark* marks_;
  uint8_t *keys_, *values_, *key_scales_, *value_scales_;
  int32_t* ranks_;  // null: none
  int32_t* work_;
};

}  // namespace runnel

#endif  // RUNNEL_SLOTS_H_
