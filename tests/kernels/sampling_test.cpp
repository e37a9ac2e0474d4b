// What sampling counts: every instruction set gives the scalar one's integers, and those are right.
#include <algorithm>
#include <cmath>

#include "kernels/kernel_testing.h"

namespace ferry::testing {

namespace {

constexpr std::int64_t kLengths[] = {1, 2, 15, 16, 17, 31, 33, 200, 4096, 5001};

class SamplingOfIsa : public PerIsa {
 protected:
  static std::vector<float> logits(std::int64_t n, float spread) {
    RandomValues random(static_cast<std::uint32_t>(n));
    std::vector<float> x = random.row(n);
    for (float& one : x) one *= spread;
    if (n > 20) x[7] = -std::numeric_limits<float>::infinity();
    return x;
  }

  static float most(const std::vector<float>& x) { return *std::max_element(x.begin(), x.end()); }

  std::vector<std::uint32_t> weights(const std::vector<float>& x) const {
    std::vector<std::uint32_t> out(x.size());
    static_cast<void>(scalar().weigh(x.data(), std::ssize(x), most(x), 1, out.data()));
    return out;
  }
};

TEST_P(SamplingOfIsa, WeighsAsTheExponentialDoes) {
  for (const std::int64_t n : kLengths) {
    for (const float spread : {0.0F, 1.0F, 10.0F, 1e30F}) {
      const std::vector<float> x = logits(n, spread);
      for (const float factor : {1.0F, 0.3F, 1e-30F, 1e30F}) {
        std::vector<std::uint32_t> got(x.size()), want(x.size());
        const std::uint64_t sum = fast().weigh(x.data(), n, most(x), factor, got.data());
        EXPECT_EQ(scalar().weigh(x.data(), n, most(x), factor, want.data()), sum);
        ASSERT_EQ(got, want) << n << " " << spread << " " << factor;
        std::uint64_t added = 0;
        for (std::size_t i = 0; i < x.size(); ++i) {
          added += got[i];
          const float below = (x[i] - most(x)) * factor;
          const double wanted = std::exp(static_cast<double>(below)) * 0x1p30;
          if (std::abs(got[i] - wanted) > 512) ADD_FAILURE() << got[i] << " for " << below;
        }
        EXPECT_EQ(added, sum);
      }
    }
  }
}

TEST_P(SamplingOfIsa, SumsOfExponentialsKeepWhatWeightsRoundAway) {
  for (const std::int64_t n : kLengths) {
    const std::vector<float> x = logits(n, 8);
    const ExpSum got = fast().exp_sum(x.data(), n, most(x));
    const ExpSum want = scalar().exp_sum(x.data(), n, most(x));
    EXPECT_EQ(got.whole, want.whole);
    EXPECT_EQ(got.rest, want.rest);
    double sum = 0;
    for (const float one : x) sum += std::exp(static_cast<double>(one - most(x)));
    EXPECT_NEAR(static_cast<double>(got.whole) * 0x1p-30 + static_cast<double>(got.rest) * 0x1p-50,
                sum,
                1e-7 * sum);
  }
  // Far below the greatest, but many.
  std::vector<float> tail(100001, -23.0F);
  tail[5] = 0;
  const ExpSum got = fast().exp_sum(tail.data(), std::ssize(tail), 0);
  EXPECT_NEAR(static_cast<double>(got.whole) * 0x1p-30 + static_cast<double>(got.rest) * 0x1p-50,
              1 + 100000 * std::exp(-23.0),
              1e-9);
}

TEST_P(SamplingOfIsa, CountsAndPicksByLimits) {
  for (const std::int64_t n : kLengths) {
    std::vector<float> x = logits(n, 3);
    for (float& one : x) one = std::round(one * 4) / 4;  // many are equal
    const std::vector<std::uint32_t> all = weights(x);
    for (std::size_t at = 0; at < all.size(); at += 1 + all.size() / 20) {
      const std::uint32_t low = std::max(all[at], 1U);
      const std::uint32_t high = std::max(low, all[all.size() - 1 - at]);
      WeightCount above, rest;
      std::vector<std::uint32_t> between;
      for (const std::uint32_t w : all) {
        if (w > low) above = {.sum = above.sum + w, .tokens = above.tokens + 1};
        if (w >= high) rest = {.sum = rest.sum + w, .tokens = rest.tokens + 1};
        if (w >= low && w < high) between.push_back(w);
      }
      const WeightCount counted = fast().count_weights(all.data(), n, low);
      EXPECT_EQ(counted.sum, above.sum);
      EXPECT_EQ(counted.tokens, above.tokens);
      std::vector<std::uint32_t> in_place = all;
      in_place.resize(all.size() + 16);
      const WeightPick picked = fast().pick_weights(in_place.data(), n, low, high, in_place.data());
      EXPECT_EQ(picked.rest.sum, rest.sum);
      EXPECT_EQ(picked.rest.tokens, rest.tokens);
      ASSERT_EQ(picked.picked, std::ssize(between));
      in_place.resize(between.size());
      EXPECT_EQ(in_place, between);
    }
    const auto weighed = std::count_if(all.begin(), all.end(), [](auto w) { return w > 0; });
    EXPECT_EQ(fast().count_weights(all.data(), n, 0).tokens, static_cast<std::uint64_t>(weighed));
  }
}

INSTANTIATE_TEST_SUITE_P(AllIsas, SamplingOfIsa, ::testing::ValuesIn(kAllIsas), isa_test_name);

}  // namespace

}  // namespace ferry::testing
