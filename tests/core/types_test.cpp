#include "ferry/core/types.h"

#include <gtest/gtest.h>

#include <array>

namespace ferry {
namespace {

TEST(RowsView, StepsByStride) {
  std::array<std::byte, 12> bytes{};
  const RowsView rows{.base = bytes.data(), .stride = 4};
  EXPECT_EQ(rows.row(2), &bytes[8]);
  EXPECT_EQ(rows.from(1).row(1), &bytes[8]);
}

TEST(RowsView, FollowsPointersWhereGiven) {
  std::array<std::byte, 3> bytes{};
  const std::array<const std::byte*, 3> pointers{&bytes[2], &bytes[0], &bytes[1]};
  const RowsView rows{.pointers = pointers.data()};
  EXPECT_EQ(rows.row(0), &bytes[2]);
  EXPECT_EQ(rows.from(1).row(1), &bytes[1]);
}

TEST(DTypes, HaveSizesAndNames) {
  EXPECT_EQ(dtype_bytes(DType::f32), 4U);
  EXPECT_EQ(dtype_bytes(DType::bf16), 2U);
  EXPECT_EQ(dtype_bytes(DType::f16), 2U);
  EXPECT_EQ(dtype_name(DType::bf16), "bf16");
}

TEST(Rounding, GoesUpToTheNextMultiple) {
  EXPECT_EQ(round_up(0, 16), 0);
  EXPECT_EQ(round_up(1, 16), 16);
  EXPECT_EQ(round_up(16, 16), 16);
  EXPECT_EQ(ceil_div(17, 16), 2);
  EXPECT_EQ(ceil_div(0, 16), 0);
}

}  // namespace
}  // namespace ferry
