#include "ferry/checkpoint/stored_matrix.h"

#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <random>
#include <vector>

#include "ferry/checkpoint/config_reader.h"
#include "ferry/checkpoint/stored_format.h"
#include "ferry/core/threads.h"

namespace ferry {
namespace {

/// e4m3fn by its definition: 4 bits of exponent with bias 7, 3 of mantissa, no infinity.
double fp8_value(unsigned code) {
  const int exponent = static_cast<int>(code >> 3 & 15);
  const int mantissa = static_cast<int>(code & 7);
  if (exponent == 15 && mantissa == 7) return std::nan("");
  const double magnitude =
      exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
  return code & 128 ? -magnitude : magnitude;
}

template <class T>
std::span<const std::byte> bytes_of(const std::vector<T>& x) {
  return std::as_bytes(std::span(x));
}

/// 300 x 200: blocks at the right and at the bottom are not whole.
class Fp8Matrix : public testing::Test {
 protected:
  static constexpr std::int64_t kRows = 300;
  static constexpr std::int64_t kColumns = 200;

  Fp8Matrix() {
    std::mt19937 random(1);
    for (auto& code : codes_) {
      do code = static_cast<std::uint8_t>(random());
      while ((code & 127) == 127);  // NaN
    }
    for (float& s : scales_) s = std::uniform_real_distribution<float>(1e-5F, 2e-3F)(random);
    matrix_ = {.quant = quant_spec(WeightType::fp8),
               .rows = kRows,
               .columns = kColumns,
               .data = bytes_of(codes_),
               .scales = {DType::f32, {3, 2}, bytes_of(scales_).data(), bytes_of(scales_).size()}};
  }

  float expected(std::int64_t row, std::int64_t column) const {
    const double scale = scales_[static_cast<std::size_t>(row / 128 * 2 + column / 128)];
    return static_cast<float>(fp8_value(codes_[static_cast<std::size_t>(row * kColumns + column)]) *
                              scale);
  }

  FlushDenormals flush_;
  std::vector<std::uint8_t> codes_ = std::vector<std::uint8_t>(kRows * kColumns);
  std::vector<float> scales_ = std::vector<float>(6);
  StoredMatrix matrix_;
};

TEST_F(Fp8Matrix, IsTheRoundedProductOfCodeAndScale) {
  std::vector<float> found(kRows * kColumns);
  matrix_.read_rows(0, kRows, DType::f32, reinterpret_cast<std::byte*>(found.data()));
  for (std::int64_t i = 0; i < kRows; ++i) {
    for (std::int64_t j = 0; j < kColumns; ++j)
      ASSERT_EQ(found[static_cast<std::size_t>(i * kColumns + j)], expected(i, j)) << i << " " << j;
  }
}

TEST_F(Fp8Matrix, ReadsAnyRows) {
  std::vector<float> found(3 * kColumns);
  matrix_.read_rows(127, 3, DType::f32, reinterpret_cast<std::byte*>(found.data()));
  for (std::int64_t i = 0; i < 3; ++i) {
    for (std::int64_t j = 0; j < kColumns; ++j)
      ASSERT_EQ(found[static_cast<std::size_t>(i * kColumns + j)], expected(127 + i, j));
  }
}

TEST_F(Fp8Matrix, CountsItsScales) { EXPECT_EQ(matrix_.bytes(), kRows * kColumns + 6U * 4); }

TEST(StoredMatrix, PlainElementsAreConverted) {
  const std::vector<float> elements = {1, 2, 3, 4, 5, 6};
  const StoredMatrix matrix =
      plain_matrix({DType::f32, {3, 2}, bytes_of(elements).data(), bytes_of(elements).size()});
  std::vector<std::uint16_t> found(4);
  matrix.read_rows(1, 2, DType::bf16, reinterpret_cast<std::byte*>(found.data()));
  EXPECT_EQ(found, (std::vector<std::uint16_t>{0x4040, 0x4080, 0x40a0, 0x40c0}));
  EXPECT_EQ(matrix.bytes(), 24U);
}

/// A tensor [2, 3, 4] of two experts' matrices, the other way round.
TEST(StoredMatrix, OneOfAStackIsReadAsRows) {
  std::vector<float> elements(24);
  for (std::size_t i = 0; i < elements.size(); ++i) elements[i] = static_cast<float>(i);
  const TensorView stack{
      DType::f32, {2, 3, 4}, bytes_of(elements).data(), bytes_of(elements).size()};
  const StoredMatrix matrix = stacked_matrix(stack, 3, {.expert = 1, .first = 1});
  EXPECT_TRUE(matrix.is_plain());
  EXPECT_FALSE(matrix.row_after_row());
  EXPECT_EQ(matrix.bytes(), 36U);
  std::vector<float> found(6);
  matrix.read_rows(1, 2, DType::f32, reinterpret_cast<std::byte*>(found.data()));
  EXPECT_EQ(found, (std::vector<float>{14, 18, 22, 15, 19, 23}));
}

TEST(StoredMatrix, OneOfAStackByRowsLiesRowAfterRow) {
  std::vector<float> elements(24);
  for (std::size_t i = 0; i < elements.size(); ++i) elements[i] = static_cast<float>(i);
  const TensorView stack{
      DType::f32, {2, 4, 3}, bytes_of(elements).data(), bytes_of(elements).size()};
  const StoredMatrix matrix = stacked_matrix(stack, 2, {.expert = 1, .first = 2, .by_rows = true});
  EXPECT_TRUE(matrix.row_after_row());
  EXPECT_EQ(matrix.bytes(), 24U);
  std::vector<float> found(6);
  matrix.read_rows(0, 2, DType::f32, reinterpret_cast<std::byte*>(found.data()));
  EXPECT_EQ(found, (std::vector<float>{18, 19, 20, 21, 22, 23}));
}

TEST(StoredMatrix, OneOfAStackOfHalvesMayLieAnywhere) {
  const std::vector<std::uint16_t> halves = {0x3f80, 0x4000, 0x4040, 0x4080};  // 1, 2, 3, 4
  std::vector<std::byte> bytes(9);
  std::memcpy(bytes.data() + 1, halves.data(), 8);
  const StoredMatrix matrix = stacked_matrix({DType::bf16, {1, 2, 2}, bytes.data() + 1, 8}, 2, {});
  std::vector<float> found(4);
  matrix.read_rows(0, 2, DType::f32, reinterpret_cast<std::byte*>(found.data()));
  EXPECT_EQ(found, (std::vector<float>{1, 3, 2, 4}));
}

/// What a code stands for, from its definition.
double code_value(Code code, std::span<const std::byte> row, std::int64_t j) {
  constexpr std::array<double, 8> kE2m1 = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
  const auto byte = [&](std::int64_t i) {
    return std::to_integer<unsigned>(row[static_cast<std::size_t>(i)]);
  };
  const unsigned half = j % 2 == 0 ? byte(j / 2) & 15U : byte(j / 2) >> 4U;
  switch (code) {
    case Code::e4m3:
      return fp8_value(byte(j));
    case Code::int8:
      return byte(j) < 128 ? byte(j) : static_cast<double>(byte(j)) - 256;
    case Code::uint4:
      return half;
    default:
      return half < 8 ? kE2m1[half] : -kE2m1[half - 8];
  }
}

class Coded : public testing::TestWithParam<QuantSpec> {};

/// Sizes that no group divides, and scales of bf16.
TEST_P(Coded, ElementIsCodeMinusZeroPointTimesScale) {
  constexpr std::int64_t kRows = 37;
  constexpr std::int64_t kColumns = 201;
  const QuantSpec spec = GetParam();
  std::mt19937 random(7);
  const auto bytes = [&](std::int64_t n, unsigned from, unsigned to) {
    std::vector<std::byte> out(static_cast<std::size_t>(n));
    for (std::byte& b : out) b = static_cast<std::byte>(from + random() % (to - from + 1));
    return out;
  };
  const std::int64_t groups = spec.groups(kColumns);
  const std::int64_t num_scales = spec.scale_rows(kRows) * groups;
  std::vector<std::byte> codes = bytes(kRows * spec.row_bytes(kColumns), 0, 255);
  if (spec.code == Code::e4m3)
    for (std::byte& code : codes)
      if ((code & std::byte{127}) == std::byte{127}) code = std::byte{126};  // no NaN
  const bool powers = spec.scale == ScaleKind::power_of_two;
  // bf16: the lower byte first; magnitudes near 1, half of them negative.
  std::vector<std::byte> scales = bytes(powers ? num_scales : 2 * num_scales, 100, 140);
  if (!powers)
    for (std::size_t i = 1; i < scales.size(); i += 2)
      scales[i] = i % 4 == 1 ? std::byte{63} : std::byte{191};
  const std::vector<std::byte> zeros = bytes(num_scales, 0, spec.code == Code::int8 ? 255 : 15);
  const StoredMatrix matrix{.quant = spec,
                            .rows = kRows,
                            .columns = kColumns,
                            .data = codes,
                            .scales = {DType::bf16, {}, scales.data(), scales.size()},
                            .zeros = zeros};
  EXPECT_EQ(matrix.bytes(), codes.size() + scales.size() + zeros.size());
  std::vector<float> found(kRows * kColumns);
  matrix.read_rows(0, kRows, DType::f32, reinterpret_cast<std::byte*>(found.data()));
  for (std::int64_t i = 0; i < kRows; ++i) {
    const auto row =
        std::span(codes).subspan(static_cast<std::size_t>(i * spec.row_bytes(kColumns)));
    for (std::int64_t j = 0; j < kColumns; ++j) {
      const std::int64_t in_row = spec.group_k == 0 ? 0 : j / spec.group_k;
      const auto at = static_cast<std::size_t>(i / spec.group_n * groups + in_row);
      double zero = spec.zero == ZeroPoint::middle ? 8 : 0;
      if (spec.zero == ZeroPoint::stored) zero = std::to_integer<int>(zeros[at]);
      if (spec.zero == ZeroPoint::stored && spec.code == Code::int8 && zero > 127) zero -= 256;
      double scale = 0;
      if (powers) {
        scale = std::ldexp(1.0, std::to_integer<int>(scales[at]) - 127);
      } else {
        const unsigned bits = std::to_integer<unsigned>(scales[2 * at]) << 16U |
                              std::to_integer<unsigned>(scales[2 * at + 1]) << 24U;
        scale = std::bit_cast<float>(bits);
      }
      ASSERT_EQ(found[static_cast<std::size_t>(i * kColumns + j)],
                static_cast<float>((code_value(spec.code, row, j) - zero) * scale))
          << i << " " << j;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Specs,
    Coded,
    testing::Values(QuantSpec{Code::e4m3, 128, 128},
                    QuantSpec{Code::e4m3, 128, 128, ScaleKind::power_of_two},
                    QuantSpec{Code::e4m3},                            // a scale for each row
                    QuantSpec{Code::e4m3, 0, std::int64_t{1} << 22},  // one for all
                    QuantSpec{Code::int8},
                    QuantSpec{Code::int8, 64, 1, ScaleKind::number, ZeroPoint::stored},
                    QuantSpec{Code::uint4, 64, 1, ScaleKind::number, ZeroPoint::middle},
                    QuantSpec{Code::uint4, 32, 1, ScaleKind::number, ZeroPoint::middle},
                    QuantSpec{Code::uint4, 128, 1, ScaleKind::number, ZeroPoint::stored},
                    QuantSpec{Code::e2m1, 32, 1, ScaleKind::power_of_two},
                    QuantSpec{Code::e2m1, 16, 1, ScaleKind::number}),
    [](const auto& param) { return "Spec" + std::to_string(param.index); });

/// The greatest and the smallest powers: products in f32 would leave its range on the way.
TEST(StoredMatrix, PowersOfTwoReachAsFarAsTheirElements) {
  const FlushDenormals flush;
  const std::vector<std::byte> codes = {std::byte{0x71}, std::byte{0x07}, std::byte{0x10}};
  const std::vector<std::byte> scales = {std::byte{255}, std::byte{0}, std::byte{254}};
  const StoredMatrix matrix{.quant = {Code::e2m1, 2, 1, ScaleKind::power_of_two},
                            .rows = 1,
                            .columns = 6,
                            .data = codes,
                            .scales = {.shape = {}, .data = scales.data(), .bytes = 3}};
  std::vector<float> found(6);
  matrix.read_rows(0, 1, DType::f32, reinterpret_cast<std::byte*>(found.data()));
  EXPECT_EQ(found,
            (std::vector<float>{std::ldexp(1.0F, 127),
                                std::numeric_limits<float>::infinity(),
                                std::ldexp(1.5F, -125),
                                0,
                                0,
                                std::ldexp(1.0F, 126)}));
}

/// Two experts of four rows of 64 elements, of which every other row is one matrix's.
TEST(StoredMatrix, Mxfp4ElementsAreCodesTimesPowersOfTwo) {
  constexpr std::int64_t kColumns = 64;
  std::vector<std::byte> codes(std::size_t{2} * 4 * kColumns / 2, std::byte{0});
  std::vector<std::byte> scales(std::size_t{2} * 4 * kColumns / 32, std::byte{127});
  const std::size_t row = 4 + 3;  // of expert 1: the second row of those that begin at 1
  codes[row * 32] = std::byte{0x21};
  codes[row * 32 + 1] = std::byte{0xf7};
  codes[row * 32 + 16] = std::byte{0x9c};
  scales[row * 2] = std::byte{129};
  scales[row * 2 + 1] = std::byte{120};
  const nlohmann::json config = {{"quant_method", "mxfp4"}};
  const auto format = read_stored_format(ConfigReader(config, "config.json"));
  const StackPlace stack{.experts = 2, .expert = 1, .all_rows = 4, .first = 1, .step = 2};
  const StoredMatrix matrix = format->assemble(
      {.name = "experts", .rows = 2, .columns = kColumns, .stack = stack},
      std::array{TensorView{.shape = {}, .data = codes.data(), .bytes = codes.size()},
                 TensorView{.shape = {}, .data = scales.data(), .bytes = scales.size()}});
  EXPECT_FALSE(matrix.is_plain());
  EXPECT_EQ(matrix.bytes(), 2U * (32 + 2));
  for (const WeightType type : weight_types())
    EXPECT_EQ(matrix.holds(type), type == WeightType::mxfp4);
  std::vector<std::byte> own(kColumns / 2);
  std::vector<float> own_scales(2);
  matrix.read_codes(1, own.data(), own_scales.data());
  EXPECT_EQ(own[0], std::byte{0x21});
  EXPECT_EQ(own[16], std::byte{0x9c});
  EXPECT_EQ(own_scales, (std::vector<float>{4, 1.0F / 128}));
  std::vector<float> found(kColumns);
  matrix.read_rows(1, 1, DType::f32, reinterpret_cast<std::byte*>(found.data()));
  std::vector<float> expected(kColumns);
  expected[0] = 0.5F * 4;
  expected[1] = 1.0F * 4;
  expected[2] = 6.0F * 4;
  expected[3] = -6.0F * 4;
  expected[32] = -2.0F / 128;
  expected[33] = -0.5F / 128;
  EXPECT_EQ(found, expected);
  matrix.read_rows(0, 1, DType::f32, reinterpret_cast<std::byte*>(found.data()));
  EXPECT_EQ(found, std::vector<float>(kColumns));
}

}  // namespace
}  // namespace ferry
