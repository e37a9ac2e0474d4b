// How numbers become what tensor cores multiply, over the emulator; and what the emulator makes of
// the operations of bits and pairs that do it.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <random>
#include <vector>

#include "ferry/kernels/gpu/product_numbers.h"
#include "support/gpu_emulator.h"

namespace ferry {
namespace {

using testing::EmulatedThread;
using testing::GpuEmulator;

/// Of every code of fp8 there is what the scalar conversion makes of it.
TEST(GpuNumbers, OfCodesAreWhatTheScalarConversionMakes) {
  GpuEmulator device;
  const auto out = static_cast<gpu::Words*>(device.allocate(64 * sizeof(gpu::Words), "numbers"));
  const auto convert = [out]<class Numbers>(EmulatedThread& t, Numbers) {
    std::uint64_t codes = 0;
    for (int i = 7; i >= 0; --i) codes = codes << 8 | static_cast<unsigned>(t.thread() * 8 + i);
    t.store(out + t.thread(), Numbers::bf16(t, codes));
  };
  const auto expect = [&](bool nans) {
    for (int code = 0; code < 256; ++code) {
      const bool is_nan = (code & 0x7f) == 0x7f;
      if (is_nan && !nans) continue;
      const std::uint32_t word = out[code / 8].word[code % 8 / 2];
      const float got = gpu::bf16_to_f32(static_cast<std::uint16_t>(word >> code % 2 * 16));
      if (is_nan)
        ASSERT_TRUE(std::isnan(got)) << code;
      else
        ASSERT_EQ(std::bit_cast<std::uint32_t>(got),
                  std::bit_cast<std::uint32_t>(gpu::fp8_to_f32(static_cast<std::uint8_t>(code))))
            << code;
    }
  };
  const GpuGrid grid{.threads = 32};
  device.launch([=](EmulatedThread& t) { convert(t, gpu::Fp8Numbers<true>{}); }, grid);
  expect(true);
  device.launch([=](EmulatedThread& t) { convert(t, gpu::Fp8Numbers<false>{}); }, grid);
  expect(false);
}

// Two bf16 have 16 bits of mantissa together: their product is exact in f32 where it is normal.
TEST(GpuNumbers, PairsMultiplyAsFloatsThatAreRounded) {
  constexpr int kPairs = 4096;
  std::mt19937 engine(1);
  std::vector<std::uint32_t> a(kPairs);
  std::vector<std::uint32_t> b(kPairs);
  const auto number = [&] {  // infinities and NaN too, and products that are none of either
    const std::uint32_t bits = engine() & 0xffffU;
    return engine() % 8 == 0 ? bits | 0x7f80U : (bits & 0x807fU) | (96 + engine() % 64) << 7;
  };
  for (int i = 0; i < kPairs; ++i) {
    a[i] = number() << 16 | number();
    b[i] = number() << 16 | number();
  }
  GpuEmulator device;
  auto* const out = static_cast<std::uint32_t*>(device.allocate(kPairs * sizeof(a[0]), "products"));
  const auto* const in_a = a.data();
  const auto* const in_b = b.data();
  device.launch(
      [=](EmulatedThread& t) {
        for (int i = t.thread(); i < kPairs; i += t.threads())
          t.store(out + i, t.multiply_pairs(in_a[i], in_b[i]));
      },
      {.threads = 32});
  for (int i = 0; i < kPairs; ++i) {
    for (const int half : {0, 16}) {
      const auto part = [&](std::uint32_t v) { return static_cast<std::uint16_t>(v >> half); };
      const float product = gpu::bf16_to_f32(part(a[i])) * gpu::bf16_to_f32(part(b[i]));
      if (std::isnan(product))
        ASSERT_TRUE(std::isnan(gpu::bf16_to_f32(part(out[i])))) << i;
      else
        ASSERT_EQ(part(out[i]), gpu::f32_to_bf16(product)) << i;
    }
  }
}

// Around the smallest normal number, and from denormals up.
TEST(GpuNumbers, PairsOfDenormalsAreNumbers) {
  GpuEmulator device;
  auto* const out = static_cast<std::uint32_t*>(device.allocate(4 * sizeof(std::uint32_t), "out"));
  device.launch(
      [=](EmulatedThread& t) {
        if (t.thread() != 0) return;
        t.store(out, t.multiply_pairs(0x00018003, 0x7b807b80));      // 1 and -3 of 2^-133, 2^120
        t.store(out + 1, t.multiply_pairs(0x00800081, 0x3f003f00));  // 2^-126 and the next, halved
        t.store(out + 2, t.multiply_pairs(0x00030001, 0x3f003f00));  // ties go to even
        t.store(out + 3, t.multiply_pairs(0x7f7fff00, 0x40004000));  // 2 times what is too large
      },
      {.threads = 32});
  const auto bits = [](float high, float low) {
    return std::uint32_t{gpu::f32_to_bf16(high)} << 16 | gpu::f32_to_bf16(low);
  };
  EXPECT_EQ(out[0], bits(0x1p-13F, -3 * 0x1p-13F));
  EXPECT_EQ(out[1], 0x00400040U);
  EXPECT_EQ(out[2], 0x00020000U);
  EXPECT_EQ(out[3], 0x7f80ff80U);
}

TEST(GpuNumbers, BytesArePickedAndTheirSignsSpread) {
  GpuEmulator device;
  auto* const out = static_cast<std::uint32_t*>(device.allocate(2 * sizeof(std::uint32_t), "out"));
  device.launch(
      [=](EmulatedThread& t) {
        if (t.thread() != 0) return;
        t.store(out, t.pick_bytes(0x817f02f3, 0x0123));
        t.store(out + 1, t.pick_bytes(0x817f02f3, 0x89ab));
      },
      {.threads = 32});
  EXPECT_EQ(out[0], 0xf3027f81U);
  EXPECT_EQ(out[1], 0xff0000ffU);
}

}  // namespace
}  // namespace ferry
