#include "ferry/checkpoint/stored_matrix.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

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
    matrix_ = {.format = StoredMatrix::Format::fp8,
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
  const StoredMatrix matrix = stacked_matrix(stack, {.expert = 1, .first = 1, .rows = 3});
  EXPECT_TRUE(matrix.is_plain());
  EXPECT_FALSE(matrix.row_after_row());
  EXPECT_EQ(matrix.bytes(), 36U);
  std::vector<float> found(6);
  matrix.read_rows(1, 2, DType::f32, reinterpret_cast<std::byte*>(found.data()));
  EXPECT_EQ(found, (std::vector<float>{14, 18, 22, 15, 19, 23}));
}

TEST(StoredMatrix, OneOfAStackOfHalvesMayLieAnywhere) {
  const std::vector<std::uint16_t> halves = {0x3f80, 0x4000, 0x4040, 0x4080};  // 1, 2, 3, 4
  std::vector<std::byte> bytes(9);
  std::memcpy(bytes.data() + 1, halves.data(), 8);
  const StoredMatrix matrix =
      stacked_matrix({DType::bf16, {1, 2, 2}, bytes.data() + 1, 8}, {.rows = 2});
  std::vector<float> found(4);
  matrix.read_rows(0, 2, DType::f32, reinterpret_cast<std::byte*>(found.data()));
  EXPECT_EQ(found, (std::vector<float>{1, 3, 2, 4}));
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
  const StoredMatrix matrix = stacked_mxfp4_matrix(
      codes, scales, 2, kColumns, {.expert = 1, .first = 1, .step = 2, .rows = 2});
  EXPECT_FALSE(matrix.is_plain());
  EXPECT_EQ(matrix.bytes(), 2U * (32 + 2));
  for (const WeightType type : weight_types()) EXPECT_FALSE(matrix.holds(type));
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
