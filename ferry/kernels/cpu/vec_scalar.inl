// Sixteen f32 lanes without any vector instruction: the meaning of every operation.
// vec_avx2.inl and vec_avx512.inl offer the same names. Included inside an anonymous namespace.

struct F32x16 {
  float lane[16];
};

template <class Op>
F32x16 each_lane(Op op) {
  F32x16 out;
  for (int j = 0; j < 16; ++j) out.lane[j] = op(j);
  return out;
}

inline std::uint32_t bits_of(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

inline float float_of(std::uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

inline std::uint16_t u16_at(const std::byte* p, std::int64_t i) {
  std::uint16_t bits;
  std::memcpy(&bits, p + 2 * i, sizeof bits);
  return bits;
}

inline float f16_to_f32(std::uint16_t half) {
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
inline std::uint32_t shift_right_rounded(std::uint32_t x, std::uint32_t shift) {
  const std::uint32_t odd = (x >> shift) & 1U;
  return (x + (1U << (shift - 1)) - 1 + odd) >> shift;
}

inline std::uint16_t f32_to_f16(float x) {
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

inline std::uint16_t f32_to_bf16(float x) {
  const std::uint32_t bits = bits_of(x);
  if ((bits & 0x7fffffffU) > 0x7f800000U) return static_cast<std::uint16_t>((bits >> 16) | 0x40U);
  return static_cast<std::uint16_t>((bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16);
}

inline float bf16_to_f32(std::uint16_t x) { return float_of(static_cast<std::uint32_t>(x) << 16); }

inline F32x16 splat(float x) {
  return each_lane([&](int) { return x; });
}

inline F32x16 load(const float* p) {
  return each_lane([&](int j) { return p[j]; });
}

inline F32x16 load_part(const float* p, int count) {
  return each_lane([&](int j) { return j < count ? p[j] : 0.0F; });
}

inline F32x16 load_bf16(const std::byte* p) {
  return each_lane([&](int j) { return bf16_to_f32(u16_at(p, j)); });
}

inline F32x16 load_bf16_part(const std::byte* p, int count) {
  return each_lane([&](int j) { return j < count ? bf16_to_f32(u16_at(p, j)) : 0.0F; });
}

inline F32x16 load_f16(const std::byte* p) {
  return each_lane([&](int j) { return f16_to_f32(u16_at(p, j)); });
}

inline F32x16 load_f16_part(const std::byte* p, int count) {
  return each_lane([&](int j) { return j < count ? f16_to_f32(u16_at(p, j)) : 0.0F; });
}

inline void store_part(float* p, F32x16 x, int count) {
  for (int j = 0; j < count; ++j) p[j] = x.lane[j];
}

inline void store_bf16_part(std::byte* p, F32x16 x, int count) {
  for (int j = 0; j < count; ++j) {
    const std::uint16_t bits = f32_to_bf16(x.lane[j]);
    std::memcpy(p + 2 * static_cast<std::int64_t>(j), &bits, sizeof bits);
  }
}

inline void store_f16_part(std::byte* p, F32x16 x, int count) {
  for (int j = 0; j < count; ++j) {
    const std::uint16_t bits = f32_to_f16(x.lane[j]);
    std::memcpy(p + 2 * static_cast<std::int64_t>(j), &bits, sizeof bits);
  }
}

inline void store(float* p, F32x16 x) { store_part(p, x, 16); }

inline void store_bf16(std::byte* p, F32x16 x) { store_bf16_part(p, x, 16); }

inline void store_f16(std::byte* p, F32x16 x) { store_f16_part(p, x, 16); }

struct Pairs {
  F32x16 even, odd;
};

/// 16 pairs of bf16: their first and their second halves.
inline Pairs load_bf16_pairs(const std::byte* p) {
  return {each_lane([&](int j) { return bf16_to_f32(u16_at(p, 2 * j)); }),
          each_lane([&](int j) { return bf16_to_f32(u16_at(p, 2 * j + 1)); })};
}

inline F32x16 add(F32x16 a, F32x16 b) {
  return each_lane([&](int j) { return a.lane[j] + b.lane[j]; });
}

inline F32x16 sub(F32x16 a, F32x16 b) {
  return each_lane([&](int j) { return a.lane[j] - b.lane[j]; });
}

inline F32x16 mul(F32x16 a, F32x16 b) {
  return each_lane([&](int j) { return a.lane[j] * b.lane[j]; });
}

inline F32x16 div(F32x16 a, F32x16 b) {
  return each_lane([&](int j) { return a.lane[j] / b.lane[j]; });
}

inline F32x16 square_root(F32x16 a) {
  return each_lane([&](int j) { return std::sqrt(a.lane[j]); });
}

/// The larger; b where either is NaN.
inline F32x16 max(F32x16 a, F32x16 b) {
  return each_lane([&](int j) { return a.lane[j] > b.lane[j] ? a.lane[j] : b.lane[j]; });
}

/// The smaller; b where either is NaN.
inline F32x16 min(F32x16 a, F32x16 b) {
  return each_lane([&](int j) { return a.lane[j] < b.lane[j] ? a.lane[j] : b.lane[j]; });
}

/// a * b + c, rounded once.
inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
  return each_lane([&](int j) { return std::fmaf(a.lane[j], b.lane[j], c.lane[j]); });
}

/// a * b - c, rounded once.
inline F32x16 fms(F32x16 a, F32x16 b, F32x16 c) {
  return each_lane([&](int j) { return std::fmaf(a.lane[j], b.lane[j], -c.lane[j]); });
}

/// The lowest bits of each lane moved into its exponent.
inline F32x16 bits_to_exponent(F32x16 a) {
  return each_lane([&](int j) { return float_of(bits_of(a.lane[j]) << 23); });
}

/// Lanes below `count` of a, the others of b.
inline F32x16 first_lanes(int count, F32x16 a, F32x16 b) {
  return each_lane([&](int j) { return j < count ? a.lane[j] : b.lane[j]; });
}

/// Lanes folded 16 -> 8 -> 4 -> 2 -> 1.
inline float fold_add(F32x16 a) {
  for (int half = 8; half > 0; half /= 2)
    for (int j = 0; j < half; ++j) a.lane[j] = a.lane[j] + a.lane[j + half];
  return a.lane[0];
}

inline float fold_max(F32x16 a) {
  for (int half = 8; half > 0; half /= 2)
    for (int j = 0; j < half; ++j)
      a.lane[j] = a.lane[j] > a.lane[j + half] ? a.lane[j] : a.lane[j + half];
  return a.lane[0];
}
