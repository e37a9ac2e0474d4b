#include "ferry/model/rope.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numbers>
#include <numeric>

#include "ferry/core/error.h"
#include "ferry/kernels/kernels.h"

namespace ferry {
namespace {

/// The head with these options at one position.
std::vector<float> turned(const RopeOptions& options, int position, std::vector<float> head) {
  const Rope rope(options);
  std::vector<float> cos(static_cast<std::size_t>(rope.pairs()));
  std::vector<float> sin(cos.size());
  rope.angles(position, cos.data(), sin.data());
  rope.turn(kernels(), head.data(), cos.data(), sin.data());
  return head;
}

std::vector<float> numbers(int n) {
  std::vector<float> head(static_cast<std::size_t>(n));
  std::iota(head.begin(), head.end(), 1.0F);
  return head;
}

TEST(Rope, FrequenciesAreThoseOfTransformers) {
  // 1.0 / (base ** (torch.arange(0, 8, 2, dtype=torch.float) / 8)) for base 1e6.
  const std::vector<float> found = rope_frequencies({.theta = 1e6, .dim = 8});
  const std::vector<float> expected = {1.0F, 0.031622775F, 0.001F, 3.1622778e-05F};
  ASSERT_EQ(found.size(), expected.size());
  for (std::size_t i = 0; i < found.size(); ++i) EXPECT_FLOAT_EQ(found[i], expected[i]);
}

/// Pairs 0, 4, 8, .. of what transformers' ROPE_INIT_FUNCTIONS give.
void expect_every_fourth(const RopeOptions& options, const std::vector<float>& expected) {
  const std::vector<float> found = rope_frequencies(options);
  ASSERT_EQ(found.size(), 4 * expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i)
    EXPECT_NEAR(found[4 * i], expected[i], 3e-7F * expected[i]) << "pair " << 4 * i;
}

TEST(Rope, LinearScalingDividesEveryFrequency) {
  const RopeOptions options{.dim = 16, .scaling = RopeScaling::linear, .factor = 4};
  expect_every_fourth(options, {0.25F, 0.0024999999441206455F});
}

TEST(Rope, Llama3ScalesLowFrequencies) {
  const RopeOptions options{.theta = 500000,
                            .dim = 32,
                            .scaling = RopeScaling::llama3,
                            .factor = 8,
                            .original_positions = 8192,
                            .low_turns = 1,
                            .high_turns = 4};
  expect_every_fourth(options,
                      {1.0F, 0.03760603070259094F, 0.0005248460220173001F, 6.647869668086059e-06F});
}

/// Scout's: what makes at least a turn stays, what makes less is divided.
TEST(Rope, Llama3MayHaveNoTransition) {
  RopeOptions options{.theta = 500000,
                      .dim = 128,
                      .scaling = RopeScaling::llama3,
                      .factor = 16,
                      .original_positions = 8192,
                      .low_turns = 1,
                      .high_turns = 1};
  const std::vector<float> found = rope_frequencies(options);
  options.scaling = RopeScaling::none;
  const std::vector<float> plain = rope_frequencies(options);
  for (std::size_t i = 0; i < plain.size(); ++i) {
    const bool turns = plain[i] * 8192 >= 2 * std::numbers::pi_v<float>;
    EXPECT_EQ(found[i], turns ? plain[i] : plain[i] / 16) << i;
  }
}

TEST(Rope, YarnOfDeepseekV3) {
  const RopeOptions options{.dim = 64,
                            .scaling = RopeScaling::yarn,
                            .factor = 40,
                            .original_positions = 4096,
                            .low_turns = 1,
                            .high_turns = 32};
  expect_every_fourth(options,
                      {1.0F,
                       0.3162277638912201F,
                       0.10000000149011612F,
                       0.026879360899329185F,
                       0.005500000435858965F,
                       0.0007905694073997438F,
                       2.499999936844688e-05F,
                       7.905694474175107e-06F});
}

/// Both ends of the transition at one number of turns.
TEST(Rope, YarnOfKimiK2) {
  const RopeOptions options{.theta = 50000,
                            .dim = 64,
                            .scaling = RopeScaling::yarn,
                            .factor = 32,
                            .original_positions = 4096,
                            .low_turns = 1,
                            .high_turns = 1};
  expect_every_fourth(options,
                      {1.0F,
                       0.2586001455783844F,
                       0.06687403470277786F,
                       0.01729363389313221F,
                       0.004472136031836271F,
                       3.614046727307141e-05F,
                       9.345930266135838e-06F,
                       2.416858706055791e-06F});
}

TEST(Rope, YarnBetweenPairsAndMagnifiedAsInGptOss) {
  const RopeOptions options{.theta = 150000,
                            .dim = 64,
                            .scaling = RopeScaling::yarn,
                            .factor = 32,
                            .original_positions = 4096,
                            .low_turns = 1,
                            .high_turns = 32,
                            .whole_pairs = false,
                            .magnitude = 1.5};
  expect_every_fourth(options,
                      {1.0F,
                       0.22541800141334534F,
                       0.05081327259540558F,
                       0.006794959306716919F,
                       0.0004564839182421565F,
                       1.818833698052913e-05F,
                       4.099978468730114e-06F,
                       9.242089618055616e-07F});
  const std::vector<float> head = turned(options, 0, numbers(64));
  EXPECT_EQ(head[5], 1.5F * 6);
}

TEST(Rope, TurnsPairsOfTheTwoHalves) {
  const std::vector<float> head = turned({.theta = 100, .dim = 4}, 3, numbers(4));
  EXPECT_NEAR(head[0], 1 * std::cos(3.0) - 3 * std::sin(3.0), 1e-6);
  EXPECT_NEAR(head[2], 3 * std::cos(3.0) + 1 * std::sin(3.0), 1e-6);
  EXPECT_NEAR(head[1], 2 * std::cos(0.3) - 4 * std::sin(0.3), 1e-6);
  EXPECT_NEAR(head[3], 4 * std::cos(0.3) + 2 * std::sin(0.3), 1e-6);
}

TEST(Rope, LeavesTheRestOfAHeadAsItIs) {
  const std::vector<float> head = turned({.dim = 4}, 5, numbers(7));
  const std::vector<float> whole = turned({.dim = 4}, 5, numbers(4));
  for (std::size_t i = 0; i < 4; ++i) EXPECT_EQ(head[i], whole[i]);
  for (std::size_t i = 4; i < 7; ++i) EXPECT_EQ(head[i], static_cast<float>(i + 1));
}

TEST(Rope, InterleavedPairsComeOutInHalves) {
  const std::vector<float> apart = turned({.dim = 6}, 7, {1, 2, 3, 4, 5, 6});
  EXPECT_EQ(turned({.dim = 6, .interleaved = true}, 7, {1, 4, 2, 5, 3, 6}), apart);
}

TEST(Rope, RefusesSizesWithoutPairs) {
  for (const int dim : {0, 3, -2, Rope::kMaxDim + 2})
    EXPECT_THROW(Rope({.dim = dim}), BrokenContract) << dim;
}

}  // namespace
}  // namespace ferry
