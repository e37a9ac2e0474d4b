#include "ferry/engine/inbox.h"

#include <utility>

#include "ferry/core/error.h"

namespace ferry {

std::optional<std::uint64_t> Inbox::submit(Request request) {
  const std::lock_guard lock(mutex_);
  if (max_live_ != 0 && live_ >= max_live_) return std::nullopt;
  ++live_;
  const std::uint64_t id = next_id_++;
  mail_.admissions.push_back({.id = id, .request = std::move(request)});
  changed_.notify_one();
  return id;
}

void Inbox::finished(std::size_t count) {
  const std::lock_guard lock(mutex_);
  FERRY_CHECK(count <= live_, "{} requests finished, but {} were live", count, live_);
  live_ -= count;
}

void Inbox::cancel(std::uint64_t id) {
  const std::lock_guard lock(mutex_);
  mail_.cancelled.push_back(id);
  changed_.notify_one();
}

void Inbox::post(Task task) {
  const std::lock_guard lock(mutex_);
  mail_.tasks.push_back(std::move(task));
  changed_.notify_one();
}

void Inbox::set_open(bool open) {
  const std::lock_guard lock(mutex_);
  mail_.open = open;
  changed_.notify_one();
}

void Inbox::set_max_live(std::size_t max_live) {
  const std::lock_guard lock(mutex_);
  max_live_ = max_live;
}

Inbox::Mail Inbox::take() {
  const std::lock_guard lock(mutex_);
  Mail mail = std::exchange(mail_, {});
  mail_.open = mail.open;
  return mail;
}

bool Inbox::wait(std::chrono::nanoseconds timeout) {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, timeout, [this] { return !mail_.open || !mail_.empty(); });
}

}  // namespace ferry
