// What the matrices and the rows of a product are held in, and how eight numbers of them that lie
// side by side become bf16, as which they are multiplied.
#pragma once

#include <cstdint>

#include "ferry/kernels/gpu/elements.h"

namespace ferry::gpu {

struct Bf16Numbers {
  using Eight = Words;
  static constexpr int kBytes = 2;  ///< of a number
  static constexpr bool kScaled = false;

  /// Two numbers a word, the first in the lower half.
  template <class Thread>
  static FERRY_GPU Words bf16(Thread&, const Eight& numbers) {
    return numbers;
  }
};

/// e4m3fn, with scales that are not applied here. MayBeNan: codes of NaN are to become NaN; else
/// there must be none, which saves a third of the work.
template <bool MayBeNan>
struct Fp8Numbers {
  using Eight = std::uint64_t;
  static constexpr int kBytes = 1;
  static constexpr bool kScaled = true;

  template <class Thread>
  static FERRY_GPU Words bf16(Thread& t, Eight codes) {
    const auto first = static_cast<std::uint32_t>(codes);
    const auto second = static_cast<std::uint32_t>(codes >> 32);
    return {{pair(t, first, 0x9180, 0x9988),
             pair(t, first, 0xb3a2, 0xbbaa),
             pair(t, second, 0x9180, 0x9988),
             pair(t, second, 0xb3a2, 0xbbaa)}};
  }

  /// Of numbers [128 * block, ...) of a row of n.
  template <class Thread>
  static FERRY_GPU float scale(Thread& t, const std::byte* row, std::int64_t n, int block) {
    using Wire = Quantized<Fp8Code, F32Scales, false>;
    return Wire::scale(t, row, n, block * kWireBlock);
  }

 private:
  /// Two of four codes: `picks` puts each into a half of a word with its sign before it, `signs`
  /// the sign alone. Moved to where bf16 ends its exponent and begins its mantissa, with the sign
  /// at the top, a code stands for 2^-120 of its value, the denormals too.
  template <class Thread>
  static FERRY_GPU std::uint32_t pair(Thread& t,
                                      std::uint32_t codes,
                                      std::uint32_t picks,
                                      std::uint32_t signs) {
    constexpr std::uint32_t kTwoTo120 = 0x7b807b80;
    const std::uint32_t small = t.pick_bytes(codes, picks) << 4 & 0x87f087f0U;
    std::uint32_t numbers = t.multiply_pairs(small, kTwoTo120);
    // Of codes without their signs, 0x7f alone reaches the highest bit; all ones are a NaN of bf16.
    if constexpr (MayBeNan) numbers |= t.pick_bytes((codes & 0x7f7f7f7fU) + 0x01010101U, signs);
    return numbers;
  }
};

}  // namespace ferry::gpu
