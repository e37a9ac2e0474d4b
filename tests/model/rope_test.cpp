#include "ferry/model/rope.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "ferry/core/error.h"

namespace ferry {
namespace {

/// The head with these options at one position.
std::vector<float> turned(const RopeOptions& options, int position, std::vector<float> head) {
  const Rope rope(options);
  std::vector<float> cos(static_cast<std::size_t>(rope.pairs()));
  std::vector<float> sin(cos.size());
  rope.angles(position, cos.data(), sin.data());
  rope.turn(head.data(), cos.data(), sin.data());
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
