#include "ferry/core/wait.h"

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <climits>
#include <ctime>

namespace ferry {

namespace {

// About 0.1 us with a pause instruction in each. A yield that finds nobody else to run costs no
// more than that, and where ranks share cores the one that is waited for gets this core: with 64
// spins an exchange of 4 ranks on 2 cores took 39 us instead of 27, one of 2 ranks the same.
constexpr int kSpins = 8;
constexpr int kYieldsPerClockRead = 16;
constexpr std::chrono::milliseconds kYieldFor{1};

void cpu_pause() noexcept {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

void Backoff::pause() noexcept {
  if (spins_ < kSpins) {
    ++spins_;
    cpu_pause();
    return;
  }
  if (spins_ == kSpins) yielding_since_ = std::chrono::steady_clock::now();
  sched_yield();
  // Reading the clock costs more than a yield that finds nobody else to run.
  if (++spins_ % kYieldsPerClockRead == 0 &&
      std::chrono::steady_clock::now() - yielding_since_ > kYieldFor) {
    idle_ = true;
  }
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
