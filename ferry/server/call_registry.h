// The calls that clients have given a name (rid), so that they can be aborted by it.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>

namespace ferry {

/// Threads: any.
class CallRegistry {
 public:
  /// Set once somebody wants the call to end.
  using Aborted = std::shared_ptr<std::atomic<bool>>;  // of the registry and the call

  /// A call under this name, which need not be another than that of a running one; "": without.
  Aborted add(const std::string& name);

  /// Aborts the calls of this name.
  void abort(const std::string& name);
  void abort_all();

 private:
  std::mutex mutex_;
  std::unordered_multimap<std::string, std::weak_ptr<std::atomic<bool>>> calls_;
  std::size_t clean_at_ = 64;  // how many there may be before those that have ended are forgotten
};

}  // namespace ferry
