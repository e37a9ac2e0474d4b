#include "ferry/server/workers.h"

#include <utility>

namespace ferry {

void Workers::post(std::function<void()> task) {
  const std::lock_guard lock(mutex_);
  if (stopping_) return;
  tasks_.push_back(std::move(task));
  if (tasks_.size() > idle_ && threads_.size() < most_) threads_.emplace_back([this] { run(); });
  changed_.notify_one();
}

void Workers::stop() {
  std::deque<std::function<void()>> dropped;  // outside the lock: what they own may be much
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    dropped.swap(tasks_);
    changed_.notify_all();
  }
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

void Workers::run() {
  std::unique_lock lock(mutex_);
  for (;;) {
    ++idle_;
    changed_.wait(lock, [this] { return stopping_ || !tasks_.empty(); });
    --idle_;
    if (stopping_) return;
    std::function<void()> task = std::move(tasks_.front());
    tasks_.pop_front();
    lock.unlock();
    task();
    task = nullptr;  // and what it owns
    lock.lock();
  }
}

}  // namespace ferry
