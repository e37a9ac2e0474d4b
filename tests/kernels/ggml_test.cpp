// ggml's blocks as weights: the bytes that the same numbers give as bf16, whatever codes and
// scales. What the numbers are says the room that reads files.
#include <algorithm>
#include <cmath>

#include "ferry/checkpoint/gguf/gguf_types.h"
#include "kernels/two_forms.h"
#include "support/long_tests.h"

namespace ferry::testing {

namespace {

const GgufType& stored_type(WeightType type) {
  const auto types = gguf_types();
  return *std::ranges::find(types, std::optional(type), &GgufType::held);
}

/// Where the f16 lie in a block.
std::vector<std::int64_t> halves_of(WeightType type) {
  if (type == WeightType::q6_k) return {ggml_block(type).bytes - 2};
  if (type == WeightType::q4_1 || type == WeightType::q4_k || type == WeightType::q5_k)
    return {0, 2};
  return {0};
}

/// A matrix [n, k] of random blocks as a GGUF file has it, held as it is and as bf16.
class GgmlForms : public TwoForms {
 public:
  /// half_of(): an f16.
  template <class Half>
  GgmlForms(WeightType type, std::int64_t n, std::int64_t k, std::uint32_t seed, Half half_of)
      : TwoForms(type, n, k) {
    const GgufType& stored = stored_type(type);
    std::mt19937 engine(seed);
    std::vector<std::byte> blocks(static_cast<std::size_t>(n * stored.row_bytes(k)));
    for (std::byte& byte : blocks) byte = static_cast<std::byte>(engine());
    for (std::size_t block = 0; block < blocks.size();
         block += static_cast<std::size_t>(stored.bytes)) {
      for (const std::int64_t at : halves_of(type)) {
        const std::uint16_t half = half_of(engine);
        std::memcpy(blocks.data() + block + at, &half, sizeof half);
      }
    }
    values_.resize(static_cast<std::size_t>(n * k));
    for (std::int64_t row = 0; row < n; ++row)
      stored.read_row(blocks.data() + row * stored.row_bytes(k), k, values_.data() + row * k);
    pack({.type = type, .source = blocks.data()}, values_);
  }

  const std::vector<float>& values() const { return values_; }

 private:
  std::vector<float> values_;
};

/// Any finite one.
std::uint16_t any_half(std::mt19937& engine) {
  constexpr unsigned kExponent = 0x7c00;
  auto half = static_cast<std::uint16_t>(engine());
  if ((half & kExponent) == kExponent) half &= 0xbfff;
  return half;
}

/// Of the size that scales have.
std::uint16_t usual_half(std::mt19937& engine) {
  return static_cast<std::uint16_t>(0x0800 + engine() % 0x1400);
}

class GgmlOfIsa : public GemmOfIsa {};

TEST_P(GgmlOfIsa, GivesTheBytesOfBf16OnRaggedShapes) {
  const Kernels& in_class_fast = kernels(Numerics::fast);
  RandomValues random(3);
  std::uint32_t seed = 5;
  for (const WeightType type : ggml_types()) {
    for (const std::int64_t blocks : {1, 2, 3, 5}) {
      const std::int64_t k = blocks * ggml_block(type).k;
      if (slow_run() && k > 512) continue;
      for (const std::int64_t n : {1, 15, 17, 40, 72}) {
        const GgmlForms forms(type, n, k, ++seed, usual_half);
        for (const std::int64_t rows : {0, 1, 2, 3, 7, 8, 33}) {
          const auto in = to_type(random.row(rows * k, Values::mixed), DType::bf16);
          forms.expect_same_products(fast(), in, rows);
          if (GetParam() == kernels().isa)
            forms.expect_same_products(in_class_fast, in, rows, in_class_fast);
        }
      }
    }
  }
}

/// Rows that have one number each show every weight by itself, in the pass of few rows and in that
/// of many.
TEST_P(GgmlOfIsa, GivesTheBytesOfBf16ForEveryWeight) {
  for (const WeightType type : ggml_types()) {
    const std::int64_t k = ggml_block(type).k;
    const GgmlForms forms(type, 48, k, 17, any_half);
    std::vector<float> rows(static_cast<std::size_t>(k * k), 0.0F);
    for (std::int64_t r = 0; r < k; ++r) rows[static_cast<std::size_t>(r * k + r)] = 1;
    const auto in = to_type(rows, DType::bf16);
    forms.expect_same_products(fast(), in, k);
    if (GetParam() == kernels().isa) {
      const Kernels& in_class_fast = kernels(Numerics::fast);
      forms.expect_same_products(in_class_fast, in, k, in_class_fast);
    }
    for (std::int64_t r = 0; r < k; r += 3)
      forms.expect_same_products(fast(), {in.begin() + r * k * 2, in.begin() + (r + 1) * k * 2}, 1);
  }
}

/// The first block of each row has scales that are infinite or NaN.
TEST_P(GgmlOfIsa, AScaleThatIsNotFiniteIsANan) {
  for (const std::uint16_t half : {0x7c00, 0xfc00, 0x7fff, 0xfc01}) {
    for (const WeightType type : ggml_types()) {
      const std::int64_t k = 2 * ggml_block(type).k;
      int at = 0;
      const auto scales = static_cast<int>(halves_of(type).size());
      const GgmlForms forms(type, 20, k, 23, [&](std::mt19937& engine) {
        return at++ % (2 * scales) < scales ? half : usual_half(engine);
      });
      std::vector<float> rows(static_cast<std::size_t>(9 * k), 0.0F);
      for (std::int64_t r = 0; r < 9; ++r)
        rows[static_cast<std::size_t>(r * k + (r % 2 == 0 ? r : k - 1 - r))] = 1;
      for (const std::int64_t count : {1, 2, 9}) {
        const auto out = product_of(fast(), forms.codes(), to_type(rows, DType::bf16), count);
        for (const float x : to_floats(out.data(), DType::f32, count * 20))
          ASSERT_TRUE(std::isnan(x)) << weight_type_name(type);  // 0 * NaN, too
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Kernels, GgmlOfIsa, ::testing::ValuesIn(kAllIsas), isa_test_name);

/// A bit or two more than in the file, where scales of six bits get a byte.
TEST(GgmlWeights, TakeTheRoomOfTheFile) {
  for (const WeightType type : ggml_types()) {
    constexpr std::int64_t kDepth = 2048;
    const double held = static_cast<double>(PackedMatrix::packed_panel_bytes(type, kDepth));
    const auto stored = static_cast<double>(kPanelColumns * code_row_bytes(type, kDepth));
    EXPECT_GE(held, stored) << weight_type_name(type);
    EXPECT_LE(held, 1.03 * stored) << weight_type_name(type);
  }
}

/// The product that the file's own numbers give, in double: what rounding them to bf16 costs.
TEST(GgmlWeights, AreOffByTheRoundingToBf16) {
  RandomValues random(9);
  for (const WeightType type : ggml_types()) {
    const std::int64_t k = 2 * ggml_block(type).k;
    const GgmlForms forms(type, 16, k, 31, usual_half);
    const auto in = to_type(random.row(k), DType::bf16);
    const std::vector<float> row = to_floats(in.data(), DType::bf16, k);
    const auto out = product_of(kernels(), forms.codes(), in, 1);
    const std::vector<float> sums = to_floats(out.data(), DType::f32, 16);
    for (std::int64_t c = 0; c < 16; ++c) {
      double exact = 0;
      double magnitudes = 0;
      for (std::int64_t i = 0; i < k; ++i) {
        const double product = double{row[static_cast<std::size_t>(i)]} *
                               forms.values()[static_cast<std::size_t>(c * k + i)];
        exact += product;
        magnitudes += std::abs(product);
      }
      EXPECT_NEAR(sums[static_cast<std::size_t>(c)], exact, magnitudes * 0x1p-8)
          << weight_type_name(type);
    }
  }
}

}  // namespace

}  // namespace ferry::testing
