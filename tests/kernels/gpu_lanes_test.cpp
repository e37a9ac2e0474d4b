// What a warp's lanes do with numbers of theirs, over the emulator.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

#include "ferry/kernels/gpu/sort_lanes.h"
#include "support/gpu_emulator.h"

namespace ferry {
namespace {

using testing::EmulatedThread;
using testing::GpuEmulator;

TEST(GpuLanes, GetTheirNumbersInOrder) {
  constexpr int kWarps = 4;
  std::mt19937 engine(7);
  GpuEmulator device;
  auto* const numbers = static_cast<std::uint32_t*>(
      device.allocate(kWarps * kWarpThreads * sizeof(std::uint32_t), "numbers"));
  for (const std::uint32_t most : {1U, 2U, 5U, 31U, 1000U, ~0U}) {
    // Many equal ones, and the greatest there is.
    std::vector<std::uint32_t> drawn(kWarps * kWarpThreads);
    for (std::uint32_t& x : drawn) x = engine() % 4 == 0 ? ~0U : engine() % most;
    std::ranges::copy(drawn, numbers);
    device.launch(
        [=](EmulatedThread& t) {
          std::uint32_t* own = numbers + t.thread();
          t.store(own, gpu::sort_lanes(t, t.load(own)));
        },
        {.threads = kWarps * kWarpThreads});
    for (int warp = 0; warp < kWarps; ++warp) {
      const auto first = drawn.begin() + warp * kWarpThreads;
      std::sort(first, first + kWarpThreads);
    }
    EXPECT_TRUE(std::ranges::equal(drawn, std::vector(numbers, numbers + drawn.size())))
        << "below " << most;
  }
}

}  // namespace
}  // namespace ferry
