#include "ferry/core/wait.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <algorithm>
#include <thread>

namespace ferry {
namespace {

using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

/// How often a waiting thread looks until it is to sleep.
int looks_until_idle() {
  Backoff backoff;
  int looks = 0;
  for (; !backoff.idle(); ++looks) backoff.pause();
  return looks;
}

TEST(Backoff, SpinsBeforeItIsIdle) {
  for (int i = 0; i < 100; ++i) EXPECT_GE(looks_until_idle(), 9);
}

/// Of a thread that has to share its core with another which never waits.
TEST(Backoff, SleepsAtOnceWhereItsYieldsComeBackLate) {
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(static_cast<std::size_t>(sched_getcpu()), &one);
  std::atomic<bool> stop{false};
  int least = 1000;
  std::thread waiting([&] {
    ASSERT_EQ(sched_setaffinity(0, sizeof one, &one), 0);
    std::thread busy([&] {  // on the same core, as it is started from here
      while (!stop.load()) {
      }
    });
    for (int i = 0; i < 100; ++i) least = std::min(least, looks_until_idle());
    stop.store(true);
    busy.join();
  });
  waiting.join();
  EXPECT_LE(least, 16);
}

TEST(Futex, DoesNotSleepOnAWordThatHasChanged) {
  const std::atomic<std::uint32_t> word{1};
  const Clock::time_point begin = Clock::now();
  futex_wait(word, 0, std::chrono::seconds(20), /*shared=*/false);
  EXPECT_LT(Clock::now() - begin, std::chrono::seconds(10));
}

TEST(Futex, SleepsUntilTheTimeout) {
  const std::atomic<std::uint32_t> word{0};
  const Clock::time_point begin = Clock::now();
  Clock::duration longest{};
  // It may wake without reason, but not every time.
  for (int i = 0; i < 100 && longest < milliseconds(20); ++i) {
    const Clock::time_point before = Clock::now();
    futex_wait(word, 0, milliseconds(20), /*shared=*/false);
    longest = std::max(longest, Clock::now() - before);
  }
  EXPECT_GE(longest, milliseconds(20));
  EXPECT_LT(Clock::now() - begin, std::chrono::seconds(10));
}

class FutexWake : public testing::TestWithParam<bool> {};

TEST_P(FutexWake, EndsTheSleepOfAnother) {
  const bool shared = GetParam();
  std::atomic<std::uint32_t> word{0};
  const Clock::time_point begin = Clock::now();
  std::thread sleeper([&] {
    while (word.load() == 0) futex_wait(word, 0, std::chrono::seconds(20), shared);
  });
  std::this_thread::sleep_for(milliseconds(10));  // most likely asleep by now; right if not
  word.store(1);
  futex_wake_all(word, shared);
  sleeper.join();
  EXPECT_LT(Clock::now() - begin, std::chrono::seconds(10));
}

INSTANTIATE_TEST_SUITE_P(Words, FutexWake, testing::Bool(), [](const auto& word) {
  return word.param ? std::string("shared") : std::string("private");
});

}  // namespace
}  // namespace ferry
