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

inline std::uint16_t u16_at(const std::byte* p, std::int64_t i) {
  std::uint16_t bits;
  std::memcpy(&bits, p + 2 * i, sizeof bits);
  return bits;
}

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

/// Codes of e4m3fn over 2^8: that is the f16 with their bits, which vec_x86.inl converts. 0x7f and
/// 0xff are NaN.
inline F32x16 load_fp8_part(const std::byte* p, int count) {
  return each_lane([&](int j) {
    return j < count ? fp8_to_f32(static_cast<std::uint8_t>(p[j])) / kFp8OfF16 : 0.0F;
  });
}

inline F32x16 load_fp8(const std::byte* p) { return load_fp8_part(p, 16); }

/// 32 lanes at once, where that is cheaper.
struct Sixteens {
  F32x16 first, second;
};

inline Sixteens load_two_fp8(const std::byte* p) { return {load_fp8(p), load_fp8(p + 16)}; }

/// The same. REQUIRES: no NaN. Elsewhere not to look for it saves half the instructions.
inline Sixteens load_two_finite_fp8(const std::byte* p) { return load_two_fp8(p); }

inline F32x16 load_int8_part(const std::byte* p, int count) {
  return each_lane(
      [&](int j) { return j < count ? static_cast<float>(static_cast<std::int8_t>(p[j])) : 0.0F; });
}

inline F32x16 load_int8(const std::byte* p) { return load_int8_part(p, 16); }

/// REQUIRES: magnitudes below 464, no NaN.
inline void store_fp8_part(std::byte* p, F32x16 x, int count) {
  for (int j = 0; j < count; ++j) p[j] = static_cast<std::byte>(f32_to_fp8(x.lane[j]));
}

inline void store_fp8(std::byte* p, F32x16 x) { store_fp8_part(p, x, 16); }

/// Nearest even. REQUIRES: magnitudes below 127.5, no NaN.
inline void store_int8_part(std::byte* p, F32x16 x, int count) {
  for (int j = 0; j < count; ++j)
    p[j] = static_cast<std::byte>(static_cast<std::int8_t>(std::nearbyint(x.lane[j])));
}

inline void store_int8(std::byte* p, F32x16 x) { store_int8_part(p, x, 16); }

struct Pairs {
  F32x16 even, odd;
};

/// 16 pairs of bf16: their first and their second halves.
inline Pairs load_bf16_pairs(const std::byte* p) {
  return {each_lane([&](int j) { return bf16_to_f32(u16_at(p, 2 * j)); }),
          each_lane([&](int j) { return bf16_to_f32(u16_at(p, 2 * j + 1)); })};
}

/// The reverse. REQUIRES: numbers that bf16 holds exactly.
inline void store_bf16_pairs(std::byte* p, const Pairs& pairs) {
  for (int j = 0; j < 16; ++j) {
    const std::uint32_t both =
        bits_of(pairs.even.lane[j]) >> 16 | (bits_of(pairs.odd.lane[j]) & 0xffff0000U);
    std::memcpy(p + std::ptrdiff_t{4} * j, &both, sizeof both);
  }
}

/// 16 bytes s as 2^(s - 127). REQUIRES: 1 to 254.
inline F32x16 load_powers(const std::byte* p) {
  return each_lane([&](int j) { return float_of(static_cast<std::uint32_t>(p[j]) << 23); });
}

inline float e2m1_to_f32(unsigned code) {
  constexpr float kMagnitudes[8] = {0.0F, 0.5F, 1.0F, 1.5F, 2.0F, 3.0F, 4.0F, 6.0F};
  return (code & 8U) != 0 ? -kMagnitudes[code & 7U] : kMagnitudes[code & 7U];
}

/// Four k of 16 columns of e2m1 codes, as mxfp4 panels have them, times their columns' scales.
inline void load_e2m1(const std::byte* p, const F32x16& scale, Pairs (&out)[2]) {
  for (int pair = 0; pair < 2; ++pair) {
    const auto both = [&](int column) {
      return static_cast<unsigned>(p[pair * 8 + column / 4 % 2 * 16 + column / 8 * 4 + column % 4]);
    };
    out[pair].even = each_lane([&](int j) { return e2m1_to_f32(both(j) & 15U) * scale.lane[j]; });
    out[pair].odd = each_lane([&](int j) { return e2m1_to_f32(both(j) >> 4) * scale.lane[j]; });
  }
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

/// The larger magnitude, as patterns of bits: no denormal is lost, infinity is above all numbers
/// and NaN above infinity. REQUIRES: `most` has no sign.
inline F32x16 max_magnitude(F32x16 most, F32x16 x) {
  return each_lane([&](int j) {
    const std::uint32_t a = bits_of(most.lane[j]);
    const std::uint32_t b = bits_of(x.lane[j]) & 0x7fffffffU;
    return float_of(a > b ? a : b);
  });
}

/// The bits of the largest lane. REQUIRES: lanes without sign.
inline std::uint32_t fold_max_bits(F32x16 a) {
  std::uint32_t most = 0;
  for (const float x : a.lane) most = most > bits_of(x) ? most : bits_of(x);
  return most;
}

/// The bits of the greatest magnitude of 128 bf16, as f32.
inline std::uint32_t max_bits_bf16(const std::byte* p) {
  std::uint32_t most = 0;
  for (int i = 0; i < 128; ++i) {
    const std::uint32_t x = static_cast<std::uint32_t>(u16_at(p, i) & 0x7fffU) << 16;
    most = most > x ? most : x;
  }
  return most;
}

/// Lanes folded 16 -> 8 -> 4 -> 2 -> 1.
inline float fold_add(F32x16 a) {
  for (int half = 8; half > 0; half /= 2)
    for (int j = 0; j < half; ++j) a.lane[j] = a.lane[j] + a.lane[j + half];
  return a.lane[0];
}

/// Lane i: the lanes of x[i] folded.
inline F32x16 fold_add_sixteen(const F32x16 (&x)[16]) {
  return each_lane([&](int j) { return fold_add(x[j]); });
}

inline float fold_max(F32x16 a) {
  for (int half = 8; half > 0; half /= 2)
    for (int j = 0; j < half; ++j)
      a.lane[j] = a.lane[j] > a.lane[j + half] ? a.lane[j] : a.lane[j + half];
  return a.lane[0];
}

inline void stream_line(std::byte* to, const std::byte* from) { std::memcpy(to, from, 64); }

inline void stream_fence() {}

/// Asks for lines from `from` on to be brought into the L2 cache; returns what is behind them.
inline const std::byte* prefetch_lines(const std::byte* from, std::int64_t lines) {
  for (; lines > 0; --lines, from += 64) __builtin_prefetch(from, /*for writing*/ 0, /*into L2*/ 2);
  return from;
}
