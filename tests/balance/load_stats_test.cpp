#include "ferry/balance/load_stats.h"

#include <gtest/gtest.h>

#include "ferry/core/error.h"

namespace ferry {
namespace {

ExpertLoad step_of(const std::vector<double>& first, const std::vector<double>& second) {
  ExpertLoad load(2, static_cast<int>(first.size()));
  load.counts = first;
  load.counts.insert(load.counts.end(), second.begin(), second.end());
  return load;
}

TEST(LoadStats, AverageOverLayersThatHadLoadAndOverTheLastSteps) {
  Trace steps(12, step_of({0, 0, 0, 0}, {1, 1, 1, 1}));
  steps.back() = step_of({0, 0, 0, 0}, {4, 0, 0, 0});
  const LoadStats stats = load_stats(steps, ExpertPlacement::identity(2, 4, 2), 3);
  EXPECT_DOUBLE_EQ(stats.current, 0.5);
  EXPECT_DOUBLE_EQ(stats.last_10, 0.95);
  EXPECT_DOUBLE_EQ(stats.last_100, (11 + 0.5) / 12);
  EXPECT_DOUBLE_EQ(stats.sum, 24.0 / 26);
  EXPECT_EQ(stats.rank_load, (std::vector<double>{26, 22}));
  ASSERT_EQ(stats.hottest.size(), 3U);
  EXPECT_EQ(stats.hottest[0].layer, 1);
  EXPECT_EQ(stats.hottest[0].expert, 0);
  EXPECT_DOUBLE_EQ(stats.hottest[0].part, 15.0 / 48);
  EXPECT_DOUBLE_EQ(stats.hottest[0].of_a_rank, 15.0 / 24);
  EXPECT_EQ(stats.hottest[1].expert, 1);
}

TEST(LoadStats, RefuseAPlacementOfAnotherShape) {
  const Trace steps(1, step_of({1, 2}, {3, 4}));
  EXPECT_THROW(load_stats(steps, ExpertPlacement::identity(1, 2, 2), 3), ConfigError);
  EXPECT_THROW(load_stats({}, ExpertPlacement::identity(1, 2, 2), 3), ConfigError);
}

}  // namespace
}  // namespace ferry
