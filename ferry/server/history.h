// What the server did over the last hour, in slots of ten seconds, for the dashboard.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <functional>
#include <mutex>
#include <utility>
#include <vector>

namespace ferry {

/// How many times of each size there were: four buckets for each factor of two from half a
/// millisecond on.
class TimeCounts {
 public:
  /// The upper edge of bucket i, in seconds.
  static double edge(std::size_t i);

  static constexpr std::size_t kBuckets = 74;

  void add(double seconds);
  void add(const TimeCounts& other);

  /// The upper edge of the bucket that holds the quantile, in seconds; 0 where nothing was counted.
  double quantile(double q) const;

 private:
  std::array<std::uint32_t, kBuckets> counts_{};
};

/// Threads: any.
class History {
 public:
  using Clock = std::chrono::steady_clock;

  static constexpr int kSlots = 360;
  static constexpr std::chrono::seconds kSlot{10};

  struct Slot {
    std::int64_t tokens = 0;
    std::int64_t refused = 0;    // answers with 429
    std::int64_t errors = 0;     // answers from 500 on
    std::int64_t in_flight = 0;  // the most requests that were under way at a time
    TimeCounts first_token;      // from the request to its first token
    TimeCounts next_token;       // from a token to the next
    TimeCounts queue;            // from the request to its first step
  };

  explicit History(std::function<Clock::time_point()> now = Clock::now);

  void accepted();
  void ended();
  void token(bool first, double seconds);
  void queued(double seconds);
  void answered(int status);

  /// The slots of the last hour since this began, oldest first; the last one is still filling.
  std::vector<Slot> slots() const;

  /// The last six whole slots and the one that is filling, and how many seconds those are.
  std::pair<Slot, double> last_minute() const;

 private:
  std::int64_t slot_now() const;
  std::vector<Slot> last(std::int64_t count) const;
  /// The slot of this moment, those before it that nothing happened in emptied.
  Slot& current();

  const std::function<Clock::time_point()> now_;
  const Clock::time_point began_;
  mutable std::mutex mutex_;
  std::vector<Slot> ring_;
  std::int64_t newest_ = 0;  // slot n is ring_[n % kSlots]
  std::int64_t in_flight_ = 0;
};

}  // namespace ferry
