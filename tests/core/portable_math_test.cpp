#include "ferry/core/portable_math.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

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

TEST(PortableMath, TheLogarithmOfWhatIsNoPositiveNumberIsThatOfIeee754) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  EXPECT_EQ(natural_log(0), -kInfinity);
  EXPECT_EQ(natural_log(kInfinity), kInfinity);
  EXPECT_TRUE(std::isnan(natural_log(-1)));
  const double smallest = std::numeric_limits<double>::denorm_min();
  EXPECT_NEAR(natural_log(smallest), std::log(smallest), 1e-12);
}

TEST(PortableMath, PowersAreThoseOfTheLibraryButForTheLastBits) {
  for (const double base : {1.5, 10000.0, 500000.0, 1e7}) {
    for (int i = 0; i <= 128; ++i)
      ASSERT_NEAR(power(base, i / 128.0) / std::pow(base, i / 128.0), 1.0, 1e-14) << base << i;
  }
  EXPECT_EQ(power(7, 0), 1.0);
  EXPECT_EQ(power(0, 0.5), 0.0);
  EXPECT_TRUE(std::isnan(power(-2, 0.5)));
}

/// Angles as they come: an f32 times a position, rounded to f32; and those near whole quarters,
/// where most is cancelled.
std::vector<double> some_angles() {
  std::vector<double> angles;
  for (const float frequency : {1.0F, 0.7498942F, 0.01F, 1.3e-4F}) {
    for (float position = 0; position < 1e7F; position = 1.37F * position + 1)
      angles.push_back(static_cast<double>(position * frequency));
  }
  for (float quarters = 1; quarters < 1e9F; quarters *= 3)
    angles.push_back(static_cast<double>(quarters * 1.57079633F));
  return angles;
}

TEST(PortableMath, CosAndSinAreThoseOfTheLibraryButForTheLastBits) {
  for (const double angle : some_angles()) {
    for (const double x : {angle, -angle}) {
      EXPECT_NEAR(cos_and_sin(x).cos, std::cos(x), 4e-16) << x;
      EXPECT_NEAR(cos_and_sin(x).sin, std::sin(x), 4e-16) << x;
    }
  }
  EXPECT_EQ(cos_and_sin(0).cos, 1.0);
  EXPECT_EQ(cos_and_sin(0).sin, 0.0);
  EXPECT_TRUE(std::isnan(cos_and_sin(1e30).cos));
}

/// Where a processor or a compiler would round otherwise, this says so; the library's functions do.
TEST(PortableMath, BitsAreTheSameEverywhere) {
  std::uint64_t bits = 0;
  const auto add = [&](double x) { bits = bits * 31 + std::bit_cast<std::uint64_t>(x); };
  for (const double angle : some_angles()) {
    const CosAndSin turned = cos_and_sin(angle);
    add(turned.cos);
    add(turned.sin);
    add(natural_log(angle + 0.1));
    add(exact_exp(-angle));
    add(power(angle + 0.1, 0.37));
  }
  EXPECT_EQ(bits, 0xd8e4e7e5ea72684cU);
}

}  // namespace
}  // namespace ferry
