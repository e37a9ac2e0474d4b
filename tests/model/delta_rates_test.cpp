// How fast a gated delta net forgets: right over all of f32's range, and nothing odd beyond it.
#include "ferry/model/mixers/delta_rates.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace ferry {
namespace {

TEST(DeltaRates, SoftplusIsThatOfTheLibrary) {
  for (int i = -3500; i < 3500; ++i) {
    const double x = i * 0.0173;
    const double expected = std::log1p(std::exp(x));
    ASSERT_NEAR(softplus(x), expected, 4e-16 + 1e-14 * expected) << x;
  }
  EXPECT_EQ(softplus(1e30), 1e30);
  EXPECT_EQ(softplus(-1e30), 0.0);
  EXPECT_TRUE(std::isnan(softplus(std::numeric_limits<double>::quiet_NaN())));
}

TEST(DeltaRates, DecayIsAPart) {
  EXPECT_EQ(delta_decay(2.0, -1e30), 1.0F);
  EXPECT_EQ(delta_decay(2.0, 1e30), 0.0F);
  EXPECT_NEAR(delta_decay(0.5, 0.25), std::exp(-0.5 * std::log1p(std::exp(0.25))), 1e-7);
}

}  // namespace
}  // namespace ferry
