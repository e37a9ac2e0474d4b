#include "ferry/moe/router.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "ferry/core/error.h"

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

TEST(Router, RefusesABiasOfAnotherSize) {
  EXPECT_THROW(run({.experts = 3, .topk = 1}, {1, 2, 3}, {1, 2}), BrokenContract);
}

TEST(Router, RefusesMoreChoicesThanExperts) {
  EXPECT_THROW(run({.experts = 2, .topk = 3}, {1, 2}), BrokenContract);
}

}  // namespace
}  // namespace ferry
