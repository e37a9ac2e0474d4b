#include "ferry/engine/exchange_waits.h"

#include <gtest/gtest.h>

namespace ferry {
namespace {

using namespace std::chrono_literals;

const ExchangeWaits::Clock::time_point kBegin{1000s};

SourceStats waited(double seconds) {
  const auto half = static_cast<std::uint64_t>(seconds * 5e8);
  return {.dispatch_wait_ns = half, .combine_wait_ns = half, .rows_received = 1};
}

/// Three ranks: what each waited for each.
void take(ExchangeWaits& waits, const double (&seconds)[3][3]) {
  for (Rank rank = 0; rank < 3; ++rank) {
    std::vector<SourceStats> row;
    for (const double s : seconds[rank]) row.push_back(waited(s));
    waits.take(rank, row);
  }
}

TEST(ExchangeWaits, NamesTheOneThatAllOthersWaitFor) {
  ExchangeWaits waits(3);
  take(waits, {{0, 5, 9}, {9, 0, 9}, {5, 5, 0}});  // before the window: no matter
  EXPECT_EQ(waits.look(kBegin, {}), std::nullopt);
  take(waits, {{0, 8, 10}, {10, 0, 10}, {10, 8, 0}});
  EXPECT_EQ(waits.look(kBegin + 29s, {}), std::nullopt);
  const auto line = waits.look(kBegin + 30s, {});
  ASSERT_FALSE(line.has_value()) << "rank 2 waited longer for rank 0: " << *line;
  take(waits, {{0, 12, 11}, {10.5, 0, 10.5}, {11, 12, 0}});
  const auto named = waits.look(kBegin + 60s, {});
  ASSERT_TRUE(named.has_value());
  EXPECT_TRUE(
      named->starts_with("rank 1 makes the others wait: each waited for it 4.0 of the last "
                         "30 s on average, and at most 0.8 s"))
      << *named;
  EXPECT_EQ(waits.straggler(), 1);
  // Nothing is said twice; and that it is over, once.
  take(waits, {{0, 16, 12}, {11, 0, 11}, {12, 16, 0}});
  EXPECT_EQ(waits.look(kBegin + 90s, {}), std::nullopt);
  EXPECT_EQ(waits.straggler(), 1);
  EXPECT_EQ(waits.look(kBegin + 120s, {}), "the others no longer wait for rank 1");
  EXPECT_EQ(waits.straggler(), -1);
}

TEST(ExchangeWaits, NamesNobodyBelowTheThresholdOrAmongEquals) {
  ExchangeWaits waits(3);
  waits.look(kBegin, {});
  take(waits, {{0, 1.4, 0}, {0, 0, 0}, {0, 1.4, 0}});
  EXPECT_EQ(waits.look(kBegin + 30s, {}), std::nullopt);
  take(waits, {{0, 9.4, 7}, {0, 0, 7}, {0, 9.4, 0}});
  EXPECT_EQ(waits.look(kBegin + 60s, {}), std::nullopt);
  EXPECT_EQ(waits.straggler(), -1);
}

TEST(ExchangeWaits, ARankThatIsGoneNeitherCountsNorIsNamed) {
  ExchangeWaits waits(3);
  waits.look(kBegin, {});
  take(waits, {{0, 1, 20}, {9, 0, 20}, {0, 0, 0}});
  waits.take(2, {});  // a rank that tells nothing stays as it was
  RankSet gone;
  gone.set(2);
  EXPECT_TRUE(waits.look(kBegin + 30s, gone).has_value());
  EXPECT_EQ(waits.straggler(), 0);
}

TEST(ExchangeWaits, OneRankAloneWaitsForNobody) {
  ExchangeWaits waits(1);
  waits.take(0, std::vector{waited(0)});
  waits.look(kBegin, {});
  EXPECT_EQ(waits.look(kBegin + 31s, {}), std::nullopt);
  EXPECT_EQ(waits.counted()[0].rows_received, 1U);
}

}  // namespace
}  // namespace ferry
