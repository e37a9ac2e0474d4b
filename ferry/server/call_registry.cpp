#include "ferry/server/call_registry.h"

#include <algorithm>
#include <utility>

namespace ferry {

void AbortFlag::listen(std::function<void()> wake) {
  const std::lock_guard lock(mutex_);
  wake_ = std::move(wake);
  if (set_) wake_();
}

void AbortFlag::abort() {
  const std::lock_guard lock(mutex_);
  set_ = true;
  if (wake_) wake_();
}

CallRegistry::Aborted CallRegistry::add(const std::string& name) {
  auto aborted = std::make_shared<AbortFlag>();
  const std::lock_guard lock(mutex_);
  if (calls_.size() >= clean_at_) {
    std::erase_if(calls_, [](const auto& call) { return call.second.expired(); });
    clean_at_ = std::max<std::size_t>(64, 2 * calls_.size());
  }
  calls_.emplace(name, aborted);
  return aborted;
}

void CallRegistry::abort(const std::string& name) {
  const std::lock_guard lock(mutex_);
  const auto [begin, end] = calls_.equal_range(name);
  for (auto it = begin; it != end; ++it)
    if (const Aborted aborted = it->second.lock()) aborted->abort();
}

void CallRegistry::abort_all() {
  const std::lock_guard lock(mutex_);
  for (const auto& [name, call] : calls_)
    if (const Aborted aborted = call.lock()) aborted->abort();
}

}  // namespace ferry
