// mxfp4 weights: the bytes that the same numbers give as bf16, whatever codes and scales.
#include <algorithm>
#include <cmath>

#include "kernels/two_forms.h"
#include "support/long_tests.h"

namespace ferry::testing {

namespace {

/// Codes and scales of a matrix [n, k] as checkpoints store them, and the matrix as mxfp4 and as
/// bf16.
class Mxfp4Forms : public TwoForms {
 public:
  /// exponent_of(row, group), code_of(row, i)
  template <class Exponent, class Code>
  Mxfp4Forms(std::int64_t n, std::int64_t k, Exponent exponent_of, Code code_of)
      : TwoForms(WeightType::mxfp4, n, k) {
    const std::int64_t groups = weight_groups(WeightType::mxfp4, k);
    std::vector<std::byte> codes(
        static_cast<std::size_t>(n * code_row_bytes(WeightType::mxfp4, k)));
    std::vector<float> scales;
    std::vector<float> values;
    for (std::int64_t row = 0; row < n; ++row) {
      for (std::int64_t g = 0; g < groups; ++g)
        scales.push_back(power_scale(static_cast<std::uint8_t>(exponent_of(row, g))));
      if (k % 2 == 1)  // half a byte that stands for nothing
        codes[static_cast<std::size_t>((row + 1) * code_row_bytes(WeightType::mxfp4, k) - 1)] =
            std::byte{0xf0};
      for (std::int64_t i = 0; i < k; ++i) {
        const unsigned code = code_of(row, i);
        const auto at = row * code_row_bytes(WeightType::mxfp4, k) + i / 2;
        codes[static_cast<std::size_t>(at)] |= static_cast<std::byte>(code << (i % 2 * 4));
        const int power = static_cast<int>(exponent_of(row, i / kMxfp4Group)) - 127;
        values.push_back(static_cast<float>(std::ldexp(double{e2m1_value(code)}, power)));
      }
    }
    pack({.type = WeightType::mxfp4, .source = codes.data(), .scales = scales.data()}, values);
  }
};

class Mxfp4OfIsa : public GemmOfIsa {};

TEST_P(Mxfp4OfIsa, GivesTheBytesOfBf16OnRaggedShapes) {
  const Kernels& in_class_fast = kernels(Numerics::fast);
  RandomValues random(3);
  std::mt19937 engine(5);
  for (const std::int64_t k : {1, 2, 31, 32, 33, 96, 200, 517}) {
    if (slow_run() && k > 100) continue;
    for (const std::int64_t n : {1, 15, 17, 40, 72}) {
      const Mxfp4Forms forms(
          n,
          k,
          [](std::int64_t row, std::int64_t g) { return 110 + (row * 7 + g * 3) % 30; },
          [&](std::int64_t, std::int64_t) { return static_cast<unsigned>(engine() % 16); });
      for (const std::int64_t rows : {0, 1, 2, 3, 7, 8, 33}) {
        const auto in = to_type(random.row(rows * k, Values::mixed), DType::bf16);
        forms.expect_same_products(fast(), in, rows);
        if (GetParam() == kernels().isa)
          forms.expect_same_products(in_class_fast, in, rows, in_class_fast);
      }
    }
  }
}

/// Rows that have one number each, of several magnitudes, show every weight by itself, also where
/// it leaves the range of f32 or is flushed. The columns of one panel have scales of their own.
TEST_P(Mxfp4OfIsa, GivesTheBytesOfBf16ForEveryScaleAndCode) {
  constexpr std::int64_t kDepth = kMxfp4Group;
  const Mxfp4Forms forms(
      256,
      kDepth,
      [](std::int64_t row, std::int64_t) { return row; },
      [](std::int64_t, std::int64_t i) { return static_cast<unsigned>(i * 7 % 16); });
  for (const float x : {1.0F, -1.5F, 0x1p-100F, 0x1p100F, 0x1p-126F, 0x1.fep127F, 0.0F}) {
    std::vector<float> rows(kDepth * kDepth, 0.0F);
    for (std::int64_t r = 0; r < kDepth; ++r) rows[static_cast<std::size_t>(r * kDepth + r)] = x;
    const auto in = to_type(rows, DType::bf16);
    forms.expect_same_products(fast(), in, kDepth);
    if (GetParam() == kernels().isa) {
      const Kernels& in_class_fast = kernels(Numerics::fast);
      forms.expect_same_products(in_class_fast, in, kDepth, in_class_fast);
    }
    for (std::int64_t r = 0; r < kDepth; r += 5)
      forms.expect_same_products(
          fast(), {in.begin() + r * kDepth * 2, in.begin() + (r + 1) * kDepth * 2}, 1);
  }
}

/// Sums of numbers so small that threads flush some of them: scaling the sums instead of the
/// numbers would keep what is to be lost.
TEST_P(Mxfp4OfIsa, FlushesWhatBf16Flushes) {
  constexpr std::int64_t kDepth = 128;
  RandomValues random(8);
  std::mt19937 engine(9);
  for (const int exponent : {0, 1, 2, 20, 60, 127, 200, 240, 252, 253, 254, 255}) {
    const Mxfp4Forms forms(
        20,
        kDepth,
        [&](std::int64_t row, std::int64_t g) {
          return std::clamp<std::int64_t>(exponent + row % 3 - 1 + g % 2, 0, 255);
        },
        [&](std::int64_t, std::int64_t) { return static_cast<unsigned>(engine() % 16); });
    for (const float size : {1.0F, 0x1p-60F, 0x1p-120F, 0x1p60F, 0x1p-10F}) {
      std::vector<float> rows = random.row(9 * kDepth);
      for (float& x : rows) x *= size;
      const auto in = to_type(rows, DType::bf16);
      for (const std::int64_t count : {1, 3, 9}) forms.expect_same_products(fast(), in, count);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Kernels, Mxfp4OfIsa, ::testing::ValuesIn(kAllIsas), isa_test_name);

TEST(QuantizeMxfp4, RoundsToTheNearestCodeTiesToEven) {
  const FlushDenormals flush;
  // 6 makes the scale 1.
  const std::vector<float> x = {6, 0.25F, 0.75F, 1.25F, 1.75F, 2.5F, 3.5F, 5, -0.26F, 0.74F, -5.5F};
  const std::vector<float> want = {6, 0, 1, 1, 2, 2, 4, 4, -0.5F, 0.5F, -6};
  const auto k = static_cast<std::int64_t>(x.size());
  const QuantizedMatrix q =
      quantize_matrix(WeightType::mxfp4, as_bytes(x.data()), DType::f32, 1, k);
  EXPECT_EQ(q.scales, std::vector<float>{1});
  std::vector<float> found;
  for (std::int64_t i = 0; i < k; ++i) {
    const std::byte both = q.codes[static_cast<std::size_t>(i / 2)];
    found.push_back(e2m1_value(std::to_integer<unsigned>(both >> (i % 2 * 4) & std::byte{15})));
  }
  EXPECT_EQ(found, want);
}

TEST(QuantizeMxfp4, ScalesLeaveNoNumberOutside) {
  const FlushDenormals flush;
  const std::pair<float, float> greatest_and_scale[] = {
      {7.0F, 2}, {0x1.bfp2F, 1}, {3.5F, 1}, {3.4F, 0.5F}, {0x1.fep127F, 0x1p125F}, {0, 0x1p-126F}};
  for (const auto& [greatest, scale] : greatest_and_scale) {
    const QuantizedMatrix q =
        quantize_matrix(WeightType::mxfp4, as_bytes(&greatest), DType::f32, 1, 1);
    EXPECT_EQ(q.scales, std::vector<float>{scale}) << greatest;
    const float back = e2m1_value(std::to_integer<unsigned>(q.codes[0] & std::byte{15})) * scale;
    EXPECT_NEAR(back, greatest, greatest / 4) << greatest;
  }
}

}  // namespace

}  // namespace ferry::testing
