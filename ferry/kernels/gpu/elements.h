// Numbers in rows as GPU threads read and write them: four at a time where the address allows, else
// one by one. The conversions are those of the scalar kernels, and so are the formats of wires
// (ferry/wire.h; kernels/cpu/wire.inl says why a scale is what it is).
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "ferry/kernels/gpu/thread.h"
#include "ferry/types.h"
#include "ferry/wire.h"

namespace ferry::gpu {

#include "ferry/kernels/cpu/bits.inl"
#include "ferry/kernels/cpu/elements.inl"

struct Four {
  float x[4];
};

/// 16 bytes in one access.
struct alignas(16) Words {
  std::uint32_t word[4];
};

/// As the CPU's max_magnitude: bits without the sign, so that NaN is above all.
constexpr std::uint32_t magnitude_bits(float x) { return bits_of(x) & 0x7fffffffU; }

struct F32 {
  using One = float;
  using Packed = Words;

  static constexpr float from(One x) { return x; }

  static constexpr One to(float x) { return x; }

  static constexpr Four unpack(const Packed& p) {
    return {{float_of(p.word[0]), float_of(p.word[1]), float_of(p.word[2]), float_of(p.word[3])}};
  }

  static constexpr Packed pack(const Four& v) {
    return {{bits_of(v.x[0]), bits_of(v.x[1]), bits_of(v.x[2]), bits_of(v.x[3])}};
  }
};

/// Elements of 16 bits.
template <float (*From)(std::uint16_t), std::uint16_t (*To)(float)>
struct Half {
  using One = std::uint16_t;
  using Packed = std::uint64_t;

  static constexpr float from(One x) { return From(x); }

  static constexpr One to(float x) { return To(x); }

  static constexpr Four unpack(Packed p) {
    return {{From(static_cast<One>(p)),
             From(static_cast<One>(p >> 16)),
             From(static_cast<One>(p >> 32)),
             From(static_cast<One>(p >> 48))}};
  }

  static constexpr Packed pack(const Four& v) {
    return Packed{To(v.x[0])} | Packed{To(v.x[1])} << 16 | Packed{To(v.x[2])} << 32 |
           Packed{To(v.x[3])} << 48;
  }
};

using Bf16 = Half<bf16_to_f32, f32_to_bf16>;
using F16 = Half<f16_to_f32, f32_to_f16>;

/// Codes of one byte.
template <class Code>
struct Byte {
  using One = std::uint8_t;
  using Packed = std::uint32_t;

  static constexpr float from(One x) { return Code::from(x); }

  static constexpr One to(float x) { return Code::to(x); }

  static constexpr Four unpack(Packed p) {
    return {{from(static_cast<One>(p)),
             from(static_cast<One>(p >> 8)),
             from(static_cast<One>(p >> 16)),
             from(static_cast<One>(p >> 24))}};
  }

  static constexpr Packed pack(const Four& v) {
    return Packed{to(v.x[0])} | Packed{to(v.x[1])} << 8 | Packed{to(v.x[2])} << 16 |
           Packed{to(v.x[3])} << 24;
  }
};

struct Fp8Code {
  static constexpr float kGreatest = 448.0F;
  static constexpr std::uint8_t kNan = 0x7f;  ///< what the bytes of a NaN block are

  static constexpr float from(std::uint8_t code) { return fp8_to_f32(code); }

  static constexpr std::uint8_t to(float x) { return f32_to_fp8(x); }
};

struct Int8Code {
  static constexpr float kGreatest = 127.0F;
  static constexpr std::uint8_t kNan = 0;

  static constexpr float from(std::uint8_t code) {
    return static_cast<float>(static_cast<std::int8_t>(code));
  }

  /// Nearest even, by the f32 unit of 1.5 * 2^23. REQUIRES: magnitude below 127.5.
  static constexpr std::uint8_t to(float x) {
    constexpr float kUnitOne = 0x1.8p23F;
    return static_cast<std::uint8_t>(bits_of(x + kUnitOne) - bits_of(kUnitOne));
  }
};

struct F32Scales {
  static constexpr int kBytes = 4;

  static constexpr float representable(float scale) { return scale; }

  template <class Thread>
  static FERRY_GPU void write(Thread& t, std::byte* scales, std::int64_t block, float scale) {
    t.store(reinterpret_cast<float*>(scales) + block, scale);
  }

  template <class Thread>
  static FERRY_GPU float read(Thread& t, const std::byte* scales, std::int64_t block) {
    return t.load(reinterpret_cast<const float*>(scales) + block);
  }
};

/// UE8M0, as the CPU's Pow2Scales.
struct Pow2Scales {
  static constexpr int kBytes = 1;

  static constexpr float representable(float scale) {
    if (scale > 0x1p119F) return float_of(0x7fc00000U);
    return float_of((bits_of(scale) + 0x7fffffU) & 0x7f800000U);
  }

  template <class Thread>
  static FERRY_GPU void write(Thread& t, std::byte* scales, std::int64_t block, float scale) {
    t.store(reinterpret_cast<std::uint8_t*>(scales) + block,
            static_cast<std::uint8_t>(bits_of(scale) >> 23));
  }

  template <class Thread>
  static FERRY_GPU float read(Thread& t, const std::byte* scales, std::int64_t block) {
    const std::uint32_t exponent = t.load(reinterpret_cast<const std::uint8_t*>(scales) + block);
    return float_of(exponent == 255 ? 0x7fc00000U : exponent << 23);
  }
};

/// A wire without scales.
template <class ElementType>
struct Plain {
  using Element = ElementType;
  static constexpr bool kQuantized = false;
};

template <class CodeType, class ScalesType, bool PerRow>
struct Quantized {
  using Code = CodeType;
  using Scales = ScalesType;
  using Element = Byte<Code>;
  static constexpr bool kQuantized = true;

  /// Values that share a scale.
  static constexpr std::int64_t values(std::int64_t n) { return PerRow ? n : kWireBlock; }

  static constexpr std::int64_t scales_at(std::int64_t n) { return (n + 3) / 4 * 4; }

  template <class Thread>
  static FERRY_GPU float scale(Thread& t,
                               const std::byte* row,
                               std::int64_t n,
                               std::int64_t first) {
    return Scales::read(t, row + scales_at(n), PerRow ? 0 : first / kWireBlock);
  }
};

/// Calls body(format) for a wire.
template <class Body>
FERRY_GPU void with_wire(WireType type, Body body) {
  switch (type) {
    case WireType::f32:
      return body(Plain<F32>{});
    case WireType::bf16:
      return body(Plain<Bf16>{});
    case WireType::fp8:
      return body(Quantized<Fp8Code, F32Scales, false>{});
    case WireType::fp8_pow2:
      return body(Quantized<Fp8Code, Pow2Scales, false>{});
    case WireType::int8:
      return body(Quantized<Int8Code, F32Scales, true>{});
    case WireType::int8_block:
      return body(Quantized<Int8Code, F32Scales, false>{});
  }
}

/// Calls body(element) for a type of plain rows.
template <class Body>
FERRY_GPU void with_element(DType type, Body body) {
  if (type == DType::f32)
    body(F32{});
  else if (type == DType::bf16)
    body(Bf16{});
  else
    body(F16{});
}

FERRY_GPU bool aligned_to(const void* p, std::size_t bytes) {
  return reinterpret_cast<std::uintptr_t>(p) % bytes == 0;
}

/// Values [i, i + count) of a row, count <= 4; zeros behind them.
template <class Element, class Thread>
FERRY_GPU Four load_four(Thread& t, const std::byte* row, std::int64_t i, int count) {
  using Packed = typename Element::Packed;
  const auto* at = reinterpret_cast<const typename Element::One*>(row) + i;
  if (count == 4 && aligned_to(at, sizeof(Packed)))
    return Element::unpack(t.load(reinterpret_cast<const Packed*>(at)));
  Four v{};
  for (int j = 0; j < 4; ++j)  // unrolled: an index that varies would put v into memory
    if (j < count) v.x[j] = Element::from(t.load(at + j));
  return v;
}

template <class Element, class Thread>
FERRY_GPU void store_four(Thread& t, std::byte* row, std::int64_t i, const Four& v, int count) {
  using Packed = typename Element::Packed;
  auto* at = reinterpret_cast<typename Element::One*>(row) + i;
  if (count == 4 && aligned_to(at, sizeof(Packed))) {
    t.store(reinterpret_cast<Packed*>(at), Element::pack(v));
    return;
  }
  for (int j = 0; j < 4; ++j)
    if (j < count) t.store(at + j, Element::to(v.x[j]));
}

}  // namespace ferry::gpu
