// The calls that clients have given a name (rid), so that they can be aborted by it.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>

namespace ferry {

/// Whether somebody wants a call to end. Threads: any.
class AbortFlag {
 public:
  bool set() const { return set_; }

  /// `wake` is called once it is, also where it is already. It only leaves a note for somebody.
  void listen(std::function<void()> wake);

  void abort();

 private:
  std::atomic<bool> set_{false};
  std::mutex mutex_;  // guards what follows
  std::function<void()> wake_;
};

/// Threads: any.
class CallRegistry {
 public:
  using Aborted = std::shared_ptr<AbortFlag>;  // of the registry and the call

  /// A call under this name, which need not be another than that of a running one; "": without.
  Aborted add(const std::string& name);

  /// Aborts the calls of this name.
  void abort(const std::string& name);
  void abort_all();

 private:
  std::mutex mutex_;
  std::unordered_multimap<std::string, std::weak_ptr<AbortFlag>> calls_;
  std::size_t clean_at_ = 64;  // how many there may be before those that have ended are forgotten
};

}  // namespace ferry
