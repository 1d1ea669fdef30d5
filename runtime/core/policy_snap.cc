// Lets slots fill and then keeps those that the latest queries looked at, with their neighbours in the text, and the
// latest ones: SnapKV (arXiv 2404.14469), again and again, so that what is kept is bounded while a prompt comes in.
#include "cache_policy.h"

namespace runnel {
namespace {

constexpr int64_t kReach = 2;  // neighbours on each side that share what queries gave a frame

// Sorts words by a key that rises; nearly in order already, but for a few rounds of the slots.
template <typename Key>
void Sort(int32_t* words, int64_t count, Key key) {
  for (int64_t gap = count / 2; gap > 0; gap /= 2) {
    for (int64_t i = gap; i < count; ++i) {
      const int32_t word = words[i];
      const auto own = key(word);
      int64_t j = i;
      for (; j >= gap && key(words[j - gap]) > own; j -= gap) words[j] = words[j - gap];
      words[j] = word;
    }
  }
}

// Gives up all but the first frames, the latest `recent` ones and the `heavy` others with the most votes.
void Compress(const Slots& slots, int64_t heavy, int64_t recent) {
  const int64_t sink = slots.head().sink, count = slots.count(), others = count - sink;
  int32_t* order = slots.work();
  auto* votes = reinterpret_cast<float*>(order + count);
  for (int64_t i = 0; i < others; ++i) order[i] = static_cast<int32_t>(sink + i);
  Sort(order, others, [&](int32_t slot) { return slots.mark(slot).position; });
  // A frame's votes are the mean of its own and its neighbours', the nearest of the text that are kept.
  for (int64_t i = 0; i < others; ++i) {
    float sum = 0;
    for (int64_t j = i - kReach; j <= i + kReach; ++j) sum += j >= 0 && j < others ? slots.mark(order[j]).mass : 0;
    votes[order[i]] = sum;
  }
  const int64_t candidates = others - recent;
  if (candidates > heavy) {
    // Of equal votes the later frame stays: the order by position is kept by a second key.
    for (int64_t i = 0; i < candidates; ++i) slots.mark(order[i]).extra = static_cast<float>(i);
    struct Rank {
      float votes, place;
      bool operator>(const Rank& o) const { return votes > o.votes || (votes == o.votes && place > o.place); }
    };
    Sort(order, candidates, [&](int32_t slot) { return Rank{votes[slot], slots.mark(slot).extra}; });
    for (int64_t i = 0; i < candidates - heavy; ++i) slots.mark(order[i]).mass = -1;
    for (int64_t s = sink; s < slots.count();) {
      if (slots.mark(s).mass < 0) {
        slots.Drop(s);
      } else {
        ++s;
      }
    }
  }
  for (int64_t s = 0; s < slots.count(); ++s) slots.mark(s).mass = 0;
}

}  // namespace

const Policy kSnapPolicy = {
    [](const int64_t* params) { return params[kSink] + params[kHeavy] + params[kWindow]; },
    [](const Slots& slots, const Arrival&, const int64_t* params) {
      if (slots.count() == slots.head().slots) {
        Compress(slots, slots.count() - slots.head().sink - params[kWindow], params[kObserve]);
      }
      return slots.count();
    },
    nullptr,
    nullptr,
    [](const Slots& slots, const Arrival&, const int64_t* params, const float* mass, int64_t) {
      if (slots.head().slots - slots.count() >= params[kObserve]) return;
      for (int64_t s = 0; s < slots.count(); ++s) slots.mark(s).mass += mass[s];
    },
};

}  // namespace runnel
