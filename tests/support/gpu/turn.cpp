#include "support/gpu/turn.h"

#include <chrono>
#include <thread>

#include "ferry/core/wait.h"

namespace ferry::testing::gpu {

void Turn::take() {
  Waiter self;
  {
    const std::lock_guard lock(mutex_);
    if (!taken_) {
      taken_ = true;
      return;
    }
    waiting_.push_back(&self);
    num_waiting_.store(static_cast<int>(waiting_.size()), std::memory_order_relaxed);
  }
  Backoff backoff;
  while (!self.called.load(std::memory_order_acquire)) {
    backoff.pause();
    if (backoff.idle()) std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
}

void Turn::give() {
  const std::lock_guard lock(mutex_);
  if (waiting_.empty()) {
    taken_ = false;
    return;
  }
  std::swap(waiting_[draw_() % waiting_.size()], waiting_.back());
  Waiter* const next = waiting_.back();
  waiting_.pop_back();
  num_waiting_.store(static_cast<int>(waiting_.size()), std::memory_order_relaxed);
  next->called.store(true, std::memory_order_release);  // it is gone after this
}

bool Turn::pass() {
  if (num_waiting_.load(std::memory_order_relaxed) == 0) return false;
  give();
  take();
  return true;
}

}  // namespace ferry::testing::gpu
