#include "ferry/engine/sampler.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <set>

#include "ferry/core/error.h"

namespace ferry {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::vector<int> histogram(const std::vector<float>& logits,
                           const SamplingOptions& options,
                           int draws) {
  Sampler sampler;
  std::vector<int> counts(logits.size());
  for (int i = 0; i < draws; ++i) {
    const std::int32_t id = sampler.sample(logits, options, static_cast<std::uint64_t>(i));
    ++counts.at(static_cast<std::size_t>(id));
  }
  return counts;
}

std::vector<double> softmax(const std::vector<float>& logits, double temperature) {
  std::vector<double> p;
  double total = 0;
  for (const float logit : logits) {
    p.push_back(std::exp(logit / temperature));
    total += p.back();
  }
  for (double& x : p) x /= total;
  return p;
}

double chi_square(const std::vector<int>& counts, const std::vector<double>& p, int draws) {
  double sum = 0;
  for (std::size_t i = 0; i < p.size(); ++i) {
    const double expected = p[i] * draws;
    sum += (counts[i] - expected) * (counts[i] - expected) / expected;
  }
  return sum;
}

std::set<int> ids_drawn(const std::vector<float>& logits, const SamplingOptions& options) {
  std::set<int> ids;
  const std::vector<int> counts = histogram(logits, options, 4000);
  for (std::size_t i = 0; i < counts.size(); ++i)
    if (counts[i] > 0) ids.insert(static_cast<int>(i));
  return ids;
}

TEST(Sampler, GreedyTakesTheGreatestAndTiesGoToTheLowestId) {
  Sampler sampler;
  const std::vector<float> logits{-1, 3, 2, 3, -kInfinity};
  EXPECT_EQ(sampler.sample(logits, {}, 0), 1);
  EXPECT_EQ(sampler.sample(logits, {.seed = 99}, 17), 1);
}

TEST(Sampler, DrawsFollowTheSoftmax) {
  const std::vector<float> logits{0.5F, -1.0F, 2.0F, 0.0F, 1.0F, -0.25F, 1.5F, 0.75F};
  constexpr int kDraws = 100000;
  // 7 degrees of freedom: 24.3 is exceeded by chance once in a thousand times; the seeds are fixed.
  for (const double temperature : {0.5, 1.0, 2.0}) {
    const auto counts = histogram(logits, {.temperature = temperature, .seed = 7}, kDraws);
    EXPECT_LT(chi_square(counts, softmax(logits, temperature), kDraws), 24.3) << temperature;
  }
}

TEST(Sampler, NeighbouringSeedsAreIndependent) {
  // Draws with seeds s and s + 1 at the same index must not move together.
  constexpr int kDraws = 20000;
  double sum = 0;
  for (int i = 0; i < kDraws; ++i) {
    const auto counter = static_cast<std::uint64_t>(i);
    sum += (uniform_number(1, counter) - 0.5) * (uniform_number(2, counter) - 0.5);
  }
  EXPECT_LT(std::abs(sum / kDraws), 4.0 / 12 / std::sqrt(kDraws));
}

TEST(Sampler, UniformNumbersFillTheUnitInterval) {
  std::vector<int> counts(16);
  constexpr int kDraws = 64000;
  for (int i = 0; i < kDraws; ++i) {
    const double u = uniform_number(3, static_cast<std::uint64_t>(i));
    ASSERT_GE(u, 0.0);
    ASSERT_LT(u, 1.0);
    ++counts[static_cast<std::size_t>(u * 16)];
  }
  EXPECT_LT(chi_square(counts, std::vector<double>(16, 1.0 / 16), kDraws), 37.7);  // 15 degrees
}

TEST(Sampler, TopKKeepsExactlyTheKMostProbable) {
  const std::vector<float> logits{1, 2, 2, 2, 0, 1.5F};
  EXPECT_EQ(ids_drawn(logits, {.temperature = 5, .top_k = 1}), (std::set<int>{1}));
  EXPECT_EQ(ids_drawn(logits, {.temperature = 5, .top_k = 2}), (std::set<int>{1, 2}));
  EXPECT_EQ(ids_drawn(logits, {.temperature = 5, .top_k = 4}), (std::set<int>{1, 2, 3, 5}));
  EXPECT_EQ(ids_drawn(logits, {.temperature = 5, .top_k = 100}).size(), logits.size());
}

TEST(Sampler, TopPKeepsTheFewestThatReachTheShare) {
  // Probabilities 0.5, 0.25, 0.15, 0.1, not in order of id.
  std::vector<float> logits;
  for (const double p : {0.1, 0.5, 0.15, 0.25}) logits.push_back(static_cast<float>(std::log(p)));
  EXPECT_EQ(ids_drawn(logits, {.temperature = 1, .top_p = 1e-9}), (std::set<int>{1}));
  EXPECT_EQ(ids_drawn(logits, {.temperature = 1, .top_p = 0.49}), (std::set<int>{1}));
  EXPECT_EQ(ids_drawn(logits, {.temperature = 1, .top_p = 0.7}), (std::set<int>{1, 3}));
  EXPECT_EQ(ids_drawn(logits, {.temperature = 1, .top_p = 0.8}), (std::set<int>{1, 2, 3}));
  EXPECT_EQ(ids_drawn(logits, {.temperature = 1, .top_p = 1.0}).size(), 4U);
}

TEST(Sampler, TopPCountsSharesOfWhatTopKLeft) {
  // Of the two that top-k leaves (0.5 and 0.25), the first has two thirds.
  std::vector<float> logits;
  for (const double p : {0.1, 0.5, 0.15, 0.25}) logits.push_back(static_cast<float>(std::log(p)));
  EXPECT_EQ(ids_drawn(logits, {.temperature = 1, .top_k = 2, .top_p = 0.6}), (std::set<int>{1}));
  EXPECT_EQ(ids_drawn(logits, {.temperature = 1, .top_k = 2, .top_p = 0.7}), (std::set<int>{1, 3}));
}

TEST(Sampler, TinyTemperaturesAreGreedy) {
  const std::vector<float> logits{0.1F, 0.3F, 0.2F};
  for (const double temperature : {1e-3, 1e-30, 1e-300})
    EXPECT_EQ(ids_drawn(logits, {.temperature = temperature}), (std::set<int>{1}));
}

TEST(Sampler, MaskedIdsAreNeverDrawn) {
  const std::vector<float> logits{-kInfinity, 0, -kInfinity, 0};
  EXPECT_EQ(ids_drawn(logits, {.temperature = 100}), (std::set<int>{1, 3}));
}

TEST(Sampler, ChoiceDependsOnSeedAndIndexAlone) {
  const std::vector<float> logits(50, 0.0F);
  Sampler used;
  for (std::uint64_t i = 0; i < 100; ++i) {
    static_cast<void>(used.sample(std::vector<float>(80, 1.0F), {.temperature = 2, .seed = i}, i));
    Sampler fresh;
    const SamplingOptions options{.temperature = 1, .top_k = 40, .top_p = 0.9, .seed = 5};
    EXPECT_EQ(used.sample(logits, options, i), fresh.sample(logits, options, i));
  }
}

TEST(Sampler, LogitsThatAreNoNumbersAreAnError) {
  Sampler sampler;
  for (const double temperature : {0.0, 1.0}) {
    const SamplingOptions options{.temperature = temperature};
    EXPECT_THROW(sampler.sample(std::vector<float>{0, NAN, 1}, options, 0), ModelError);
    EXPECT_THROW(sampler.sample(std::vector<float>{0, kInfinity}, options, 0), ModelError);
    EXPECT_THROW(sampler.sample(std::vector<float>{-kInfinity}, options, 0), ModelError);
  }
}

TEST(Sampler, OptionsOutOfRangeAreRefused) {
  EXPECT_NO_THROW(check_sampling({}));
  EXPECT_NO_THROW(check_sampling({.temperature = 3, .top_k = 5, .top_p = 0.1}));
  EXPECT_THROW(check_sampling({.temperature = -1}), ConfigError);
  EXPECT_THROW(check_sampling({.temperature = NAN}), ConfigError);
  EXPECT_THROW(check_sampling({.temperature = INFINITY}), ConfigError);
  EXPECT_THROW(check_sampling({.top_k = -1}), ConfigError);
  EXPECT_THROW(check_sampling({.top_p = 0}), ConfigError);
  EXPECT_THROW(check_sampling({.top_p = 1.1}), ConfigError);
  EXPECT_THROW(check_sampling({.top_p = NAN}), ConfigError);
}

}  // namespace
}  // namespace ferry
