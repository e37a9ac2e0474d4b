// How a thread waits here: a short spin, then sched_yield, then sleep (docs/design.md, "Waiting").
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

namespace ferry {

/// Paces a polling loop. Call pause() after each look that found nothing; it spins for a tenth of a
/// microsecond, then yields the core. Once idle() says that about a millisecond has gone by the
/// caller should sleep in the kernel: measured, a futex hand-off costs 40 us while pure spinning
/// beyond the cores costs a whole scheduler tick (4 ms).
class Backoff {
 public:
  void pause() noexcept;

  bool idle() const noexcept { return idle_; }

 private:
  int spins_ = 0;
  bool idle_ = false;
  std::chrono::steady_clock::time_point yielding_since_;
};

/// Sleeps until *word differs from `seen`, somebody calls futex_wake_all, or `timeout` is over.
/// `shared`: the word lies in memory that several processes map. May wake without reason.
void futex_wait(const std::atomic<std::uint32_t>& word,
                std::uint32_t seen,
                std::chrono::nanoseconds timeout,
                bool shared) noexcept;
void futex_wake_all(const std::atomic<std::uint32_t>& word, bool shared) noexcept;

}  // namespace ferry
