// Work that is begun ahead of the moment at which its result is needed: a thread takes it up,
// unless whoever needs it comes first and does it.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

namespace ferry {

/// One piece of work, run once at most. Threads: post and finish on the owner's, one at a time.
class AheadWork {
 public:
  /// Does it now, waits for the thread that does it, or has nothing left to do.
  void finish();

  /// Nobody needs it any more: as finish(), but does not do it.
  void drop();

 private:
  friend class AheadWorker;

  enum class State : int { waiting, taken, done };

  /// By whoever comes first.
  bool take();
  void run();

  std::function<void()> work_;  // must not throw
  std::atomic<State> state_{State::waiting};
};

/// The thread, which starts with its first work.
class AheadWorker {
 public:
  AheadWorker() = default;
  ~AheadWorker();

  /// `work` must not throw, and what it touches is left alone until finish() has returned.
  std::shared_ptr<AheadWork> post(std::function<void()> work);

 private:
  void run();

  std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  std::deque<std::shared_ptr<AheadWork>> waiting_;  // also whoever posted it owns each
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace ferry
