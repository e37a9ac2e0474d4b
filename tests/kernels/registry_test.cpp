// Which tables a machine has, and how one is chosen.
#include <cstdlib>

#include "ferry/core/error.h"
#include "kernels/kernel_testing.h"

namespace ferry::testing {

namespace {

TEST(KernelRegistry, ScalarIsEverywhere) {
  EXPECT_TRUE(isa_supported(Isa::scalar));
  EXPECT_EQ(kernels_for(Isa::scalar).isa, Isa::scalar);
}

TEST(KernelRegistry, TablesSayWhatTheyAre) {
  for (const Isa isa : kAllIsas) {
    if (!isa_supported(isa)) continue;
    EXPECT_EQ(kernels_for(isa).isa, isa);
    EXPECT_EQ(kernels_for(isa).name, isa_name(isa));
  }
}

TEST(KernelRegistry, MissingOneIsAConfigErrorThatListsWhatThereIs) {
  for (const Isa isa : kAllIsas) {
    if (isa_supported(isa)) continue;
    try {
      kernels_for(isa);
      FAIL() << "no error for " << isa_name(isa);
    } catch (const ConfigError& e) {
      EXPECT_NE(std::string(e.what()).find("scalar"), std::string::npos) << e.what();
    }
  }
}

TEST(KernelRegistry, ChoosesWhatTheEnvironmentNamesElseTheBest) {
  const char* wanted = std::getenv("FERRY_ISA");
  if (wanted != nullptr && *wanted != '\0') {
    EXPECT_EQ(kernels().name, wanted);
    return;
  }
  for (const Isa isa : kAllIsas) {
    if (!isa_supported(isa)) continue;
    EXPECT_GE(kernels().isa, isa);
  }
}

TEST(KernelRegistryDeathTest, UnknownNameIsAConfigErrorThatListsWhatThereIs) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        setenv("FERRY_ISA", "mmx", 1);
        try {
          kernels();
        } catch (const ConfigError& e) {
          std::fputs(e.what(), stderr);
          std::exit(2);
        }
      },
      ::testing::ExitedWithCode(2),
      "FERRY_ISA=mmx.*scalar");
}

TEST(KernelRegistry, ScratchGrowsWithDepth) {
  for (const Isa isa : kAllIsas) {
    if (!isa_supported(isa)) continue;
    for (const WeightType type : weight_types()) {
      std::size_t before = 0;
      for (std::int64_t k = 1; k < 20000; k += 37) {
        const std::size_t bytes = kernels_for(isa).gemm_scratch_bytes(type, k);
        ASSERT_GE(bytes, before) << isa_name(isa) << " " << weight_type_name(type) << " k " << k;
        before = bytes;
      }
    }
  }
}

}  // namespace

}  // namespace ferry::testing
