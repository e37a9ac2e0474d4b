#include "ferry/core/threads.h"

#include <gtest/gtest.h>

#include <atomic>
#include <limits>
#include <stdexcept>
#include <vector>

#include "ferry/core/error.h"

namespace ferry {
namespace {

constexpr int kSizes[] = {1, 2, 3, 7};

class ThreadPoolOf : public testing::TestWithParam<int> {};

TEST_P(ThreadPoolOf, RunsTheTaskOnceOnEveryWorker) {
  ThreadPool pool(GetParam());
  EXPECT_EQ(pool.size(), GetParam());
  std::vector<std::atomic<int>> calls(static_cast<std::size_t>(pool.size()));
  for (int round = 1; round <= 300; ++round) {
    pool.run([&](int worker) { calls[static_cast<std::size_t>(worker)].fetch_add(1); });
    for (const auto& count : calls) ASSERT_EQ(count.load(), round);
  }
}

TEST_P(ThreadPoolOf, WakesWorkersThatSleep) {
  ThreadPool pool(GetParam());
  std::atomic<int> calls{0};
  for (int round = 0; round < 3; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
    pool.run([&](int) { calls.fetch_add(1); });
  }
  EXPECT_EQ(calls.load(), 3 * pool.size());
}

TEST_P(ThreadPoolOf, ParallelForCoversEveryIndexOnce) {
  ThreadPool pool(GetParam());
  for (const std::int64_t n : {0, 1, 5, 64, 1000}) {
    for (const std::int64_t grain : {1, 7, 64, 5000}) {
      std::vector<std::atomic<int>> seen(static_cast<std::size_t>(n));
      pool.parallel_for(n, grain, [&](std::int64_t begin, std::int64_t end, int worker) {
        ASSERT_LT(begin, end);
        ASSERT_TRUE(worker >= 0 && worker < pool.size());
        for (std::int64_t i = begin; i < end; ++i) seen[static_cast<std::size_t>(i)].fetch_add(1);
      });
      for (const auto& count : seen) ASSERT_EQ(count.load(), 1) << "n " << n << " grain " << grain;
    }
  }
}

TEST_P(ThreadPoolOf, ThrowsAWorkersExceptionAndStaysUsable) {
  ThreadPool pool(GetParam());
  const int last = pool.size() - 1;
  for (int round = 0; round < 20; ++round) {
    EXPECT_THROW(pool.run([&](int worker) {
      if (worker == last) fail<ConfigError>("worker {} fails", worker);
    }),
                 ConfigError);
    std::atomic<int> calls{0};
    pool.run([&](int) { calls.fetch_add(1); });
    ASSERT_EQ(calls.load(), pool.size());
  }
}

TEST_P(ThreadPoolOf, ThrowsOnceWhenAllWorkersFail) {
  ThreadPool pool(GetParam());
  EXPECT_THROW(pool.run([](int) { throw std::runtime_error("all fail"); }), std::runtime_error);
  EXPECT_NO_THROW(pool.run([](int) {}));
}

TEST_P(ThreadPoolOf, ParallelForThrowsWhatAPieceThrew) {
  ThreadPool pool(GetParam());
  EXPECT_THROW(pool.parallel_for(100,
                                 1,
                                 [](std::int64_t begin, std::int64_t, int) {
                                   if (begin == 57 || begin == 0) throw std::out_of_range("piece");
                                 }),
               std::out_of_range);
}

TEST_P(ThreadPoolOf, FlushesDenormalsOnEveryWorker) {
  ThreadPool pool(GetParam());
  std::vector<float> halves(static_cast<std::size_t>(pool.size()), 1.0F);
  volatile float smallest = std::numeric_limits<float>::min();
  pool.run([&](int worker) { halves[static_cast<std::size_t>(worker)] = smallest * 0.5F; });
  for (const float half : halves) EXPECT_EQ(half, 0.0F);
  EXPECT_NE(smallest * 0.5F, 0.0F) << "the caller's own mode must come back";
}

INSTANTIATE_TEST_SUITE_P(Pools, ThreadPoolOf, testing::ValuesIn(kSizes), [](const auto& size) {
  return "threads" + std::to_string(size.param);
});

TEST(ThreadPool, OfNoThreadsIsABrokenContract) { EXPECT_THROW(ThreadPool(0), BrokenContract); }

}  // namespace
}  // namespace ferry
