// What other threads want of the engine: requests, cancellations, tasks. They drop it here; the
// loop takes it out between two steps.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>
#include <vector>

#include "ferry/engine/step_record.h"

namespace ferry {

/// Threads: any, at once. Never blocks but in wait().
class Inbox {
 public:
  using Task = std::function<void()>;

  struct Mail {
    std::vector<Admission> admissions;
    std::vector<std::uint64_t> cancelled;
    std::vector<Task> tasks;
    bool open = false;  ///< more may come

    bool empty() const { return admissions.empty() && cancelled.empty() && tasks.empty(); }
  };

  /// `max_live`: requests that may be live at once, counted from submit() to finished(); 0 = any.
  explicit Inbox(std::size_t max_live) : max_live_(max_live) {}

  /// The request's number, counted from 0; none: too many are live.
  std::optional<std::uint64_t> submit(Request request);
  /// `count` requests have left the engine.
  void finished(std::size_t count);

  void cancel(std::uint64_t id);
  void post(Task task);

  void set_open(bool open);

  /// Those that are live already stay, however many.
  void set_max_live(std::size_t max_live);

  /// All that has come since, in order.
  Mail take();

  /// Until something is there, or it is closed; at most for `timeout`, then false.
  bool wait(std::chrono::nanoseconds timeout);

 private:
  std::mutex mutex_;  // guards what follows
  std::size_t max_live_;
  std::condition_variable changed_;
  Mail mail_;
  std::size_t live_ = 0;
  std::uint64_t next_id_ = 0;
};

}  // namespace ferry
