#include "ferry/buffer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <utility>

#include "ferry/core/error.h"

namespace ferry {
namespace {

TEST(Buffer, IsZeroedAndPageAligned) {
  const Buffer buffer(10'000);
  EXPECT_EQ(buffer.size(), 10'000U);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(buffer.data()) % 4096, 0U);
  EXPECT_TRUE(std::all_of(
      buffer.data(), buffer.data() + buffer.size(), [](std::byte b) { return b == std::byte{0}; }));
}

TEST(Buffer, OfNothingHasNoMemory) {
  const Buffer buffer(0);
  EXPECT_EQ(buffer.data(), nullptr);
  EXPECT_EQ(buffer.size(), 0U);
}

TEST(Buffer, MovesItsMemory) {
  Buffer a(64);
  a.as<int>()[3] = 42;
  std::byte* const memory = a.data();
  Buffer b(std::move(a));
  EXPECT_EQ(b.data(), memory);
  Buffer c(128);
  c = std::move(b);
  EXPECT_EQ(c.data(), memory);
  EXPECT_EQ(c.size(), 64U);
  EXPECT_EQ(c.as<int>()[3], 42);
}

TEST(Buffer, CostsNothingUntilTouched) {
  const Buffer buffer(std::size_t{1} << 36);
  buffer.data()[std::size_t{1} << 35] = std::byte{1};
  EXPECT_EQ(buffer.data()[(std::size_t{1} << 35) + 1], std::byte{0});
}

TEST(Buffer, BeyondTheAddressSpaceIsAnErrorThatSaysHowMuch) {
  const std::size_t bytes = std::size_t{1} << 60;
  try {
    const Buffer buffer(bytes);
    FAIL() << "did not throw";
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), testing::HasSubstr(std::to_string(bytes)));
  }
}

}  // namespace
}  // namespace ferry
