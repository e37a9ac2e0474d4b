// gemm: every instruction set gives the scalar one's bytes, and those are the right ones.
#if defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#include <cmath>

#include "ferry/core/threads.h"
#include "kernels/gemm_testing.h"
#include "support/long_tests.h"

namespace ferry::testing {

namespace {

/// As gpt-oss has it.
constexpr Gating kClamped{.kind = Gating::Kind::clamped, .alpha = 1.702F, .limit = 7.0F};

/// Varies what does not multiply the work: each combination comes up with many shapes.
Case with_variant(Case c, std::uint32_t variant) {
  if (variant % 2 == 1 && c.n % 2 == 0) c.epilogue = Epilogue::gated;
  c.out_type = variant / 2 % 2 == 0 ? DType::f32 : DType::bf16;
  c.bias = variant / 4 % 2 == 1;
  c.pointers = variant / 8 % 2 == 1;
  c.values = variant / 16 % 2 == 0 ? Values::mixed : Values::plain;
  if (variant / 32 % 2 == 1) c.gating = kClamped;
  return c;
}

/// Pairs of k as bf16, fp8 and mxfp4 weights sum them, over one group.
struct PairGroup {
  std::int64_t first = 0;
  std::int64_t end = 0;
  float factor = 1;  // that weights are multiplied with
};

float pair_sum(const Problem& problem,
               const Case& c,
               std::int64_t r,
               std::int64_t column,
               const PairGroup& group) {
  float sum = 0;
  for (std::int64_t block = group.first; block < group.end; block += 32) {
    float chains[2] = {0, 0};
    for (std::int64_t i = block; i < block + 32; ++i) {
      const float x = i < c.k ? problem.in(r, i) : 0;
      const float w = i < c.k ? problem.weight(i, column) * group.factor : 0;
      chains[i % 2] = std::fmaf(x, w, chains[i % 2]);
    }
    const float both = chains[0] + chains[1];
    sum = sum + both;
  }
  return sum;
}

/// A row rounded to int8, as docs/numerics.md says.
struct RoundedRow {
  float scale = 0;
  std::vector<int> codes;

  RoundedRow(const Problem& problem, const Case& c, std::int64_t r) {
    float greatest = 0;
    for (std::int64_t i = 0; i < c.k; ++i)
      greatest = std::max(greatest, std::abs(problem.in(r, i)));
    scale = std::max(greatest / 127.0F, 0x1p-126F);
    const float inverse = 1.0F / scale;
    for (std::int64_t i = 0; i < c.k; ++i)
      codes.push_back(static_cast<int>(std::nearbyint(problem.in(r, i) * inverse)));
  }
};

float int_sum(const Problem& problem, const Case& c, std::int64_t r, std::int64_t column) {
  const RoundedRow row(problem, c, r);
  const std::int64_t group = c.type == WeightType::int4 ? kInt4Group : c.k;
  float total = 0;
  for (std::int64_t g = 0; g * group < c.k; ++g) {
    std::int64_t exact = 0;
    for (std::int64_t i = g * group; i < std::min(c.k, (g + 1) * group); ++i)
      exact += row.codes[static_cast<std::size_t>(i)] *
               static_cast<std::int64_t>(problem.weight(i, column));
    total = std::fmaf(static_cast<float>(exact), problem.weights().scale(column, g), total);
  }
  return total * row.scale;
}

/// The same sums by plain loops, straight from the contract in kernels.h.
float contract_sum(const Problem& problem, const Case& c, std::int64_t r, std::int64_t column) {
  float sum = 0;
  switch (c.type) {
    case WeightType::f32:
      for (std::int64_t i = 0; i < c.k; ++i)
        sum = std::fmaf(problem.in(r, i), problem.weight(i, column), sum);
      return sum;
    case WeightType::bf16:
      return pair_sum(problem, c, r, column, {.end = c.k});
    case WeightType::fp8:
      for (std::int64_t first = 0; first < c.k; first += kFp8Block) {
        const PairGroup group{first, std::min(c.k, first + kFp8Block), 0x1p-8F};
        const float part = pair_sum(problem, c, r, column, group);
        sum = std::fmaf(part, problem.weights().scale(column, first / kFp8Block) * 0x1p8F, sum);
      }
      return sum;
    case WeightType::mxfp4:
      for (std::int64_t first = 0; first < c.k; first += kMxfp4Group) {
        const float scale = problem.weights().scale(column, first / kMxfp4Group);
        sum = sum + pair_sum(problem, c, r, column, {first, first + kMxfp4Group, scale});
      }
      return sum;
    case WeightType::int8:
    case WeightType::int4:
      return int_sum(problem, c, r, column);
    default:  // ggml's: ggml_test.cpp
      break;
  }
  return sum;
}

constexpr std::int64_t kRows[] = {0, 1, 2, 3, 15, 16, 17, 31, 33, 64, 100};
constexpr std::int64_t kDepths[] = {1, 8, 31, 32, 33, 72, 128, 200};
constexpr std::int64_t kColumns[] = {1, 15, 16, 17, 40, 64, 72};

#ifdef FERRY_SANITIZE
constexpr std::uint32_t kEveryNthShape = 8;  // sanitizers make the scalar kernel a crawl
#else
constexpr std::uint32_t kEveryNthShape = 1;
#endif

class GemmOfFasterIsa : public GemmOfIsa {};

TEST_P(GemmOfFasterIsa, EqualsScalarAsBytesOnRaggedShapes) {
  std::uint32_t variant = 0;
  for (const WeightType type : weight_types()) {
    for (const std::int64_t rows : kRows) {
      for (const std::int64_t k : kDepths) {
        for (const std::int64_t n : kColumns) {
          variant = variant * 1664525 + 1013904223;
          if ((variant >> 16) % kEveryNthShape != 0) continue;
          const Case c = with_variant({.type = type, .rows = rows, .k = k, .n = n}, variant >> 24);
          const Problem problem(c, variant);
          ASSERT_TRUE(same_bytes(problem.run(fast()), problem.run(scalar()), c.out_type)) << c;
        }
      }
    }
  }
}

TEST_P(GemmOfFasterIsa, EqualsScalarOnLongSums) {
  for (const WeightType type : weight_types()) {
    for (const std::int64_t rows : {1, 20, 70}) {
      if (slow_run() && rows > 20) continue;
      const Case c{.type = type, .rows = rows, .k = 2080, .n = 48, .values = Values::mixed};
      const Problem problem(c);
      EXPECT_TRUE(same_bytes(problem.run(fast()), problem.run(scalar()), c.out_type)) << c;
    }
  }
}

// Two products of the greatest codes nearly fill a word of 16 bits, in which some instructions add.
TEST_P(GemmOfFasterIsa, EqualsScalarOnTheGreatestCodes) {
  for (const WeightType type : weight_types()) {
    for (const std::int64_t rows : {1, 3, 20}) {
      const Case c{.type = type, .rows = rows, .k = 517, .n = 48, .values = Values::extreme};
      const Problem problem(c);
      EXPECT_TRUE(same_bytes(problem.run(fast()), problem.run(scalar()), c.out_type)) << c;
    }
  }
}

TEST_P(GemmOfFasterIsa, TakesMoreRowsThanItsScratchHolds) {
  for (const WeightType type : weight_types()) {
    const Case c{.type = type, .rows = 300, .k = 40, .n = 16};
    const Problem problem(c);
    EXPECT_TRUE(same_bytes(problem.run(fast()), problem.run(scalar()), c.out_type)) << c;
  }
}

#if defined(__x86_64__)

TEST(Avx512Gemm, GivesTheSameBytesWithoutVnni) {
  if (!isa_supported(Isa::avx512)) GTEST_SKIP() << "this machine has no avx512";
  const FlushDenormals flush;
  for (const WeightType type : {WeightType::int8, WeightType::int4}) {
    for (const std::int64_t rows : {1, 2, 7}) {
      const Case c{.type = type, .rows = rows, .k = 200, .n = 72, .values = Values::mixed};
      const Problem problem(c);
      EXPECT_TRUE(
          same_bytes(problem.run(cpu::kAvx512), problem.run(kernels_for(Isa::scalar)), c.out_type))
          << c;
    }
  }
}

#elif defined(__aarch64__)

/// Products with int8 and int4 weights as processors of every age have them.
std::vector<Kernels> neon_tables() {
  std::vector<Kernels> tables{cpu::kNeon};
  if ((getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0) {
    tables.push_back(cpu::kNeon);
    tables.back().gemm = cpu::sdot_gemm;
  }
  if (kernels_for(Isa::neon).gemm == cpu::smmla_gemm) tables.push_back(kernels_for(Isa::neon));
  return tables;
}

TEST(NeonGemm, GivesTheSameBytesWithAndWithoutSdotAndSmmla) {
  const FlushDenormals flush;
  for (const WeightType type : {WeightType::int8, WeightType::int4}) {
    for (const Values values : {Values::mixed, Values::extreme}) {
      for (const std::int64_t rows : {1, 2, 3, 4, 7, 40}) {
        const Case c{.type = type, .rows = rows, .k = 200, .n = 72, .values = values};
        const Problem problem(c);
        const auto expected = problem.run(kernels_for(Isa::scalar));
        for (const Kernels& table : neon_tables())
          EXPECT_TRUE(same_bytes(problem.run(table), expected, c.out_type)) << c;
      }
    }
  }
}

#endif

TEST_P(GemmOfFasterIsa, SurvivesInfinitiesAndNan) {
  for (const WeightType type : weight_types()) {
    for (const std::int64_t rows : {1, 20}) {
      for (const int way : {0, 1, 2}) {
        const Case c{.type = type,
                     .rows = rows,
                     .k = 8,
                     .n = 64,
                     .epilogue = way == 0 ? Epilogue::store : Epilogue::gated,
                     .gating = way == 2 ? kClamped : Gating{},
                     .out_type = DType::bf16,
                     .values = Values::special};
        const Problem problem(c);
        EXPECT_TRUE(same_bytes(problem.run(fast()), problem.run(scalar()), c.out_type)) << c;
      }
    }
  }
}

TEST_P(GemmOfIsa, RowDependsOnNoOtherRow) {
  for (const WeightType type : weight_types()) {
    const Case c{.type = type, .rows = 70, .k = 104, .n = 80, .values = Values::mixed};
    const Problem problem(c);
    auto alone = problem.blank();
    for (std::int64_t r = 0; r < c.rows; ++r) problem.run(fast(), alone, r, 1, 0, problem.panels());
    auto grouped = problem.blank();
    for (std::int64_t r = 0; r < c.rows; r += 7)
      problem.run(fast(), grouped, r, 7, 0, problem.panels());
    const auto together = problem.run(fast());
    EXPECT_TRUE(alone == together) << c;
    EXPECT_TRUE(grouped == together) << c;
  }
}

TEST_P(GemmOfIsa, SplitOfPanelsChangesNothing) {
  std::uint32_t variant = 0;
  for (const WeightType type : weight_types()) {
    for (const std::int64_t rows : {1, 40}) {
      const Epilogue epilogue = ++variant % 2 == 0 ? Epilogue::store : Epilogue::gated;
      const Case c{.type = type, .rows = rows, .k = 72, .n = 176, .epilogue = epilogue};
      const Problem problem(c);
      const auto whole = problem.run(fast());
      for (const std::int64_t step : {2, 4, 6}) {
        auto pieces = problem.blank();
        for (std::int64_t p = 0; p < problem.panels(); p += step)
          problem.run(fast(), pieces, 0, rows, p, std::min(p + step, problem.panels()));
        EXPECT_TRUE(pieces == whole) << c << " in steps of " << step;
      }
    }
  }
}

TEST_P(GemmOfIsa, WritesOnlyItsPanels) {
  const Case c{.type = WeightType::bf16, .rows = 20, .k = 32, .n = 64};
  const Problem problem(c);
  auto out = problem.blank();
  problem.run(fast(), out, 0, c.rows, 1, 3);
  const auto blank = problem.out_row(problem.blank(), 0);
  const auto whole = problem.run(fast());
  for (std::int64_t r = 0; r < c.rows; ++r) {
    const auto row = problem.out_row(out, r);
    const auto want = problem.out_row(whole, r);
    for (std::size_t i = 0; i < row.size(); ++i)
      ASSERT_EQ(row[i], i >= 16 && i < 48 ? want[i] : blank[i]) << "row " << r << " column " << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Kernels, GemmOfFasterIsa, ::testing::ValuesIn(kFasterIsas), isa_test_name);

INSTANTIATE_TEST_SUITE_P(Kernels, GemmOfIsa, ::testing::ValuesIn(kAllIsas), isa_test_name);

TEST(ScalarGemm, SumsInTheOrderOfTheContract) {
  const FlushDenormals flush;
  for (const WeightType type : weight_types()) {
    for (const std::int64_t k : {1, 31, 33, 200}) {
      const Case c{.type = type, .rows = 5, .k = k, .n = 33, .values = Values::mixed};
      const Problem problem(c);
      const auto out = problem.run(kernels_for(Isa::scalar));
      for (std::int64_t r = 0; r < c.rows; ++r) {
        std::vector<float> want;
        for (std::int64_t column = 0; column < c.n; ++column)
          want.push_back(contract_sum(problem, c, r, column));
        ASSERT_TRUE(same_floats(problem.out_row(out, r), want)) << c << " row " << r;
      }
    }
  }
}

/// A sum in double, and the sum of magnitudes that bounds an f32 sum's error.
struct Exact {
  double sum = 0;
  double magnitude = 0;
  double weights = 0;  ///< sum of the weights' magnitudes
};

Exact exact_sum(const Problem& problem, const Case& c, std::int64_t r, std::int64_t column) {
  Exact exact;
  for (std::int64_t i = 0; i < c.k; ++i) {
    const double product = static_cast<double>(problem.in(r, i)) * problem.weight_value(i, column);
    exact.sum += product;
    exact.magnitude += std::abs(product);
    exact.weights += std::abs(problem.weight_value(i, column));
  }
  return exact;
}

TEST(ScalarGemm, AgreesWithDoublePrecision) {
  const FlushDenormals flush;
  for (const WeightType type : weight_types()) {
    for (const std::int64_t k : {1, 33, 200}) {
      const Case c{.type = type, .rows = 7, .k = k, .n = 40, .bias = true, .pointers = true};
      const Problem problem(c);
      const auto out = problem.run(kernels_for(Isa::scalar));
      for (std::int64_t r = 0; r < c.rows; ++r) {
        const auto row = problem.out_row(out, r);
        for (std::int64_t column = 0; column < c.n; ++column) {
          const Exact exact = exact_sum(problem, c, r, column);
          const double bias = problem.bias(column);
          double bound = static_cast<double>(k + 2) * 0x1p-24 * (exact.magnitude + std::abs(bias));
          if (type == WeightType::int8 || type == WeightType::int4) {
            // Each number of the row moves by half a unit at most, times the roundings of the unit.
            const double half_unit = RoundedRow(problem, c, r).scale / 2 * (1 + 0x1p-16);
            bound += half_unit * exact.weights;
          }
          ASSERT_NEAR(row[static_cast<std::size_t>(column)], exact.sum + bias, bound) << c;
        }
      }
    }
  }
}

TEST(ScalarGemm, GatedSiluAgreesWithDoublePrecision) {
  const FlushDenormals flush;
  const Case c{.type = WeightType::bf16, .rows = 7, .k = 40, .n = 80, .epilogue = Epilogue::gated};
  const Problem problem(c);
  const auto out = problem.run(kernels_for(Isa::scalar));
  for (std::int64_t r = 0; r < c.rows; ++r) {
    const auto row = problem.out_row(out, r);
    for (std::int64_t column = 0; column < c.columns(); ++column) {
      const Exact gate = exact_sum(problem, c, r, column);
      const Exact up = exact_sum(problem, c, r, column + c.columns());
      const double want = gate.sum / (1 + std::exp(-gate.sum)) * up.sum;
      const double bound = 50 * 0x1p-24 * (1 + gate.magnitude) * (1 + up.magnitude);
      ASSERT_NEAR(row[static_cast<std::size_t>(column)], want, bound) << c;
    }
  }
}

/// A low limit, so that many are clamped at each of the three edges, and columns that do not fill
/// their panels.
TEST(ScalarGemm, ClampedGatingWithBiasesAgreesWithDoublePrecision) {
  const FlushDenormals flush;
  const Case c{.type = WeightType::bf16,
               .rows = 7,
               .k = 40,
               .n = 86,
               .epilogue = Epilogue::gated,
               .gating = {.kind = Gating::Kind::clamped, .alpha = 1.7F, .limit = 3.0F},
               .bias = true};
  const Problem problem(c);
  const auto out = problem.run(kernels_for(Isa::scalar));
  const double limit = c.gating.limit;
  int clamped[3] = {0, 0, 0};
  for (std::int64_t r = 0; r < c.rows; ++r) {
    const auto row = problem.out_row(out, r);
    for (std::int64_t column = 0; column < c.columns(); ++column) {
      const Exact gate = exact_sum(problem, c, r, column);
      const Exact up = exact_sum(problem, c, r, column + c.columns());
      const double gate_sum = gate.sum + problem.bias(column);
      const double up_sum = up.sum + problem.bias(column + c.columns());
      clamped[0] += gate_sum > limit ? 1 : 0;
      clamped[1] += up_sum > limit ? 1 : 0;
      clamped[2] += up_sum < -limit ? 1 : 0;
      const double g = std::min(gate_sum, limit);
      const double u = std::clamp(up_sum, -limit, limit);
      const double want = g / (1 + std::exp(-static_cast<double>(c.gating.alpha) * g)) * (u + 1);
      const double bound = 100 * 0x1p-24 * (1 + gate.magnitude) * (1 + up.magnitude);
      ASSERT_NEAR(row[static_cast<std::size_t>(column)], want, bound) << c;
    }
  }
  for (const int count : clamped) EXPECT_GT(count, 10);
}

}  // namespace

}  // namespace ferry::testing
