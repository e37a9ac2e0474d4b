// Our own exp, by its scalar instance; row_ops_test.cpp shows that the others equal it.
#include <cmath>
#include <cstring>

#include "kernels/kernel_testing.h"

namespace ferry::testing {

namespace {

#include "ferry/kernels/cpu/bits.inl"
#include "ferry/kernels/cpu/elements.inl"
#include "ferry/kernels/cpu/vec_scalar.inl"
//
#include "ferry/core/threads.h"
#include "ferry/kernels/cpu/math.inl"

float exp_of(float x) { return exp(splat(x)).lane[0]; }

TEST(Exp, IsWithinTwoUnitsInTheLastPlace) {
  const FlushDenormals flush;
  double worst = 0;
  for (double x = -87.3; x < 88.7; x += 1.7e-4) {
    const auto argument = static_cast<float>(x);
    const double exact = std::exp(static_cast<double>(argument));
    const double unit = std::ldexp(1.0, std::ilogb(exact) - 23);
    worst = std::max(worst, std::abs(exp_of(argument) - exact) / unit);
  }
  EXPECT_LT(worst, 2.0);
  RecordProperty("worst_ulp", std::to_string(worst));
}

TEST(Exp, EndsInZeroAndInfinity) {
  const FlushDenormals flush;
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(exp_of(-kInfinity), 0.0F);
  EXPECT_EQ(exp_of(-1e30F), 0.0F);
  EXPECT_EQ(exp_of(-88.0F), 0.0F);
  EXPECT_EQ(exp_of(kInfinity), kInfinity);
  EXPECT_EQ(exp_of(89.5F), kInfinity);
  EXPECT_EQ(exp_of(0.0F), 1.0F);
  EXPECT_EQ(exp_of(-0.0F), 1.0F);
  EXPECT_TRUE(std::isnan(exp_of(std::numeric_limits<float>::quiet_NaN())));
}

}  // namespace

}  // namespace ferry::testing
