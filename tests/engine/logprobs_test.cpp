#include "ferry/logprobs.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace ferry {
namespace {

TEST(Logprobs, AreLogarithmsOfTheSoftmax) {
  const std::vector<float> logits = {1, 3, 2, 3, -1};
  double sum = 0;
  for (const float l : logits) sum += std::exp(static_cast<double>(l));
  const Logprobs result = logprobs_of(logits, 2, 3);
  EXPECT_FLOAT_EQ(result.chosen, static_cast<float>(2 - std::log(sum)));
  ASSERT_EQ(result.top.size(), 3U);
  EXPECT_EQ(result.top[0].id, 1) << "ties go to the lowest id";
  EXPECT_EQ(result.top[1].id, 3);
  EXPECT_EQ(result.top[2].id, 2);
  EXPECT_EQ(result.top[2].logprob, result.chosen);
  EXPECT_FLOAT_EQ(result.top[0].logprob, static_cast<float>(3 - std::log(sum)));
}

TEST(Logprobs, LargeLogitsAndExcludedTokensAreNoProblem) {
  const float none = -std::numeric_limits<float>::infinity();
  const Logprobs result = logprobs_of(std::vector<float>{10000, none, 10000}, 0, 0);
  EXPECT_FLOAT_EQ(result.chosen, static_cast<float>(-std::log(2.0)));
  EXPECT_TRUE(result.top.empty());
}

TEST(Logprobs, NoMoreThanThereAreTokens) {
  EXPECT_EQ(logprobs_of(std::vector<float>{1, 2}, 0, 20).top.size(), 2U);
}

}  // namespace
}  // namespace ferry
