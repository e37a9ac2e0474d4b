// What benchmarks measure the machine with.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "ferry/core/threads.h"
#include "ferry/kernels/kernels.h"

namespace ferry {
namespace {

TEST(Peaks, GreatestLooksAtEveryElement) {
  for (const Isa isa : kAllIsas) {
    if (!isa_supported(isa)) continue;
    for (const std::size_t n : {1U, 15U, 64U, 65U, 130U, 333U}) {
      std::vector<float> x(n, -1.0F);
      for (std::size_t i = 0; i < n; ++i) {
        x[i] = 2.0F;
        EXPECT_EQ(kernels_for(isa).greatest(x.data(), static_cast<std::int64_t>(n)), 2.0F)
            << isa_name(isa) << ", element " << i << " of " << n;
        x[i] = std::numeric_limits<float>::quiet_NaN();
        EXPECT_TRUE(std::isnan(kernels_for(isa).greatest(x.data(), static_cast<std::int64_t>(n))))
            << isa_name(isa) << ", element " << i << " of " << n;
        x[i] = -1.0F;
      }
    }
  }
}

TEST(Peaks, OperationsGrowWithTheRounds) {
  const FlushDenormals flush;
  for (const Isa isa : kAllIsas) {
    if (!isa_supported(isa)) continue;
    for (const WeightType weights : weight_types()) {
      const std::uint64_t once = kernels_for(isa).multiply_in_registers(weights, 1);
      EXPECT_GT(once, 0U);
      EXPECT_EQ(kernels_for(isa).multiply_in_registers(weights, 1000), 1000 * once);
    }
  }
}

}  // namespace
}  // namespace ferry
