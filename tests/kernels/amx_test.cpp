// What is particular to tiles. That they give the scalar bytes is gemm_test's; both emulate tiles
// on a machine that has none.
#include <optional>

#include "ferry/core/threads.h"
#include "ferry/kernels/cpu/tables.h"
#include "kernels/amx_emulator.h"
#include "kernels/gemm_testing.h"

namespace ferry::testing {

namespace {

class Amx : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!AmxEmulator::useful()) GTEST_SKIP() << "this machine has tiles, or no AVX-512 with VNNI";
    emulator_.emplace();
  }

  /// Tile products of a gemm.
  static std::uint64_t products(const Case& c) {
    const std::uint64_t before = AmxEmulator::products();
    Problem(c).run(cpu::amx_table());
    return AmxEmulator::products() - before;
  }

 private:
  FlushDenormals flush_;
  std::optional<AmxEmulator> emulator_;
};

TEST_F(Amx, ManyRowsTakeTilesOfEveryType) {
  // 33 rows are 3 row tiles, 40 columns 3 panels.
  EXPECT_EQ(products({.type = WeightType::bf16, .rows = 33, .k = 300, .n = 40}), 3 * 3 * 10);
  EXPECT_EQ(products({.type = WeightType::fp8, .rows = 33, .k = 300, .n = 40}), 3 * 3 * 10);
  EXPECT_EQ(products({.type = WeightType::int8, .rows = 33, .k = 300, .n = 40}), 3 * 3 * 5);
}

TEST_F(Amx, FewRowsAndOtherTypesTakeNone) {
  EXPECT_EQ(products({.type = WeightType::bf16, .rows = 2, .k = 64, .n = 32}), 0);
  EXPECT_EQ(products({.type = WeightType::fp8, .rows = 7, .k = 64, .n = 32}), 0);
  EXPECT_EQ(products({.type = WeightType::int8, .rows = 2, .k = 64, .n = 32}), 0);
  EXPECT_EQ(products({.type = WeightType::int4, .rows = 64, .k = 64, .n = 32}), 0);
  EXPECT_EQ(products({.type = WeightType::f32, .rows = 64, .k = 64, .n = 32}), 0);
}

/// A call leaves no configuration behind that others would trip over.
TEST_F(Amx, CallsReleaseTheirTiles) {
  products({.type = WeightType::bf16, .rows = 16, .k = 32, .n = 16});
  EXPECT_DEATH(asm volatile("tilezero %tmm0"), "a tile is used without a configuration");
}

TEST_F(Amx, PeaksCountTheirProducts) {
  for (const WeightType type : {WeightType::bf16, WeightType::fp8, WeightType::int8}) {
    const std::uint64_t before = AmxEmulator::products();
    const std::uint64_t operations = cpu::amx_table().multiply_in_registers(type, 100);
    const std::uint64_t depth = type == WeightType::int8 ? kIntKBlock : kBf16KBlock;
    EXPECT_EQ(AmxEmulator::products() - before, 400);
    EXPECT_EQ(operations, 400 * 16 * 16 * depth * 2);
  }
}

}  // namespace

}  // namespace ferry::testing
