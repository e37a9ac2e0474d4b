// Where denormals begin: what is flushed, by every instruction set (docs/numerics.md, "Denormals").
#include "ferry/core/float_mode.h"
#include "kernels/kernel_testing.h"

namespace ferry::testing {

namespace {

constexpr float kSmallest = 0x1p-126F;  // the smallest number that is no denormal

class FlushOfIsa : public PerIsa {
 protected:
  /// x * y as a kernel has it, in a lane of whole registers and in the end of a row.
  float product(float x, float y) const {
    std::vector<float> row(19, x);
    fast().scale(row.data(), y, row.data(), 19);
    EXPECT_EQ(row[0], row[18]);
    return row[0];
  }

  /// x * y + 0 by gemm's fused multiply-adds.
  float fused(float x, float y) const {
    const PackedMatrix shape{WeightType::f32, 1, 16, nullptr};
    Buffer panel(shape.panel_bytes());
    for (std::size_t i = 0; i < 16; ++i) std::memcpy(panel.data() + 4 * i, &y, 4);
    const PackedMatrix weights{WeightType::f32, 1, 16, panel.data()};
    std::vector<float> out(16);
    fast().gemm({.in = {as_bytes(&x), 4},
                 .rows = 1,
                 .weights = &weights,
                 .last_panel = 1,
                 .out = {as_bytes(out.data()), 64}});
    return out[0];
  }
};

TEST_P(FlushOfIsa, DenormalsAreZerosAsOperands) {
  EXPECT_EQ(product(kSmallest / 2, 0x1p20F), 0.0F);
  EXPECT_EQ(fused(kSmallest / 2, 0x1p20F), 0.0F);
  EXPECT_EQ(product(-kSmallest / 2, 0x1p20F), 0.0F);
}

TEST_P(FlushOfIsa, ResultsBelowTheSmallestNormalAreZeros) {
  constexpr float kBelowOne = 1 - 0x1p-24F;
  EXPECT_EQ(product(kBelowOne, kSmallest), 0.0F);
  EXPECT_EQ(fused(kBelowOne, kSmallest), 0.0F);
  EXPECT_TRUE(std::signbit(product(-kBelowOne, kSmallest)));
  EXPECT_EQ(product(1 + 0x1p-23F, kSmallest), kSmallest * (1 + 0x1p-23F));
  EXPECT_EQ(fused(1.0F, kSmallest), kSmallest);
}

/// 2^-126 (1 - 2^-26), which rounding makes 2^-126: the one interval where processors differ.
TEST_P(FlushOfIsa, WhatRoundingMakesTheSmallestNormalIsKeptWhereTheProcessorRoundsFirst) {
  const float x = 0x1p-63F * (1 + 0x1p-13F);
  const float y = 0x1p-63F * (1 - 0x1p-13F);
  const float expected = flushes_after_rounding() ? kSmallest : 0.0F;
  EXPECT_EQ(product(x, y), expected);
  EXPECT_EQ(fused(x, y), expected);
}

INSTANTIATE_TEST_SUITE_P(AllIsas, FlushOfIsa, ::testing::ValuesIn(kAllIsas), isa_test_name);

}  // namespace

}  // namespace ferry::testing
