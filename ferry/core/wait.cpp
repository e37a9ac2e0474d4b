#include "ferry/core/wait.h"

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <ctime>

namespace ferry {

namespace {

// About 0.1 us with a pause instruction in each. A yield that finds nobody else to run costs no
// more than that, and where ranks share cores the one that is waited for gets this core: with 64
// spins an exchange of 4 ranks on 2 cores took 39 us instead of 27, one of 2 ranks the same.
constexpr int kSpins = 8;
constexpr std::chrono::milliseconds kYieldFor{1};
/// A yield that comes back so late has given the core to somebody for a slice of the scheduler's.
constexpr std::chrono::microseconds kLateYield{500};
/// For so long after one waits do not yield at all: twice as long each time that the next yield
/// behind it is late again, so that one that was late by chance costs little, and a machine that
/// stays busy 2 %.
constexpr std::chrono::milliseconds kCrowdedAtFirst{10};
constexpr std::chrono::milliseconds kCrowdedAtMost{200};
constexpr std::chrono::milliseconds kAgain{20};  // so soon after it

using Clock = std::chrono::steady_clock;

/// Until then others want the core of this thread: who yields it waits for a slice of theirs, while
/// who sleeps is let in when it is woken.
thread_local Clock::time_point crowded_until;
thread_local std::chrono::milliseconds crowded_for;

void come_back_late(Clock::time_point now) noexcept {
  const bool again = now - crowded_until < kAgain;
  crowded_for = again ? std::min(2 * crowded_for, kCrowdedAtMost) : kCrowdedAtFirst;
  crowded_until = now + crowded_for;
}

void cpu_pause() noexcept {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb");  // YIELD is over at once on most processors
#endif
}

}  // namespace

void Backoff::pause() noexcept {
  if (spins_ < kSpins) {
    ++spins_;
    cpu_pause();
    return;
  }
  if (spins_ == kSpins) {
    ++spins_;
    yielding_since_ = Clock::now();
    idle_ = yielding_since_ < crowded_until;
    if (idle_) return;
  }
  const Clock::time_point yielded = Clock::now();  // the caller's look may have taken long, too
  sched_yield();
  const Clock::time_point now = Clock::now();
  if (now - yielded > kLateYield) come_back_late(now);
  idle_ = now - yielding_since_ > kYieldFor || now < crowded_until;
}

void futex_wait(const std::atomic<std::uint32_t>& word,
                std::uint32_t seen,
                std::chrono::nanoseconds timeout,
                bool shared) noexcept {
  timespec ts{};
  ts.tv_sec = static_cast<time_t>(timeout.count() / 1'000'000'000);
  ts.tv_nsec = static_cast<long>(timeout.count() % 1'000'000'000);
  syscall(SYS_futex, &word, shared ? FUTEX_WAIT : FUTEX_WAIT_PRIVATE, seen, &ts, nullptr, 0);
}

void futex_wake_all(const std::atomic<std::uint32_t>& word, bool shared) noexcept {
  syscall(SYS_futex, &word, shared ? FUTEX_WAKE : FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

}  // namespace ferry
