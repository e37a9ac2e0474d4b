#include "ferry/core/portable_math.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

namespace ferry {
namespace {

TEST(PortableMath, TheLogarithmIsRightToTheLastBits) {
  std::mt19937_64 random(4);
  std::uniform_real_distribution<double> exponent(-40, 60);
  for (int i = 0; i < 10000; ++i) {
    const double x = std::exp2(exponent(random));
    EXPECT_NEAR(natural_log(x), std::log(x), 4e-16 * std::max(1.0, std::abs(std::log(x)))) << x;
  }
  EXPECT_EQ(natural_log(1), 0);
}

TEST(PortableMath, ExpIsThatOfTheLibrary) {
  for (int i = -5100; i < 5100; ++i) {
    const double x = i * 0.0371;
    ASSERT_NEAR(exact_exp(x) / std::exp(x), 1.0, 1e-14) << x;
  }
  EXPECT_EQ(exact_exp(0), 1.0);
  EXPECT_EQ(exact_exp(-1000), 0.0);
  EXPECT_EQ(exact_exp(1000), exact_exp(200));
  EXPECT_EQ(exact_exp(std::numeric_limits<double>::infinity()), exact_exp(200));
  EXPECT_TRUE(std::isnan(exact_exp(std::numeric_limits<double>::quiet_NaN())));
}

}  // namespace
}  // namespace ferry
