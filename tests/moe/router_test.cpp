#include "ferry/router.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <span>
#include <vector>

#include "ferry/core/error.h"
#include "ferry/core/threads.h"

namespace ferry {
namespace {

struct Routed {
  std::vector<ExpertId> experts;
  std::vector<float> weights;
};

Routed run(const RouterOptions& options,
           std::vector<float> logits,
           const std::vector<float>& selection_bias = {}) {
  const std::size_t entries = logits.size() / static_cast<std::size_t>(options.experts) *
                              static_cast<std::size_t>(options.topk);
  Routed routed{std::vector<ExpertId>(entries), std::vector<float>(entries)};
  route(options, logits, routed.experts, routed.weights, selection_bias);
  return routed;
}

TEST(Router, WeighsWithTheSoftmaxOverAllExperts) {
  const Routed r = run({.experts = 4, .topk = 2}, {0, 2, 1, -1});
  EXPECT_EQ(r.experts, (std::vector<ExpertId>{1, 2}));
  const float sum = 1 + std::exp(2.0F) + std::exp(1.0F) + std::exp(-1.0F);
  EXPECT_NEAR(r.weights[0], std::exp(2.0F) / sum, 1e-6);
  EXPECT_NEAR(r.weights[1], std::exp(1.0F) / sum, 1e-6);
}

TEST(Router, RenormalizesOverTheChosen) {
  const Routed r = run({.experts = 4, .topk = 2, .renormalize = true}, {0, 2, 1, -1});
  EXPECT_NEAR(r.weights[0] + r.weights[1], 1, 1e-6);
  EXPECT_NEAR(r.weights[0] / r.weights[1], std::exp(1.0F), 1e-5);
}

TEST(Router, BreaksTiesByLowestId) {
  const Routed r = run({.experts = 5, .topk = 3}, {1, 2, 2, 1, 2, 0, 0, 0, 0, 0});
  EXPECT_EQ(r.experts, (std::vector<ExpertId>{1, 2, 4, 0, 1, 2}));
}

TEST(Router, TakesAllExpertsWhenKIsE) {
  const Routed r = run({.experts = 3, .topk = 3, .renormalize = true}, {3, 1, 2});
  EXPECT_EQ(r.experts, (std::vector<ExpertId>{0, 2, 1}));
  EXPECT_NEAR(r.weights[0] + r.weights[1] + r.weights[2], 1, 1e-6);
}

TEST(Router, GivesTheSameBytesOnAllThreads) {
  constexpr int kTokens = 301;
  const RouterOptions options{.score = RouterOptions::Score::sigmoid,
                              .experts = 64,
                              .topk = 6,
                              .renormalize = true,
                              .groups = 8,
                              .topk_groups = 3,
                              .group_score = RouterOptions::GroupScore::sum_of_two};
  std::vector<float> logits;
  for (int i = 0; i < kTokens * options.experts; ++i)
    logits.push_back(std::sin(static_cast<float>(i) * 0.37F) * 3);
  const Routed expected = run(options, logits);
  ThreadPool pool(3);
  Routed r{std::vector<ExpertId>(expected.experts.size()),
           std::vector<float>(expected.weights.size())};
  route(pool, options, logits, r.experts, r.weights);
  EXPECT_EQ(r.experts, expected.experts);
  EXPECT_EQ(r.weights, expected.weights);
  route(pool, options, std::span(logits).first(0), {}, {});  // no tokens
}

TEST(Router, NamesDistinctExpertsEvenForNaN) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const Routed r = run({.experts = 3, .topk = 2}, {nan, nan, nan});
  EXPECT_NE(r.experts[0], r.experts[1]);
}

TEST(Router, BiasMovesTheChoiceAndLeavesTheWeights) {
  const std::vector<float> logits = {0, 2, 1, -1, 0, 2, 1, -1};
  const Routed all = run({.experts = 4, .topk = 4}, logits);
  ASSERT_EQ(all.experts, (std::vector<ExpertId>{1, 2, 0, 3, 1, 2, 0, 3}));
  const Routed r = run({.experts = 4, .topk = 2}, logits, {0, 0, -1, 1});
  EXPECT_EQ(r.experts, (std::vector<ExpertId>{3, 1, 3, 1}));
  EXPECT_EQ(r.weights,
            (std::vector<float>{all.weights[3], all.weights[0], all.weights[3], all.weights[0]}));
}

TEST(Router, RenormalizesTheUnbiasedWeights) {
  const Routed r =
      run({.experts = 4, .topk = 2, .renormalize = true}, {0, 2, 1, -1}, {0, 0, -9, 9});
  EXPECT_EQ(r.experts, (std::vector<ExpertId>{3, 1}));
  EXPECT_NEAR(r.weights[1] / r.weights[0], std::exp(3.0F), 1e-4);
}

TEST(Router, ZeroBiasChangesNothing) {
  const std::vector<float> logits = {1, 2, 2, 1, 2, 0, 0, 0, 0, 0};
  const Routed without = run({.experts = 5, .topk = 3}, logits);
  const Routed with = run({.experts = 5, .topk = 3}, logits, std::vector<float>(5));
  EXPECT_EQ(without.experts, with.experts);
  EXPECT_EQ(without.weights, with.weights);
}

float sigmoid(float x) { return 1 / (1 + std::exp(-x)); }

TEST(Router, ScoresWithSigmoids) {
  const Routed r =
      run({.score = RouterOptions::Score::sigmoid, .experts = 4, .topk = 2}, {0, 2, 1, -1});
  EXPECT_EQ(r.experts, (std::vector<ExpertId>{1, 2}));
  EXPECT_NEAR(r.weights[0], sigmoid(2), 1e-6);
  EXPECT_NEAR(r.weights[1], sigmoid(1), 1e-6);
}

TEST(Router, ScalesAfterRenormalizing) {
  const RouterOptions options{.score = RouterOptions::Score::sigmoid,
                              .experts = 4,
                              .topk = 2,
                              .renormalize = true,
                              .scaling = 2.5F};
  const Routed r = run(options, {0, 2, 1, -1});
  EXPECT_NEAR(r.weights[0] + r.weights[1], 2.5, 1e-6);
  EXPECT_NEAR(r.weights[0] / r.weights[1], sigmoid(2) / sigmoid(1), 1e-6);
}

TEST(Router, SharesOfSigmoidsThatAllUnderflowAreZeroNotNaN) {
  const Routed r =
      run({.score = RouterOptions::Score::sigmoid, .experts = 2, .topk = 2, .renormalize = true},
          {-200, -300});
  EXPECT_EQ(r.weights, (std::vector<float>{0, 0}));
}

/// gpt-oss: top-k of the logits, then softmax over the chosen ones.
TEST(Router, ScoresTheChosenAloneWhenTheChoiceComesFirst) {
  const Routed r = run({.experts = 4, .topk = 2, .choose_first = true}, {0, 2, 1, -1});
  EXPECT_EQ(r.experts, (std::vector<ExpertId>{1, 2}));
  EXPECT_NEAR(r.weights[0] + r.weights[1], 1, 1e-6);
  EXPECT_NEAR(r.weights[0] / r.weights[1], std::exp(1.0F), 1e-5);
}

/// Llama 4: both sigmoids round to 1, but the choice still knows which logit was greater.
TEST(Router, ChoosesByLogitsWhereSigmoidsAreAllOne) {
  const RouterOptions options{
      .score = RouterOptions::Score::sigmoid, .experts = 3, .topk = 1, .choose_first = true};
  const Routed r = run(options, {30, 40, 35});
  EXPECT_EQ(r.experts, (std::vector<ExpertId>{1}));
  EXPECT_EQ(r.weights, (std::vector<float>{1}));
}

constexpr RouterOptions kV2{.experts = 6, .topk = 2, .groups = 3, .topk_groups = 1};
constexpr RouterOptions kV3{.score = RouterOptions::Score::sigmoid,
                            .experts = 6,
                            .topk = 2,
                            .groups = 3,
                            .topk_groups = 1,
                            .group_score = RouterOptions::GroupScore::sum_of_two};

/// One great expert decides for V2, two good ones together for V3.
TEST(Router, WeighsGroupsByTheirBestOrTheirTwoBest) {
  const std::vector<float> logits = {3, -9, 0, 0, 2, 2};
  EXPECT_EQ(run(kV2, logits).experts, (std::vector<ExpertId>{0, 1}));
  EXPECT_EQ(run(kV3, logits).experts, (std::vector<ExpertId>{4, 5}));
}

TEST(Router, GroupsThatAllTakePartChangeNothing) {
  const std::vector<float> logits = {3, -9, 0, 0, 2, 2};
  RouterOptions options = kV3;
  options.topk_groups = 3;
  EXPECT_EQ(run(options, logits).experts, (std::vector<ExpertId>{0, 4}));
}

TEST(Router, TiesOfGroupsGoToTheLowest) {
  EXPECT_EQ(run(kV2, {1, 0, 1, 1, 1, 1}).experts, (std::vector<ExpertId>{0, 1}));
  EXPECT_EQ(run(kV3, {0, 1, 1, 0, 0, 1}).experts, (std::vector<ExpertId>{1, 0}));
  RouterOptions two = kV3;
  two.topk_groups = 2;
  two.topk = 4;
  EXPECT_EQ(run(two, std::vector<float>(6)).experts, (std::vector<ExpertId>{0, 1, 2, 3}));
}

/// A mask of zeros would let the other groups' experts win over these.
TEST(Router, NegativeKeysDoNotLetOtherGroupsIn) {
  const std::vector<float> bias = {-7, -7, -5, -5, -6, -6};
  const Routed r = run(kV3, {0, 0, 1, 2, 0, 0}, bias);
  EXPECT_EQ(r.experts, (std::vector<ExpertId>{3, 2}));
  EXPECT_NEAR(r.weights[0], sigmoid(2), 1e-6);  // without the bias
  EXPECT_NEAR(r.weights[1], sigmoid(1), 1e-6);
}

TEST(Router, BiasDecidesBetweenGroups) {
  EXPECT_EQ(run(kV3, {5, 5, 0, 0, 0, 0}, {0, 0, 0, 0, 1, 2}).experts,
            (std::vector<ExpertId>{5, 4}));
}

TEST(Router, StaysInTheChosenGroupForNaN) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(run(kV3, {nan, nan, nan, nan, nan, nan}).experts, (std::vector<ExpertId>{0, 1}));
  EXPECT_EQ(run(kV3, {0, 0, nan, 9, 0, 0}).experts, (std::vector<ExpertId>{0, 1}));
}

TEST(Router, RefusesGroupsThatCannotBe) {
  const auto refuses = [](RouterOptions options) {
    EXPECT_THROW(run(options, std::vector<float>(6)), BrokenContract);
  };
  refuses({.experts = 6, .topk = 1, .groups = 4});  // does not divide
  refuses({.experts = 6, .topk = 1, .groups = 0});
  refuses({.experts = 6, .topk = 1, .groups = 2, .topk_groups = 3});  // more than there are
  refuses({.experts = 6, .topk = 3, .groups = 3, .topk_groups = 1});  // no room for K
}

TEST(Router, RefusesABiasOfAnotherSize) {
  EXPECT_THROW(run({.experts = 3, .topk = 1}, {1, 2, 3}, {1, 2}), BrokenContract);
}

TEST(Router, RefusesMoreChoicesThanExperts) {
  EXPECT_THROW(run({.experts = 2, .topk = 3}, {1, 2}), BrokenContract);
}

}  // namespace
}  // namespace ferry
