// The calls that clients have given a name (rid), so that they can be aborted by it.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

namespace ferry {

/// Whether somebody wants a call to end, or which of its parts: its prompts where each has a name.
/// Threads: any.
class AbortFlag {
 public:
  /// REQUIRES: at least one part.
  explicit AbortFlag(std::size_t parts = 1) : parts_(parts) {}

  std::size_t parts() const { return parts_.size(); }

  /// Of any part.
  bool set() const { return set_; }

  bool set(std::size_t part) const { return parts_[part]; }

  /// `wake` is called whenever it is set, also where it is already. It only leaves a note for
  /// somebody.
  void listen(std::function<void()> wake);

  void abort(std::size_t part);

 private:
  std::atomic<bool> set_{false};
  std::vector<std::atomic<bool>> parts_;
  std::mutex mutex_;  // guards what follows
  std::function<void()> wake_;
};

/// Threads: any.
class CallRegistry {
 public:
  using Aborted = std::shared_ptr<AbortFlag>;  // of the registry and the call

  /// A call with as many parts as names, which need not be others than those of running ones; "":
  /// without. REQUIRES: at least one.
  Aborted add(std::span<const std::string> names);

  /// Aborts the calls, or the parts of calls, of this name.
  void abort(const std::string& name);
  void abort_all();

 private:
  std::mutex mutex_;

  struct Part {
    std::weak_ptr<AbortFlag> call;
    std::size_t number = 0;

    void abort() const;
  };

  std::unordered_multimap<std::string, Part> calls_;
  std::size_t clean_at_ = 64;  // how many there may be before those that have ended are forgotten
};

}  // namespace ferry
