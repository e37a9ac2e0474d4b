// One number of a type that rows and weights are kept in, and back: the definition for every
// instruction set and for GPUs. Included after bits.inl.

constexpr float f16_to_f32(std::uint16_t half) {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000U) << 16;
  const std::uint32_t exponent = (half >> 10) & 31U;
  std::uint32_t mantissa = half & 0x3ffU;
  if (exponent == 31) {
    const std::uint32_t quiet = mantissa != 0 ? 0x400000U : 0U;
    return float_of(sign | 0x7f800000U | quiet | (mantissa << 13));
  }
  if (exponent != 0) return float_of(sign | ((exponent + 112) << 23) | (mantissa << 13));
  if (mantissa == 0) return float_of(sign);
  std::uint32_t shift = 0;
  for (; (mantissa & 0x400U) == 0; ++shift) mantissa <<= 1;
  return float_of(sign | ((113 - shift) << 23) | ((mantissa & 0x3ffU) << 13));
}

/// Shifts right, rounding to nearest even. REQUIRES: 1 <= shift <= 31.
constexpr std::uint32_t shift_right_rounded(std::uint32_t x, std::uint32_t shift) {
  const std::uint32_t odd = (x >> shift) & 1U;
  return (x + (1U << (shift - 1)) - 1 + odd) >> shift;
}

constexpr std::uint16_t f32_to_f16(float x) {
  const std::uint32_t bits = bits_of(x);
  const auto sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000U);
  const std::uint32_t magnitude = bits & 0x7fffffffU;
  std::uint32_t half;
  if (magnitude > 0x7f800000U)
    half = 0x7e00U | ((magnitude >> 13) & 0x3ffU);
  else if (magnitude >= 0x477ff000U)  // 65520 and more rounds to infinity
    half = 0x7c00U;
  else if (magnitude >= 0x38800000U)  // normal in f16
    half = shift_right_rounded(magnitude - (112U << 23), 13);
  else if (magnitude >= 0x33000000U)  // denormal in f16, or half of the smallest one
    half = shift_right_rounded((magnitude & 0x7fffffU) | 0x800000U, 126 - (magnitude >> 23));
  else
    half = 0;
  return static_cast<std::uint16_t>(sign | half);
}

constexpr std::uint16_t f32_to_bf16(float x) {
  const std::uint32_t bits = bits_of(x);
  if ((bits & 0x7fffffffU) > 0x7f800000U) return static_cast<std::uint16_t>((bits >> 16) | 0x40U);
  return static_cast<std::uint16_t>((bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16);
}

/// To e4m3fn, nearest even. REQUIRES: |x| < 464, beyond which it would not round to 448 or less.
constexpr std::uint8_t f32_to_fp8(float x) {
  const std::uint32_t bits = bits_of(x);
  const std::uint32_t magnitude = bits & 0x7fffffffU;
  constexpr std::uint32_t kSmallestNormal = 121U << 23;  // 2^-6
  std::uint32_t code;
  if (magnitude >= kSmallestNormal)
    code = shift_right_rounded(magnitude, 20) - (120U << 3);
  else  // the last bit of 2^14 + x stands for 2^-9, the unit of fp8's denormals
    code = bits_of(float_of(magnitude) + 0x1p14F) - bits_of(0x1p14F);
  return static_cast<std::uint8_t>(code | (bits >> 24 & 0x80U));
}

constexpr float fp8_to_f32(std::uint8_t code) {
  const std::uint32_t sign = static_cast<std::uint32_t>(code & 0x80U) << 24;
  const std::uint32_t magnitude = code & 0x7fU;
  if (magnitude == 0x7fU) return float_of(sign | 0x7fc00000U);
  if (magnitude < 8) return float_of(sign | bits_of(static_cast<float>(magnitude) * 0x1p-9F));
  return float_of(sign | ((magnitude << 20) + (120U << 23)));
}

constexpr float bf16_to_f32(std::uint16_t x) {
  return float_of(static_cast<std::uint32_t>(x) << 16);
}
