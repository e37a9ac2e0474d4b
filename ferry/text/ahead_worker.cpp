#include "ferry/text/ahead_worker.h"

#include <utility>

namespace ferry {

bool AheadWork::take() {
  State waiting = State::waiting;
  return state_.compare_exchange_strong(waiting, State::taken, std::memory_order_acquire);
}

void AheadWork::run() {
  work_();
  state_.store(State::done, std::memory_order_release);
  state_.notify_all();
}

void AheadWork::finish() {
  if (take()) return run();
  state_.wait(State::taken, std::memory_order_acquire);
}

void AheadWork::drop() {
  if (take()) return state_.store(State::done, std::memory_order_release);
  state_.wait(State::taken, std::memory_order_acquire);
}

AheadWorker::~AheadWorker() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

std::shared_ptr<AheadWork> AheadWorker::post(std::function<void()> work) {
  auto posted = std::make_shared<AheadWork>();
  posted->work_ = std::move(work);
  {
    const std::lock_guard lock(mutex_);
    if (!thread_.joinable()) thread_ = std::thread([this] { run(); });
    waiting_.push_back(posted);
  }
  changed_.notify_one();
  return posted;
}

void AheadWorker::run() {
  for (;;) {
    std::shared_ptr<AheadWork> next;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return stop_ || !waiting_.empty(); });
      if (stop_) return;
      next = std::move(waiting_.front());
      waiting_.pop_front();
    }
    if (next->take()) next->run();
  }
}

}  // namespace ferry
