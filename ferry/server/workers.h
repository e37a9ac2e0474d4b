// Threads on which handlers run, beside those that read and write.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace ferry {

/// Starts a thread where all are busy, up to a limit, since most of the time few are needed.
/// Threads: any; stop() is the owner's.
class Workers {
 public:
  explicit Workers(std::size_t most) : most_(most) {}

  ~Workers() { stop(); }

  Workers(const Workers&) = delete;
  Workers& operator=(const Workers&) = delete;

  /// `task` must not throw. It is dropped where they have been stopped.
  void post(std::function<void()> task);

  /// Waits for those that run and drops those that wait.
  void stop();

 private:
  void run();

  const std::size_t most_;
  std::mutex mutex_;  // guards what follows; threads_ only grows, and only in post()
  std::condition_variable changed_;
  std::deque<std::function<void()>> tasks_;
  std::vector<std::thread> threads_;
  std::size_t idle_ = 0;
  bool stopping_ = false;
};

}  // namespace ferry
