// The numeric class `fast`: near the exact products, within what rounding allows, and the same
// bytes for a row whatever else is computed with it.
#include <cmath>

#include "ferry/core/error.h"
#include "kernels/gemm_testing.h"

namespace ferry::testing {

namespace {

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const WeightType type : {WeightType::bf16, WeightType::fp8, WeightType::mxfp4}) {
    for (const auto& [rows, k, n] : {std::array<std::int64_t, 3>{1, 64, 32},
                                     {2, 33, 17},
                                     {3, 1, 1},
                                     {7, 100, 80},
                                     {13, 256, 48},
                                     {40, 129, 200}}) {
      Case c{.type = type, .rows = rows, .k = k, .n = n};
      all.push_back(c);
      c.pointers = true;
      c.bias = true;
      c.out_type = DType::bf16;
      all.push_back(c);
    }
  }
  return all;
}

TEST(FastNumerics, AreNearTheRealSums) {
  for (const Case& c : cases()) {
    if (c.out_type != DType::f32) continue;
    const Problem problem(c);
    const std::vector<std::byte> out = problem.run(kernels(Numerics::fast));
    for (std::int64_t r = 0; r < c.rows; ++r) {
      const std::vector<float> row = problem.out_row(out, r);
      for (std::int64_t column = 0; column < c.n; ++column) {
        double sum = 0;
        double magnitude = 0;
        for (std::int64_t i = 0; i < c.k; ++i) {
          const double term = double{problem.in(r, i)} * problem.weight_value(i, column);
          sum += term;
          magnitude += std::abs(term);
        }
        // Every product and every sum of a chain is rounded once at most, by half a unit, or by one
        // where that is to odd; with fp8 so is what each block's sum becomes.
        const std::int64_t roundings = c.k + 4 + (c.type == WeightType::fp8 ? c.k / 64 + 2 : 0);
        const double unit = kernels().isa == Isa::neon ? 0x1p-23 : 0x1p-24;
        const double bound = magnitude * static_cast<double>(roundings) * unit;
        EXPECT_LE(std::abs(double{row[static_cast<std::size_t>(column)]} - sum), bound)
            << c << " at " << r << ", " << column;
      }
    }
  }
}

TEST(FastNumerics, GiveARowTheSameBytesAloneAndAmongOthers) {
  const Kernels& fast = kernels(Numerics::fast);
  for (const Case& c : cases()) {
    const Problem problem(c);
    const std::vector<std::byte> all = problem.run(fast);
    for (std::int64_t rows = 1; rows <= c.rows; rows = rows < 8 ? rows + 1 : 2 * rows) {
      std::vector<std::byte> parts = problem.blank();
      for (std::int64_t first = 0; first < c.rows; first += rows) {
        const std::int64_t some = std::min(rows, c.rows - first);
        const std::int64_t middle = problem.panels() / 2;
        problem.run(fast, parts, first, some, 0, middle);
        problem.run(fast, parts, first, some, middle, problem.panels());
      }
      ASSERT_EQ(parts, all) << c << ", " << rows << " rows at a time";
    }
  }
}

TEST(FastNumerics, LeaveOtherWeightsExact) {
  for (const WeightType type : {WeightType::f32, WeightType::int8, WeightType::int4}) {
    const Problem problem({.type = type, .rows = 5, .k = 96, .n = 40});
    EXPECT_EQ(problem.run(kernels(Numerics::fast)), problem.run(kernels()))
        << weight_type_name(type);
  }
}

TEST(FastNumerics, AreNamed) {
  EXPECT_EQ(numerics_name(Numerics::exact), "exact");
  EXPECT_EQ(numerics_name(Numerics::fast) == "exact", &kernels(Numerics::fast) == &kernels());
  EXPECT_EQ(parse_numerics("fast", "--numerics"), Numerics::fast);
  EXPECT_THROW(parse_numerics("quick", "--numerics"), ConfigError);
  EXPECT_EQ(kernels(Numerics::exact).gemm, kernels().gemm);
}

}  // namespace

}  // namespace ferry::testing
