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

Routed run(const RouterOptions& options, std::vector<float> logits) {
  const std::size_t entries = logits.size() / static_cast<std::size_t>(options.experts) *
                              static_cast<std::size_t>(options.topk);
  Routed routed{std::vector<ExpertId>(entries), std::vector<float>(entries)};
  route(options, logits, routed.experts, routed.weights);
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

TEST(Router, RefusesMoreChoicesThanExperts) {
  EXPECT_THROW(run({.experts = 2, .topk = 3}, {1, 2}), BrokenContract);
}

}  // namespace
}  // namespace ferry
