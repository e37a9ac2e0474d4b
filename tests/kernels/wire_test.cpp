// Rows as they travel: formats, bytes of every instruction set, error bounds, and what becomes of
// numbers that are none.
#include "ferry/wire.h"

#include <cmath>
#include <limits>

#include "ferry/core/error.h"
#include "ferry/core/threads.h"
#include "kernels/kernel_testing.h"

namespace ferry::testing {

namespace {

constexpr std::int64_t kLengths[] = {1, 2, 3, 7, 16, 33, 127, 128, 129, 200, 256, 300, 1000};
constexpr DType kElements[] = {DType::f32, DType::bf16};
constexpr WireType kQuantized[] = {
    WireType::fp8, WireType::fp8_pow2, WireType::int8, WireType::int8_block};
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

/// A travelling row of these values, with bytes behind it that nobody may touch.
std::vector<std::byte> encoded(const Kernels& kernels,
                               const std::vector<std::byte>& in,
                               DType type,
                               WireType wire,
                               std::int64_t n) {
  constexpr std::byte kUntouched{0xa5};
  const std::size_t bytes = wire_row_bytes(wire, n);
  std::vector<std::byte> out(bytes + 64, kUntouched);
  kernels.encode(in.data(), type, out.data(), wire, n);
  for (std::size_t i = bytes; i < out.size(); ++i)
    EXPECT_EQ(out[i], kUntouched) << wire_type_name(wire) << " n " << n << " wrote beyond its row";
  out.resize(bytes);
  return out;
}

std::vector<std::byte> encoded(const std::vector<float>& x, WireType wire) {
  return encoded(kernels_for(Isa::scalar),
                 to_type(x, DType::f32),
                 DType::f32,
                 wire,
                 static_cast<std::int64_t>(x.size()));
}

std::vector<float> decoded(const std::vector<std::byte>& row, WireType wire, std::int64_t n) {
  std::vector<float> out(static_cast<std::size_t>(n));
  kernels_for(Isa::scalar).decode(row.data(), wire, as_bytes(out.data()), DType::f32, n);
  return out;
}

std::vector<float> there_and_back(const std::vector<float>& x, WireType wire) {
  return decoded(encoded(x, wire), wire, static_cast<std::int64_t>(x.size()));
}

/// The scale of value i of a row of n, as a number; read through the public description alone.
double scale_of(const std::vector<std::byte>& row, WireType wire, std::int64_t n, std::int64_t i) {
  const WireScales scales = wire_scales(wire, n);
  const auto block = static_cast<std::size_t>(i / scales.values);
  const std::byte* at = row.data() + scales.offset + block * scales.bytes;
  if (scales.bytes == 1) return std::ldexp(1.0, static_cast<int>(*at) - 127);
  float scale;
  std::memcpy(&scale, at, sizeof scale);
  return scale;
}

/// What a code of e4m3fn stands for: sign, four bits of exponent (bias 7), three of mantissa.
double fp8_value(unsigned code) {
  const unsigned exponent = code >> 3 & 15;
  const unsigned mantissa = code & 7;
  if ((code & 127U) == 127) return kNan;
  const double magnitude = exponent == 0
                               ? std::ldexp(mantissa, -9)
                               : std::ldexp(8 + mantissa, static_cast<int>(exponent) - 10);
  return (code & 128U) != 0 ? -magnitude : magnitude;
}

/// The nearest code by trying all; between two equally near the even one.
unsigned nearest_fp8(double x) {
  unsigned best = 0;
  for (unsigned code = 0; code < 127; ++code) {
    const double far = std::abs(fp8_value(code) - std::abs(x));
    const double best_far = std::abs(fp8_value(best) - std::abs(x));
    if (far < best_far || (far == best_far && code % 2 == 0)) best = code;
  }
  return best | (std::signbit(x) ? 128U : 0U);
}

bool is_fp8(WireType wire) { return wire == WireType::fp8 || wire == WireType::fp8_pow2; }

/// The formats' definition in double precision, rounded to f32 where the definition rounds.
std::vector<std::byte> straightforward(const std::vector<float>& x, WireType wire) {
  const auto n = static_cast<std::int64_t>(x.size());
  const WireScales scales = wire_scales(wire, n);
  std::vector<std::byte> row(wire_row_bytes(wire, n));
  for (std::int64_t block = 0; block < scales.count; ++block) {
    const auto first = static_cast<std::size_t>(block * scales.values);
    const std::size_t last = std::min(first + static_cast<std::size_t>(scales.values), x.size());
    double most = 0;
    for (std::size_t i = first; i < last; ++i) most = std::max(most, std::abs(double{x[i]}));
    auto scale = static_cast<float>(most / (is_fp8(wire) ? 448 : 127));
    if (most < 0x1p-126 || scale < 0x1p-126F) scale = 0x1p-126F;
    std::byte* at = row.data() + scales.offset + static_cast<std::size_t>(block) * scales.bytes;
    if (scales.bytes == 1) {
      int exponent = -126;
      while (std::ldexp(1.0, exponent) < scale) ++exponent;
      scale = std::ldexp(1.0F, exponent);
      *at = static_cast<std::byte>(exponent + 127);
    } else {
      std::memcpy(at, &scale, sizeof scale);
    }
    const auto inverse = static_cast<float>(1.0 / scale);
    for (std::size_t i = first; i < last; ++i) {
      const double value = std::abs(x[i]) < 0x1p-126F ? std::copysign(0.0F, x[i]) : x[i];
      const auto scaled = static_cast<float>(value * inverse);
      row[i] = is_fp8(wire) ? static_cast<std::byte>(nearest_fp8(scaled))
                            : static_cast<std::byte>(static_cast<int>(std::nearbyint(scaled)));
    }
  }
  return row;
}

class WireOfIsa : public PerIsa {};

TEST_P(WireOfIsa, EncodesAsScalar) {
  RandomValues random(21);
  for (const WireType wire : wire_types()) {
    for (const DType type : kElements) {
      for (const std::int64_t n : kLengths) {
        for (const Values values : {Values::plain, Values::mixed, Values::special}) {
          const auto in = to_type(random.row(n, values), type);
          ASSERT_EQ(encoded(fast(), in, type, wire, n), encoded(scalar(), in, type, wire, n))
              << dtype_name(type) << " to " << wire_type_name(wire) << " n " << n;
        }
      }
    }
  }
}

TEST_P(WireOfIsa, EncodesEveryKindOfFloatAsScalar) {
  std::vector<float> in;
  for (std::uint64_t bits = 0; bits < (1ULL << 32); bits += 99'991) {
    const auto x = std::bit_cast<float>(static_cast<std::uint32_t>(bits));
    if (std::isfinite(x)) in.push_back(x);
  }
  const auto n = static_cast<std::int64_t>(in.size());
  const auto bytes = to_type(in, DType::f32);
  for (const WireType wire : kQuantized) {
    ASSERT_EQ(encoded(fast(), bytes, DType::f32, wire, n),
              encoded(scalar(), bytes, DType::f32, wire, n))
        << wire_type_name(wire);
  }
}

TEST_P(WireOfIsa, DecodesEveryByteAndScaleAsScalar) {
  constexpr std::int64_t kValues = 256 * kWireBlock;
  for (const WireType wire : kQuantized) {
    std::vector<std::byte> row(wire_row_bytes(wire, kValues));
    for (std::size_t i = 0; i < row.size(); ++i) row[i] = static_cast<std::byte>(i + i / 256);
    for (const DType type : kElements) {
      for (const std::int64_t n : {kValues, std::int64_t{1001}}) {
        std::vector<std::byte> got(static_cast<std::size_t>(n) * dtype_bytes(type));
        std::vector<std::byte> want(got.size());
        fast().decode(row.data(), wire, got.data(), type, n);
        scalar().decode(row.data(), wire, want.data(), type, n);
        ASSERT_TRUE(same_bytes(got, want, type)) << wire_type_name(wire) << " n " << n;
      }
    }
  }
}

/// Rows behind pointers, and what the weighted sum of them gives.
class Sum {
 public:
  Sum(RandomValues& random, WireType in_type, DType out_type, std::int64_t k, std::int64_t n)
      : in_type_(in_type), out_type_(out_type), n_(n), weights_(random.row(k, Values::mixed)) {
    for (std::int64_t i = 0; i < k; ++i)
      rows_.push_back(encoded(random.row(n, Values::mixed), in_type));
    for (const auto& row : rows_) pointers_.push_back(row.data());
    before_ = to_type(random.row(n), out_type);
  }

  std::vector<std::byte> run(const Kernels& kernels, bool accumulate) const {
    return run(kernels, accumulate, pointers_, in_type_);
  }

  /// The same over rows that were decoded before.
  std::vector<std::byte> run_decoded(const Kernels& kernels, bool accumulate) const {
    std::vector<std::vector<float>> rows;
    std::vector<const std::byte*> pointers;
    for (const auto& row : rows_) rows.push_back(decoded(row, in_type_, n_));
    for (const auto& row : rows) pointers.push_back(as_bytes(row.data()));
    return run(kernels, accumulate, pointers, WireType::f32);
  }

 private:
  std::vector<std::byte> run(const Kernels& kernels,
                             bool accumulate,
                             const std::vector<const std::byte*>& rows,
                             WireType type) const {
    auto out = before_;
    kernels.weighted_sum({.rows = rows.data(),
                          .weights = weights_.data(),
                          .k = static_cast<std::int64_t>(rows.size()),
                          .n = n_,
                          .in_type = type,
                          .out = out.data(),
                          .out_type = out_type_,
                          .accumulate = accumulate});
    return out;
  }

  WireType in_type_;
  DType out_type_;
  std::int64_t n_;
  std::vector<float> weights_;
  std::vector<std::vector<std::byte>> rows_;
  std::vector<const std::byte*> pointers_;
  std::vector<std::byte> before_;
};

TEST_P(WireOfIsa, WeightedSumEqualsScalarAndDecodedRows) {
  RandomValues random(7);
  for (const WireType in : wire_types()) {
    for (const DType out : {DType::f32, DType::bf16, DType::f16}) {
      for (const std::int64_t n : kLengths) {
        for (const std::int64_t k : {0, 1, 8}) {
          const Sum sum(random, in, out, k, n);
          for (const bool accumulate : {false, true}) {
            const auto got = sum.run(fast(), accumulate);
            ASSERT_TRUE(same_bytes(got, sum.run(scalar(), accumulate), out))
                << wire_type_name(in) << " to " << dtype_name(out) << " n " << n << " k " << k;
            ASSERT_TRUE(same_bytes(got, sum.run_decoded(scalar(), accumulate), out))
                << wire_type_name(in) << " to " << dtype_name(out) << " n " << n << " k " << k;
          }
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Kernels, WireOfIsa, ::testing::ValuesIn(kFasterIsas), isa_test_name);

TEST(ScalarWeightedSum, AddsInOrderAndAccumulatesLast) {
  const FlushDenormals flush;
  const float rows[3] = {0x1p24F, 1, -0x1p24F};
  const std::byte* pointers[3] = {as_bytes(&rows[0]), as_bytes(&rows[1]), as_bytes(&rows[2])};
  const float weights[3] = {1, 1, 1};
  float out = 5;
  WeightedSumArgs args{.rows = pointers, .weights = weights, .k = 3, .n = 1, .out = as_bytes(&out)};
  kernels_for(Isa::scalar).weighted_sum(args);
  EXPECT_EQ(out, 0.0F);  // 2^24 + 1 is not an f32
  out = 5;
  args.accumulate = true;
  kernels_for(Isa::scalar).weighted_sum(args);
  EXPECT_EQ(out, 5.0F);
}

TEST(WireType, NamesLeadBack) {
  EXPECT_EQ(wire_types().size(), 6U);
  for (const WireType type : wire_types())
    EXPECT_EQ(parse_wire_type(wire_type_name(type), "--dispatch-wire"), type);
  try {
    parse_wire_type("fp4", "--dispatch-wire");
    FAIL() << "no error";
  } catch (const ConfigError& e) {
    const std::string said = e.what();
    EXPECT_NE(said.find("--dispatch-wire fp4"), std::string::npos) << said;
    EXPECT_NE(said.find("f32, bf16, fp8, fp8_pow2, int8, int8_block"), std::string::npos) << said;
  }
}

TEST(WireType, PlainOnesAreElementTypes) {
  for (const WireType type : wire_types()) {
    EXPECT_EQ(is_quantized(type), !element_type(type).has_value());
    if (!is_quantized(type)) {
      EXPECT_EQ(wire_type(*element_type(type)), type);
    }
  }
  EXPECT_EQ(element_type(WireType::bf16), DType::bf16);
  EXPECT_THROW(wire_type(DType::f16), ConfigError);
}

TEST(WireType, RowsHaveTheirScalesBehindThem) {
  EXPECT_EQ(wire_row_bytes(WireType::f32, 7), 28U);
  EXPECT_EQ(wire_row_bytes(WireType::bf16, 7), 14U);
  EXPECT_EQ(wire_row_bytes(WireType::fp8, 7168), 7168U + 56 * 4);
  EXPECT_EQ(wire_row_bytes(WireType::fp8_pow2, 7168), 7168U + 64);  // 56 scales
  EXPECT_EQ(wire_row_bytes(WireType::int8, 7168), 7168U + 16);
  EXPECT_EQ(wire_row_bytes(WireType::int8_block, 129), 144U);  // 129, 3 zeros, two scales, 4 zeros
  EXPECT_EQ(wire_row_bytes(WireType::fp8, 1), 16U);
  EXPECT_EQ(wire_scales(WireType::fp8, 129).offset, 132U);
  EXPECT_EQ(wire_scales(WireType::fp8, 129).count, 2);
  EXPECT_EQ(wire_scales(WireType::fp8_pow2, 129).bytes, 1U);
  EXPECT_EQ(wire_scales(WireType::int8, 129).count, 1);
  EXPECT_EQ(wire_scales(WireType::int8, 129).values, 129);
  EXPECT_EQ(wire_scales(WireType::bf16, 129).count, 0);
}

TEST(ScalarWire, EqualsTheStraightforwardDefinition) {
  const FlushDenormals flush;
  RandomValues random(22);
  for (const WireType wire : kQuantized) {
    for (const std::int64_t n : kLengths) {
      for (const Values values : {Values::plain, Values::mixed}) {
        const auto x = random.row(n, values);
        ASSERT_EQ(encoded(x, wire), straightforward(x, wire)) << wire_type_name(wire) << " n " << n;
      }
    }
  }
}

TEST(ScalarWire, ErrorsStayWithinTheirBounds) {
  const FlushDenormals flush;
  RandomValues random(23);
  for (const WireType wire : kQuantized) {
    for (const std::int64_t n : kLengths) {
      for (const float factor : {1.0F, 1e-30F, 1e30F}) {
        auto x = random.row(n);
        for (float& v : x) v *= factor;
        const auto row = encoded(x, wire);
        const auto got = decoded(row, wire, n);
        const WireScales scales = wire_scales(wire, n);
        for (std::int64_t i = 0; i < n; ++i) {
          const auto at = static_cast<std::size_t>(i);
          const std::int64_t first = i / scales.values * scales.values;
          double most = 0;
          for (std::int64_t j = first; j < std::min(n, first + scales.values); ++j)
            most = std::max(most, std::abs(double{x[static_cast<std::size_t>(j)]}));
          const double scale = scale_of(row, wire, n, i);
          const double least = most / (is_fp8(wire) ? 448 : 127);
          ASSERT_GE(scale, least * (1 - 0x1p-23)) << wire_type_name(wire);
          ASSERT_LE(scale, least * (wire == WireType::fp8_pow2 ? 2 : 1) * (1 + 0x1p-23));
          ASSERT_NEAR(got[at], x[at], wire_error_bound(wire, x[at], most))
              << wire_type_name(wire) << " at " << i;
        }
      }
    }
  }
}

/// Values halfway between the topmost codes, where the roundings of scale and product weigh most.
TEST(ScalarWire, ErrorsStayWithinTheirBoundsBetweenTheTopmostCodes) {
  RandomValues random(29);
  double worst = 0;
  for (int i = 0; i < 2000; ++i) {
    const float most = 1 + std::abs(random.row(1)[0]);
    for (const float code : {126.5F, 125.5F, 118.5F}) {
      std::vector<float> x{most, most * (code / 127)};
      for (const int towards : {0, 1000}) {
        for (int ulp = 0; ulp < 4; ++ulp) {
          const auto got = decoded(encoded(x, WireType::int8), WireType::int8, 2);
          const double error = std::abs(double{got[1]} - double{x[1]});
          worst = std::max(worst, error / (double{most} / 254));
          ASSERT_LE(error, wire_error_bound(WireType::int8, x[1], most)) << x[1] << " of " << most;
          x[1] = std::nextafter(x[1], static_cast<float>(towards));
        }
      }
    }
  }
  EXPECT_GT(worst, 1 + 0x1p-16) << "roundings show, so the bound is no wider than it has to be";
}

TEST(WireType, ErrorBoundsAreTheDocumentedOnes) {
  EXPECT_EQ(wire_error_bound(WireType::f32, 3, 5), 0);
  EXPECT_EQ(wire_error_bound(WireType::bf16, -3, 5), 3.0 / 256);
  EXPECT_NEAR(wire_error_bound(WireType::fp8, -3, 5), 3.0 / 16, 1e-5);
  EXPECT_NEAR(wire_error_bound(WireType::fp8, 0, 5), 5.0 / 458'752, 1e-9);
  EXPECT_NEAR(wire_error_bound(WireType::fp8_pow2, 0, 5), 5.0 / 229'376, 1e-9);
  EXPECT_NEAR(wire_error_bound(WireType::int8, 3, 5), 5.0 / 254, 1e-5);
  EXPECT_NEAR(wire_error_bound(WireType::int8_block, 3, 5), 5.0 / 254, 1e-5);
}

TEST(ScalarWire, EveryFp8CodeSurvives) {
  const FlushDenormals flush;
  for (const WireType wire : {WireType::fp8, WireType::fp8_pow2}) {
    for (const float scale : {1.0F, 0x1p-100F, 0x1p40F}) {
      for (unsigned code = 0; code < 256; ++code) {
        if ((code & 127U) == 127) continue;
        const auto x = static_cast<float>(fp8_value(code)) * scale;
        const std::vector<float> values = {x, 448 * scale};
        const auto row = encoded(values, wire);
        ASSERT_EQ(scale_of(row, wire, 2, 0), scale);
        ASSERT_EQ(row[0], static_cast<std::byte>(code)) << wire_type_name(wire);
        const auto back = decoded(row, wire, 2);
        ASSERT_EQ(std::bit_cast<std::uint32_t>(back[0]), std::bit_cast<std::uint32_t>(x));
      }
    }
  }
}

TEST(ScalarWire, EveryInt8Survives) {
  const FlushDenormals flush;
  for (const WireType wire : {WireType::int8, WireType::int8_block}) {
    for (int value = -127; value <= 127; ++value) {
      const std::vector<float> x = {static_cast<float>(value) * 0x1p-20F, 127 * 0x1p-20F};
      ASSERT_EQ(there_and_back(x, wire), x) << wire_type_name(wire);
    }
  }
}

TEST(ScalarWire, Fp8NanCodesAreNan) {
  for (const WireType wire : {WireType::fp8, WireType::fp8_pow2}) {
    auto row = encoded({1, 2, 3, 4}, wire);
    row[1] = std::byte{0x7f};
    row[2] = std::byte{0xff};
    const auto x = decoded(row, wire, 4);
    EXPECT_NEAR(x[0], 1, 0.07);
    EXPECT_TRUE(std::isnan(x[1]) && std::isnan(x[2]));
    EXPECT_NEAR(x[3], 4, 0.01);
  }
}

TEST(ScalarWire, WhatIsNoNumberMakesItsBlockNanAndNoOther) {
  const FlushDenormals flush;
  RandomValues random(24);
  constexpr std::int64_t kValues = 300;
  for (const WireType wire : kQuantized) {
    for (const float bad : {kNan, -kNan, kInfinity, -kInfinity}) {
      for (const std::int64_t at : {0, 127, 128, 299}) {
        auto x = random.row(kValues);
        x[static_cast<std::size_t>(at)] = bad;
        const auto got = there_and_back(x, wire);
        const std::int64_t together = wire_scales(wire, kValues).values;
        for (std::int64_t i = 0; i < kValues; ++i) {
          ASSERT_EQ(std::isnan(got[static_cast<std::size_t>(i)]), i / together == at / together)
              << wire_type_name(wire) << ": " << bad << " at " << at << ", read at " << i;
        }
      }
    }
  }
}

TEST(ScalarWire, ZerosAndDenormalsArriveAsZeros) {
  const FlushDenormals flush;
  const auto tiny = std::numeric_limits<float>::denorm_min();
  for (const WireType wire : kQuantized) {
    for (const auto& x : {std::vector<float>{0, -0.0F, 0}, {tiny, -tiny, 0x1.8p-127F}}) {
      const auto row = encoded(x, wire);
      EXPECT_EQ(scale_of(row, wire, 3, 0), 0x1p-126) << wire_type_name(wire);
      for (const float value : decoded(row, wire, 3)) EXPECT_EQ(value, 0.0F);
    }
  }
}

TEST(ScalarWire, LargeNumbersStayFiniteAndTheLargestDoNotGetSmall) {
  const FlushDenormals flush;
  for (const WireType wire : kQuantized) {
    for (const float x : {0x1.cp127F, -0x1.cp127F, 0x1.7fp127F, 0x1.81p127F}) {
      for (const float value : there_and_back({x, x / 2, 0}, wire))
        EXPECT_TRUE(std::isfinite(value)) << wire_type_name(wire) << " " << x;
    }
    const float got = there_and_back({std::numeric_limits<float>::max()}, wire)[0];
    if (wire == WireType::fp8_pow2)
      EXPECT_TRUE(std::isnan(got));  // 2^120 * 448 is no number
    else
      EXPECT_GE(got, 0x1.cp127F) << wire_type_name(wire);
  }
}

TEST(ScalarWire, PaddingIsZero) {
  for (const WireType wire : kQuantized) {
    for (const std::int64_t n : kLengths) {
      const std::vector<float> ones(static_cast<std::size_t>(n), 1.0F);
      const auto row = encoded(ones, wire);
      const WireScales scales = wire_scales(wire, n);
      for (auto i = static_cast<std::size_t>(n); i < row.size(); ++i) {
        const std::size_t end =
            scales.offset + static_cast<std::size_t>(scales.count) * scales.bytes;
        if (i < scales.offset || i >= end) {
          EXPECT_EQ(row[i], std::byte{0}) << wire_type_name(wire) << " n " << n << " at " << i;
        }
      }
    }
  }
}

}  // namespace

}  // namespace ferry::testing
