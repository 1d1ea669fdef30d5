#include "budget.h"

#include <initializer_list>
#include <new>

#include "pager.h"
#include "platform.h"

namespace runnel {
namespace {

constexpr uint64_t kQuiet = 16;  // passes of others after which one of the same priority counts as resting

bool Before(const Share& a, const Share& b) {
  return a.priority != b.priority ? a.priority > b.priority : a.order > b.order;
}

}  // namespace

Budget* Budget::Make(uint64_t ram) {
  void* block = PlatformAlloc(sizeof(Budget));
  if (!block) return nullptr;
  auto* budget = new (block) Budget(ram);
  pthread_mutex_init(&budget->lock_, nullptr);
  return budget;
}

void Budget::Release() {
  pthread_mutex_lock(&lock_);
  const bool last = --holders_ == 0;
  pthread_mutex_unlock(&lock_);
  if (!last) return;
  pthread_mutex_destroy(&lock_);
  PlatformFree(this);
}

uint64_t Budget::Free() const {
  uint64_t granted = 0;
  for (const Share* share = first_; share; share = share->next) granted += share->granted;
  return ram_ - granted;
}

// What is due to each: its least, and of the rest as much as it can use, in order.
void Budget::Cut() {
  uint64_t rest = ram_;
  for (Share* share = first_; share; share = share->next) {
    share->due = share->least;
    rest -= share->due;
  }
  for (const Share* last = nullptr; rest;) {
    Share* next = nullptr;
    for (Share* share = first_; share; share = share->next) {
      if ((!last || Before(*last, *share)) && (!next || Before(*share, *next))) next = share;
    }
    if (!next) return;
    const uint64_t more = next->most - next->due;
    next->due += more < rest ? more : rest;
    rest -= more < rest ? more : rest;
    last = next;
  }
}

void Budget::Grant(Share& share, uint64_t bytes) {
  if (bytes == share.granted || share.pager->Take(bytes) != RN_OK) return;
  share.granted = bytes;
}

int Budget::Join(Share& share, int32_t priority, uint64_t* least) {
  pthread_mutex_lock(&lock_);
  *least = share.least;
  for (const Share* other = first_; other; other = other->next) *least += other->least;
  int code = *least <= ram_ ? RN_OK : RN_NO_MEMORY;
  if (code == RN_OK) {
    share.priority = priority;
    share.order = --joins_;
    share.next = first_;
    first_ = &share;
    ++holders_;
    Cut();
    uint64_t free = Free();
    const uint64_t needed = share.least;
    for (Share* other = share.next; other && free < needed; other = other->next) {  // those before it keep their due
      if (other->granted <= other->due) continue;
      other->pager->Lock();
      Grant(*other, other->due);
      other->pager->Unlock();
      free = Free();
    }
    Grant(share, share.due < free ? share.due : free);
    if (!share.granted) code = RN_STORAGE;
  }
  pthread_mutex_unlock(&lock_);
  return code;
}

void Budget::Retire(Share& share) {
  pthread_mutex_lock(&lock_);
  share.least = share.most = share.granted;
  share.hungry = false;
  pthread_mutex_unlock(&lock_);
}

void Budget::Leave(Share& share) {
  pthread_mutex_lock(&lock_);
  for (Share** at = &first_; *at; at = &(*at)->next) {
    if (*at != &share) continue;
    *at = share.next;
    break;
  }
  pthread_mutex_unlock(&lock_);
  Release();
}

void Budget::Claim(Share& share) {
  pthread_mutex_lock(&lock_);
  share.ran = ++turn_;
  for (const Share* other = first_; other; other = other->next) {
    if (other->priority == share.priority && other->order > share.order && turn_ - other->ran >= kQuiet) {
      share.order = ++orders_;
    }
  }
  Cut();
  bool wanted = false;  // by one before it
  for (const Share* other = first_; other; other = other->next) wanted |= other->hungry && Before(*other, share);
  if ((share.granted < share.due || (wanted && share.granted > share.due)) && share.pager->TryLock()) {
    uint64_t free = Free();
    for (Share* other = first_; other && share.granted + free < share.due; other = other->next) {
      if (other->granted <= other->due || !other->pager->TryLock()) continue;
      const uint64_t lacking = share.due - share.granted - free, spare = other->granted - other->due;
      Grant(*other, other->granted - (lacking < spare ? lacking : spare));
      other->pager->Unlock();
      free = Free();
    }
    Grant(share, share.due < share.granted + free ? share.due : share.granted + free);
    share.pager->Unlock();
  }
  share.hungry = share.granted < share.due;
  pthread_mutex_unlock(&lock_);
}

int Budget::Resize(uint64_t ram, Share& changed, int32_t streams, uint64_t* least) {
  pthread_mutex_lock(&lock_);
  const int32_t before = changed.pager->SetStreams(streams);
  *least = 0;
  for (const Share* share = first_; share; share = share->next) *least += share->least;
  int code = *least <= ram ? RN_OK : RN_NO_MEMORY;
  if (code == RN_OK) {
    ram_ = ram;
    Cut();
    for (const bool larger : {false, true}) {
      for (Share* share = first_; share; share = share->next) {
        if (share->granted == share->due || (share->granted < share->due) != larger) continue;
        share->pager->Lock();
        Grant(*share, share->due);
        share->pager->Unlock();
        if (share->granted != share->due) code = RN_STORAGE;
      }
    }
  } else {
    changed.pager->SetStreams(before);
  }
  pthread_mutex_unlock(&lock_);
  return code;
}

void Budget::SetPriority(Share& share, int32_t priority) {
  pthread_mutex_lock(&lock_);
  share.priority = priority;
  pthread_mutex_unlock(&lock_);
}

void Budget::Sum(uint64_t* ram, uint64_t* used, uint64_t* least) {
  pthread_mutex_lock(&lock_);
  *ram = ram_;
  *used = *least = 0;
  for (const Share* share = first_; share; share = share->next) {
    *used += share->pager->peak();
    *least += share->least;
  }
  pthread_mutex_unlock(&lock_);
}

}  // namespace runnel
