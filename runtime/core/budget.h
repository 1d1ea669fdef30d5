// Memory that several programs share: who may use how much of it, by priority (runnel_paging.h).
#ifndef RUNNEL_BUDGET_H_
#define RUNNEL_BUDGET_H_

#include <pthread.h>

#include <cstdint>

namespace runnel {

class Pager;

// A program's part. Guarded by the budget's lock.
struct Share {
  Pager* pager = nullptr;
  Share* next = nullptr;
  int32_t priority = 0;
  uint64_t ran = 0;   // the turn of its last pass
  int64_t order = 0;  // among those of its priority the highest is served first
  uint64_t least = 0, most = 0;
  uint64_t granted = 0;  // bytes that it may use
  uint64_t due = 0;      // bytes that it should have, as the parts are cut now
  bool hungry = false;   // it could not have what is due when it asked
};

// The sum of what is granted is never above `ram`. The lock is taken before a pager's own, never behind it.
class Budget {
 public:
  static Budget* Make(uint64_t ram);
  // By whoever made it, once; it ends with the last program.
  void Release();

  // Gives a program that has its least and most a part; *least: of all programs, where that is RN_NO_MEMORY.
  int Join(Share& share, int32_t priority, uint64_t* least);
  // Nobody takes from it any more; then, when its memory is free: nobody counts it.
  void Retire(Share& share);
  void Leave(Share& share);
  // Before a pass of a program: it takes back what is its due from those that come after it and do not run.
  void Claim(Share& share);
  // Cuts the parts anew. RN_NO_MEMORY, and nothing changes, below the least of all.
  int Resize(uint64_t ram, Share& changed, int32_t streams, uint64_t* least);
  void SetPriority(Share& share, int32_t priority);

  // What all programs use at most, and need at least.
  void Sum(uint64_t* ram, uint64_t* used, uint64_t* least);

 private:
  explicit Budget(uint64_t ram) : ram_(ram) {}
  ~Budget() = default;

  void Cut();
  uint64_t Free() const;
  void Grant(Share& share, uint64_t bytes);

  mutable pthread_mutex_t lock_;
  uint64_t ram_, turn_ = 0;
  int64_t orders_ = 0, joins_ = 0;
  int32_t holders_ = 1;
  Share* first_ = nullptr;
};

}  // namespace runnel

#endif  // RUNNEL_BUDGET_H_
