#include "ferry/server/call_registry.h"

#include <algorithm>
#include <utility>

namespace ferry {

void AbortFlag::listen(std::function<void()> wake) {
  const std::lock_guard lock(mutex_);
  wake_ = std::move(wake);
  if (set_) wake_();
}

void AbortFlag::abort(std::size_t part) {
  const std::lock_guard lock(mutex_);
  parts_[part] = true;
  set_ = true;
  if (wake_) wake_();
}

void CallRegistry::Part::abort() const {
  if (const Aborted aborted = call.lock()) aborted->abort(number);
}

CallRegistry::Aborted CallRegistry::add(std::span<const std::string> names) {
  auto aborted = std::make_shared<AbortFlag>(names.size());
  const std::lock_guard lock(mutex_);
  if (calls_.size() >= clean_at_) {
    std::erase_if(calls_, [](const auto& call) { return call.second.call.expired(); });
    clean_at_ = std::max<std::size_t>(64, 2 * calls_.size());
  }
  for (std::size_t i = 0; i < names.size(); ++i)
    calls_.emplace(names[i], Part{.call = aborted, .number = i});
  return aborted;
}

void CallRegistry::abort(const std::string& name) {
  const std::lock_guard lock(mutex_);
  const auto [begin, end] = calls_.equal_range(name);
  for (auto it = begin; it != end; ++it) it->second.abort();
}

void CallRegistry::abort_all() {
  const std::lock_guard lock(mutex_);
  for (const auto& [name, part] : calls_) part.abort();
}

}  // namespace ferry
