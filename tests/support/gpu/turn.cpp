#include "support/gpu/turn.h"

#include <utility>

namespace ferry::testing::gpu {

// Who waits sleeps in the kernel: a launch has the turn for long, and yielding meanwhile would take
// the cores from it.
void Turn::take() {
  std::unique_lock lock(mutex_);
  if (!taken_) {
    taken_ = true;
    return;
  }
  Waiter self;
  waiting_.push_back(&self);
  num_waiting_.store(static_cast<int>(waiting_.size()), std::memory_order_relaxed);
  self.woken.wait(lock, [&] { return self.called; });
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
  next->called = true;
  next->woken.notify_one();
}

bool Turn::pass() {
  if (num_waiting_.load(std::memory_order_relaxed) == 0) return false;
  give();
  take();
  return true;
}

}  // namespace ferry::testing::gpu
