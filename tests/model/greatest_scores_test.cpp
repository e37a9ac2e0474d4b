#include "ferry/model/mixers/greatest_scores.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "ferry/core/error.h"

namespace ferry {
namespace {

using testing::ElementsAre;

std::vector<std::int32_t> greatest(const std::vector<float>& scores, std::size_t k) {
  std::vector<std::uint32_t> scratch(scores.size());
  std::vector<std::int32_t> chosen(k, -1);
  greatest_scores(scores, scratch, chosen);
  return chosen;
}

TEST(GreatestScores, ComeInRisingOrderOfPosition) {
  EXPECT_THAT(greatest({0.5F, -1, 3, 2, -7, 1}, 3), ElementsAre(2, 3, 5));
  EXPECT_THAT(greatest({0.5F, -1, 3, 2, -7, 1}, 6), ElementsAre(0, 1, 2, 3, 4, 5));
  EXPECT_THAT(greatest({-3, -2, -5}, 1), ElementsAre(1));
}

TEST(GreatestScores, OfEqualOnesTheLowestPositionsComeFirst) {
  EXPECT_THAT(greatest({1, 0, 2, 0, 0, 0}, 4), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(greatest({-0.0F, 0.0F, -0.0F, 0.0F}, 2), ElementsAre(0, 1));
  EXPECT_THAT(greatest({4, 4, 4, 5}, 2), ElementsAre(0, 3));
}

TEST(GreatestScores, NumbersThatAreNoneComeLast) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  EXPECT_THAT(greatest({nan, -infinity, -nan, infinity}, 2), ElementsAre(1, 3));
  EXPECT_THAT(greatest({nan, nan, nan}, 2), ElementsAre(0, 1));
}

/// A stable sort is the plain way to say it. Few different values, so that most are equal to some.
TEST(GreatestScores, AreThoseOfAStableSort) {
  std::mt19937 random(5);
  for (int round = 0; round < 500; ++round) {
    std::vector<float> scores(1 + random() % 200);
    for (float& score : scores) score = static_cast<float>(random() % 9) * 0.25F - 1;
    std::vector<std::int32_t> order(scores.size());
    std::iota(order.begin(), order.end(), 0);
    std::ranges::stable_sort(order, std::greater<>(), [&](std::int32_t p) {
      return scores[static_cast<std::size_t>(p)];
    });
    order.resize(1 + random() % scores.size());
    std::ranges::sort(order);
    ASSERT_EQ(greatest(scores, order.size()), order);
  }
}

TEST(GreatestScores, NoMoreThanThereAre) {
  EXPECT_THROW(greatest({1, 2}, 3), BrokenContract);
  EXPECT_THROW(greatest({1, 2}, 0), BrokenContract);
}

}  // namespace
}  // namespace ferry
