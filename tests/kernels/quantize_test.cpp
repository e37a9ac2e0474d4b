// Quantised weights: within their bounds, and where packed_matrix.h says.
#include "kernels/gemm_testing.h"

namespace ferry::testing {

namespace {

constexpr WeightType kQuantized[] = {
    WeightType::int8, WeightType::fp8, WeightType::int4, WeightType::mxfp4};

/// A matrix [n, k] held as `type`.
struct Held {
  std::vector<float> values;  // as they were
  Weights weights;

  static Held of(WeightType type, std::int64_t k, std::int64_t n, Values kind) {
    RandomValues same(7);
    auto values = to_floats(to_type(same.row(n * k, kind), DType::bf16).data(), DType::bf16, n * k);
    RandomValues random(7);
    return {std::move(values), Weights(random, type, k, n, kind, false)};
  }

  float original(std::int64_t column, std::int64_t i) const {
    return values[static_cast<std::size_t>(column * weights.packed.k + i)];
  }

  float scale_at(std::int64_t column, std::int64_t i) const {
    return weights.scale(column, i / scale_group(weights.packed.type, weights.packed.k));
  }

  double value(std::int64_t column, std::int64_t i) const {
    return static_cast<double>(
               weights.values[static_cast<std::size_t>(column * weights.packed.k + i)]) *
           scale_at(column, i);
  }
};

/// The bounds of docs/numerics.md.
double bound(WeightType type, float x, float scale) {
  constexpr double kRoundings = 1 + 0x1p-14;  // of 1 / scale and the product, in steps
  const double step = std::abs(static_cast<double>(scale));
  if (type == WeightType::int8) return step / 2 * kRoundings;
  if (type == WeightType::fp8) return std::max(std::abs(x) / 16.0, step / 1024) * kRoundings;
  if (type == WeightType::mxfp4) return std::max(std::abs(x) / 5.0, step / 4);
  // Opposite to the greatest there is no code 8.
  return (std::abs(x / scale) > 7.5 ? step : step / 2) * kRoundings;
}

TEST(Quantize, EveryWeightIsWithinTheBound) {
  for (const WeightType type : kQuantized) {
    for (const std::int64_t k : {1, 63, 64, 65, 129, 700}) {
      for (const std::int64_t n : {1, 17, 130, 260}) {
        const Held held = Held::of(type, k, n, Values::plain);
        for (std::int64_t c = 0; c < n; ++c) {
          for (std::int64_t i = 0; i < k; ++i) {
            const float x = held.original(c, i);
            ASSERT_NEAR(held.value(c, i), x, bound(type, x, held.scale_at(c, i)))
                << weight_type_name(type) << " k " << k << " n " << n << " at " << c << ", " << i;
          }
        }
      }
    }
  }
}

TEST(Quantize, TheGreatestOfAGroupUsesTheWholeRange) {
  for (const WeightType type : kQuantized) {
    const Held held = Held::of(type, 192, 40, Values::plain);
    float greatest = 0;
    for (const float code : held.weights.values) greatest = std::max(greatest, std::abs(code));
    const bool floats = type == WeightType::mxfp4;
    EXPECT_EQ(greatest,
              floats                     ? 6
              : type == WeightType::int8 ? 127
              : type == WeightType::fp8  ? 448
                                         : 8);
  }
}

TEST(Quantize, NotANumberSpoilsWhatSharesItsScaleAndNothingElse) {
  for (const WeightType type : kQuantized) {
    constexpr std::int64_t kDepth = 256;
    std::vector<float> source(static_cast<std::size_t>(256 * kDepth), 1.0F);
    source[3 * kDepth + 2] = std::numeric_limits<float>::infinity();
    source[3 * kDepth + 1] = std::numeric_limits<float>::quiet_NaN();
    const QuantizedMatrix q =
        quantize_matrix(type, as_bytes(source.data()), DType::f32, 256, kDepth);
    const std::int64_t groups = weight_groups(type, kDepth);
    const std::int64_t spoilt = 3 / rows_per_scale(type) * groups;
    // mxfp4 has no scale that is NaN: the group becomes infinite.
    for (std::int64_t i = 0; i < static_cast<std::int64_t>(q.scales.size()); ++i) {
      const float scale = q.scales[static_cast<std::size_t>(i)];
      EXPECT_EQ(std::isfinite(scale), i != spoilt) << i;
      EXPECT_EQ(std::isnan(scale), i == spoilt && type != WeightType::mxfp4) << i;
    }
  }
}

TEST(Quantize, ZerosAndTinyNumbersKeepFiniteScales) {
  for (const WeightType type : kQuantized) {
    for (const float x : {0.0F, 1e-39F, -1e-38F}) {
      const std::vector<float> source(128, x);
      const QuantizedMatrix q = quantize_matrix(type, as_bytes(source.data()), DType::f32, 2, 64);
      for (const float scale : q.scales) EXPECT_GE(std::abs(scale), 0x1p-126F);
    }
  }
}

/// Code and scale of (k, column) by the layout that packed_matrix.h states.
float packed_code(const PackedMatrix& m, std::int64_t k, std::int64_t column) {
  const auto* panel = reinterpret_cast<const std::uint8_t*>(m.data) +
                      column / kPanelColumns * static_cast<std::int64_t>(m.panel_bytes());
  const std::int64_t c = column % kPanelColumns;
  if (m.type == WeightType::int8) {
    const std::uint8_t code = panel[(k / 4 * kPanelColumns + c) * 4 + k % 4];
    return static_cast<float>(code) - 128.0F;
  }
  const std::uint8_t both = panel[(k / 8 * kPanelColumns + c) * 4 + k % 4];
  return static_cast<float>(k % 8 < 4 ? both & 15 : both >> 4) - 8.0F;
}

TEST(PackMatrix, PutsCodesAndScalesAtTheirPlacesAndZerosElsewhere) {
  for (const WeightType type : {WeightType::int8, WeightType::int4}) {
    for (const std::int64_t k : {1, 63, 70, 200}) {
      const std::int64_t n = 40;
      const Held held = Held::of(type, k, n, Values::plain);
      const PackedMatrix& m = held.weights.packed;
      for (std::int64_t i = 0; i < round_up(k, kIntKBlock); ++i) {
        for (std::int64_t column = 0; column < round_up(n, kPanelColumns); ++column) {
          const bool inside = i < k && column < n;
          const float want =
              inside ? held.weights.values[static_cast<std::size_t>(column * k + i)] : 0.0F;
          ASSERT_EQ(packed_code(m, i, column), want) << "k " << i << " column " << column;
        }
      }
      const std::int64_t groups = weight_groups(type, k);
      const auto* scales = reinterpret_cast<const float*>(
          m.data + static_cast<std::int64_t>(m.panel_bytes()) - groups * 64);
      for (std::int64_t g = 0; g < groups; ++g)
        for (std::int64_t c = 0; c < kPanelColumns; ++c)
          ASSERT_EQ(scales[g * kPanelColumns + c], held.weights.scale(c, g));
    }
  }
}

/// Products with one code of NaN: its column is NaN in every row, even where the row is 0 there,
/// and no other is touched.
TEST(PackMatrix, ANanAmongFp8CodesSpoilsItsColumn) {
  const FlushDenormals flush;
  constexpr std::int64_t kDepth = 200;
  constexpr std::int64_t kColumns = 20;
  constexpr std::int64_t kRows = 20;
  const std::vector<std::byte> in(kRows * kDepth * 2);  // zeros
  for (const Isa isa : kAllIsas) {
    if (!isa_supported(isa)) continue;
    const Kernels& kernels = kernels_for(isa);
    for (const std::byte nan : {std::byte{0x7f}, std::byte{0xff}}) {
      std::vector<std::byte> codes(kColumns * kDepth, std::byte{0x38});
      codes[17 * kDepth + 190] = nan;
      const std::vector<float> scales(2, 1.0F);
      PackedMatrix m{WeightType::fp8, kDepth, kColumns, nullptr};
      const Buffer packed(static_cast<std::size_t>(m.panels()) * m.panel_bytes());
      pack_matrix({.type = WeightType::fp8,
                   .source = codes.data(),
                   .scales = scales.data(),
                   .scale_rows = kFp8Block,
                   .k = kDepth,
                   .n = kColumns,
                   .out = packed.data()});
      m.data = packed.data();
      for (const std::int64_t rows : {std::int64_t{1}, kRows}) {
        std::vector<float> out(kRows * kColumns);
        std::vector<std::byte> scratch(kernels.gemm_scratch_bytes(WeightType::fp8, kDepth));
        GemmArgs args;
        args.in = {in.data(), kDepth * 2, nullptr};
        args.rows = rows;
        args.weights = &m;
        args.last_panel = m.panels();
        args.out = {as_bytes(out.data()), kColumns * 4};
        args.scratch = scratch;
        kernels.gemm(args);
        for (std::int64_t i = 0; i < rows * kColumns; ++i) {
          const float got = out[static_cast<std::size_t>(i)];
          EXPECT_EQ(std::isnan(got), i % kColumns == 17) << isa_name(isa) << " element " << i;
        }
      }
    }
  }
}

}  // namespace

}  // namespace ferry::testing
