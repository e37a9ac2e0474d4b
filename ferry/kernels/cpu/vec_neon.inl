// Sixteen f32 lanes in four NEON registers; vec_scalar.inl says what each operation means.
// Included inside an anonymous namespace.

struct F32x16 {
  float32x4_t q0, q1, q2, q3;
};

template <class Op, class... Lanes16>
inline F32x16 each_four(Op op, const Lanes16&... x) {
  return {op(x.q0...), op(x.q1...), op(x.q2...), op(x.q3...)};
}

inline F32x16 splat(float x) {
  const float32x4_t all = vdupq_n_f32(x);
  return {all, all, all, all};
}

inline F32x16 load(const float* p) {
  return {vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)};
}

inline void store(float* p, F32x16 x) {
  vst1q_f32(p, x.q0);
  vst1q_f32(p + 4, x.q1);
  vst1q_f32(p + 8, x.q2);
  vst1q_f32(p + 12, x.q3);
}

inline uint8x16_t load_sixteen(const std::byte* p) {
  return vld1q_u8(reinterpret_cast<const std::uint8_t*>(p));
}

inline void store_sixteen(std::byte* p, uint8x16_t x) {
  vst1q_u8(reinterpret_cast<std::uint8_t*>(p), x);
}

/// NEON masks no loads and stores: the end of a row goes through this.
struct PartOfRow {
  alignas(16) std::byte data[64];
};

/// `count` elements of `bytes` bytes, and zeros.
inline PartOfRow copy_part(const void* p, int count, int bytes) {
  PartOfRow part{};
  std::memcpy(part.data, p, static_cast<std::size_t>(count * bytes));
  return part;
}

inline F32x16 load_part(const float* p, int count) {
  return load(reinterpret_cast<const float*>(copy_part(p, count, 4).data));
}

inline void store_part(float* p, F32x16 x, int count) {
  alignas(16) float part[16];
  store(part, x);
  std::memcpy(p, part, static_cast<std::size_t>(count) * 4);
}

inline float32x4_t widen_bf16(uint16x4_t x) { return vreinterpretq_f32_u32(vshll_n_u16(x, 16)); }

inline F32x16 load_bf16(const std::byte* p) {
  const uint16x8_t low = vreinterpretq_u16_u8(load_sixteen(p));
  const uint16x8_t high = vreinterpretq_u16_u8(load_sixteen(p + 16));
  return {widen_bf16(vget_low_u16(low)),
          widen_bf16(vget_high_u16(low)),
          widen_bf16(vget_low_u16(high)),
          widen_bf16(vget_high_u16(high))};
}

inline F32x16 load_bf16_part(const std::byte* p, int count) {
  return load_bf16(copy_part(p, count, 2).data);
}

/// FPCR.FZ does not reach conversions from and to f16.
inline F32x16 widen_f16(uint16x8_t low, uint16x8_t high) {
  const float16x8_t first = vreinterpretq_f16_u16(low);
  const float16x8_t second = vreinterpretq_f16_u16(high);
  return {vcvt_f32_f16(vget_low_f16(first)),
          vcvt_f32_f16(vget_high_f16(first)),
          vcvt_f32_f16(vget_low_f16(second)),
          vcvt_f32_f16(vget_high_f16(second))};
}

inline F32x16 load_f16(const std::byte* p) {
  return widen_f16(vreinterpretq_u16_u8(load_sixteen(p)),
                   vreinterpretq_u16_u8(load_sixteen(p + 16)));
}

inline F32x16 load_f16_part(const std::byte* p, int count) {
  return load_f16(copy_part(p, count, 2).data);
}

/// Rounds to nearest even.
inline uint16x4_t round_bf16(float32x4_t x) {
  const uint32x4_t bits = vreinterpretq_u32_f32(x);
  const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
  const uint32x4_t rounded = vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), odd);
  const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
  return vshrn_n_u32(vbslq_u32(vceqq_f32(x, x), rounded, quiet), 16);
}

inline void store_bf16(std::byte* p, F32x16 x) {
  const uint16x8_t low = vcombine_u16(round_bf16(x.q0), round_bf16(x.q1));
  const uint16x8_t high = vcombine_u16(round_bf16(x.q2), round_bf16(x.q3));
  store_sixteen(p, vreinterpretq_u8_u16(low));
  store_sixteen(p + 16, vreinterpretq_u8_u16(high));
}

inline void store_bf16_part(std::byte* p, F32x16 x, int count) {
  PartOfRow part;
  store_bf16(part.data, x);
  std::memcpy(p, part.data, static_cast<std::size_t>(count) * 2);
}

inline void store_f16(std::byte* p, F32x16 x) {
  const float16x8_t low = vcombine_f16(vcvt_f16_f32(x.q0), vcvt_f16_f32(x.q1));
  const float16x8_t high = vcombine_f16(vcvt_f16_f32(x.q2), vcvt_f16_f32(x.q3));
  store_sixteen(p, vreinterpretq_u8_f16(low));
  store_sixteen(p + 16, vreinterpretq_u8_f16(high));
}

inline void store_f16_part(std::byte* p, F32x16 x, int count) {
  PartOfRow part;
  store_f16(part.data, x);
  std::memcpy(p, part.data, static_cast<std::size_t>(count) * 2);
}

/// Codes of e4m3fn as f16 of 2^-8 the value, as vec_x86.inl does it. REQUIRES: no NaN.
inline uint16x8_t finite_fp8_to_f16(uint8x8_t codes) {
  const uint16x8_t moved = vreinterpretq_u16_s16(vshll_n_s8(vreinterpret_s8_u8(codes), 7));
  return vandq_u16(moved, vdupq_n_u16(0xbfff));
}

inline uint16x8_t fp8_to_f16(uint8x8_t codes) {
  const uint8x8_t nan = vceq_u8(vorr_u8(codes, vdup_n_u8(0x80)), vdup_n_u8(0xff));
  const uint16x8_t all = vreinterpretq_u16_s16(vmovl_s8(vreinterpret_s8_u8(nan)));
  return vorrq_u16(finite_fp8_to_f16(codes), vandq_u16(all, vdupq_n_u16(0x7e00)));
}

inline F32x16 load_fp8(const std::byte* p) {
  const uint8x16_t codes = load_sixteen(p);
  return widen_f16(fp8_to_f16(vget_low_u8(codes)), fp8_to_f16(vget_high_u8(codes)));
}

inline F32x16 load_fp8_part(const std::byte* p, int count) {
  return load_fp8(copy_part(p, count, 1).data);
}

struct Sixteens {
  F32x16 first, second;
};

inline Sixteens load_two_fp8(const std::byte* p) { return {load_fp8(p), load_fp8(p + 16)}; }

inline F32x16 load_finite_fp8(const std::byte* p) {
  const uint8x16_t codes = load_sixteen(p);
  return widen_f16(finite_fp8_to_f16(vget_low_u8(codes)), finite_fp8_to_f16(vget_high_u8(codes)));
}

inline Sixteens load_two_finite_fp8(const std::byte* p) {
  return {load_finite_fp8(p), load_finite_fp8(p + 16)};
}

inline F32x16 load_int8(const std::byte* p) {
  const int8x16_t x = vreinterpretq_s8_u8(load_sixteen(p));
  const int16x8_t low = vmovl_s8(vget_low_s8(x));
  const int16x8_t high = vmovl_s8(vget_high_s8(x));
  return {vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))),
          vcvtq_f32_s32(vmovl_s16(vget_high_s16(low))),
          vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))),
          vcvtq_f32_s32(vmovl_s16(vget_high_s16(high)))};
}

inline F32x16 load_int8_part(const std::byte* p, int count) {
  return load_int8(copy_part(p, count, 1).data);
}

/// The codes lie in the lowest byte of each 32-bit lane; vec_avx512.inl explains the steps.
inline uint32x4_t round_fp8(float32x4_t x) {
  const uint32x4_t bits = vreinterpretq_u32_f32(x);
  const uint32x4_t magnitude = vandq_u32(bits, vdupq_n_u32(0x7fffffff));
  const uint32x4_t exponent =
      vmaxq_u32(vandq_u32(bits, vdupq_n_u32(0x7f800000)), vdupq_n_u32(kFp8Normal << 23));
  const uint32x4_t unit = vaddq_u32(exponent, vdupq_n_u32(kFp8Rounder));
  const float32x4_t rounded =
      vaddq_f32(vreinterpretq_f32_u32(magnitude), vreinterpretq_f32_u32(unit));
  const uint32x4_t code = vaddq_u32(vreinterpretq_u32_f32(rounded), vshrq_n_u32(exponent, 20));
  const uint32x4_t sign = vandq_u32(vshrq_n_u32(bits, 24), vdupq_n_u32(0x80));
  return vorrq_u32(vandq_u32(code, vdupq_n_u32(0x7f)), sign);
}

/// The lowest byte of each lane.
inline uint8x16_t lowest_bytes(uint32x4_t q0, uint32x4_t q1, uint32x4_t q2, uint32x4_t q3) {
  const uint16x8_t low = vcombine_u16(vmovn_u32(q0), vmovn_u32(q1));
  const uint16x8_t high = vcombine_u16(vmovn_u32(q2), vmovn_u32(q3));
  return vcombine_u8(vmovn_u16(low), vmovn_u16(high));
}

inline void store_fp8(std::byte* p, F32x16 x) {
  store_sixteen(p,
                lowest_bytes(round_fp8(x.q0), round_fp8(x.q1), round_fp8(x.q2), round_fp8(x.q3)));
}

inline void store_fp8_part(std::byte* p, F32x16 x, int count) {
  PartOfRow part;
  store_fp8(part.data, x);
  std::memcpy(p, part.data, static_cast<std::size_t>(count));
}

inline void store_int8(std::byte* p, F32x16 x) {
  const auto round = [](float32x4_t four) { return vreinterpretq_u32_s32(vcvtnq_s32_f32(four)); };
  store_sixteen(p, lowest_bytes(round(x.q0), round(x.q1), round(x.q2), round(x.q3)));
}

inline void store_int8_part(std::byte* p, F32x16 x, int count) {
  PartOfRow part;
  store_int8(part.data, x);
  std::memcpy(p, part.data, static_cast<std::size_t>(count));
}

struct Pairs {
  F32x16 even, odd;
};

inline F32x16 floats_of_bits(uint32x4_t q0, uint32x4_t q1, uint32x4_t q2, uint32x4_t q3) {
  return {vreinterpretq_f32_u32(q0),
          vreinterpretq_f32_u32(q1),
          vreinterpretq_f32_u32(q2),
          vreinterpretq_f32_u32(q3)};
}

inline Pairs load_bf16_pairs(const std::byte* p) {
  const uint32x4_t upper_half = vdupq_n_u32(0xffff0000U);
  const uint32x4_t q0 = vreinterpretq_u32_u8(load_sixteen(p));
  const uint32x4_t q1 = vreinterpretq_u32_u8(load_sixteen(p + 16));
  const uint32x4_t q2 = vreinterpretq_u32_u8(load_sixteen(p + 32));
  const uint32x4_t q3 = vreinterpretq_u32_u8(load_sixteen(p + 48));
  return {floats_of_bits(
              vshlq_n_u32(q0, 16), vshlq_n_u32(q1, 16), vshlq_n_u32(q2, 16), vshlq_n_u32(q3, 16)),
          floats_of_bits(vandq_u32(q0, upper_half),
                         vandq_u32(q1, upper_half),
                         vandq_u32(q2, upper_half),
                         vandq_u32(q3, upper_half))};
}

inline uint8x16_t bf16_pairs(float32x4_t even, float32x4_t odd) {
  const uint32x4_t upper = vreinterpretq_u32_f32(odd);
  return vreinterpretq_u8_u32(vsriq_n_u32(upper, vreinterpretq_u32_f32(even), 16));
}

inline void store_bf16_pairs(std::byte* p, const Pairs& pairs) {
  store_sixteen(p, bf16_pairs(pairs.even.q0, pairs.odd.q0));
  store_sixteen(p + 16, bf16_pairs(pairs.even.q1, pairs.odd.q1));
  store_sixteen(p + 32, bf16_pairs(pairs.even.q2, pairs.odd.q2));
  store_sixteen(p + 48, bf16_pairs(pairs.even.q3, pairs.odd.q3));
}

inline F32x16 add(F32x16 a, F32x16 b) {
  return each_four([](float32x4_t x, float32x4_t y) { return vaddq_f32(x, y); }, a, b);
}

inline F32x16 sub(F32x16 a, F32x16 b) {
  return each_four([](float32x4_t x, float32x4_t y) { return vsubq_f32(x, y); }, a, b);
}

inline F32x16 mul(F32x16 a, F32x16 b) {
  return each_four([](float32x4_t x, float32x4_t y) { return vmulq_f32(x, y); }, a, b);
}

inline F32x16 div(F32x16 a, F32x16 b) {
  return each_four([](float32x4_t x, float32x4_t y) { return vdivq_f32(x, y); }, a, b);
}

inline F32x16 square_root(F32x16 a) {
  return each_four([](float32x4_t x) { return vsqrtq_f32(x); }, a);
}

/// Compares and selects: FMAX and FMIN have other rules for NaN and for zeros of both signs.
inline float32x4_t larger_of(float32x4_t a, float32x4_t b) {
  return vbslq_f32(vcgtq_f32(a, b), a, b);
}

inline F32x16 max(F32x16 a, F32x16 b) {
  return each_four([](float32x4_t x, float32x4_t y) { return larger_of(x, y); }, a, b);
}

inline F32x16 min(F32x16 a, F32x16 b) {
  return each_four(
      [](float32x4_t x, float32x4_t y) { return vbslq_f32(vcltq_f32(x, y), x, y); }, a, b);
}

inline F32x16 load_powers(const std::byte* p) {
  const uint8x16_t x = load_sixteen(p);
  const uint16x8_t low = vmovl_u8(vget_low_u8(x));
  const uint16x8_t high = vmovl_u8(vget_high_u8(x));
  const auto exponents = [](uint16x4_t four) { return vshlq_n_u32(vmovl_u16(four), 23); };
  return floats_of_bits(exponents(vget_low_u16(low)),
                        exponents(vget_high_u16(low)),
                        exponents(vget_low_u16(high)),
                        exponents(vget_high_u16(high)));
}

/// The bf16 of 16 codes of e2m1, lower eight and upper eight: upper and lower bytes are looked up
/// apart and put side by side.
inline uint16x8x2_t e2m1_to_bf16(uint8x16_t codes) {
  constexpr std::uint8_t kUpper[16] = {
      0, 63, 63, 63, 64, 64, 64, 64, 128, 191, 191, 191, 192, 192, 192, 192};
  constexpr std::uint8_t kLower[16] = {
      0, 0, 128, 192, 0, 64, 128, 192, 0, 0, 128, 192, 0, 64, 128, 192};
  const uint8x16_t upper = vqtbl1q_u8(vld1q_u8(kUpper), codes);
  const uint8x16_t lower = vqtbl1q_u8(vld1q_u8(kLower), codes);
  return {{vreinterpretq_u16_u8(vzip1q_u8(lower, upper)),
           vreinterpretq_u16_u8(vzip2q_u8(lower, upper))}};
}

inline void load_e2m1(const std::byte* p, F32x16 scale, Pairs (&out)[2]) {
  const uint8x16_t mask = vdupq_n_u8(15);
  const uint8x16_t first = load_sixteen(p);        // columns 0 to 3 and 8 to 11
  const uint8x16_t second = load_sixteen(p + 16);  // 4 to 7 and 12 to 15
  const uint16x8x2_t even[2] = {e2m1_to_bf16(vandq_u8(first, mask)),
                                e2m1_to_bf16(vandq_u8(second, mask))};
  const uint16x8x2_t odd[2] = {e2m1_to_bf16(vshrq_n_u8(first, 4)),
                               e2m1_to_bf16(vshrq_n_u8(second, 4))};
  const auto columns = [&](const uint16x8x2_t(&halves)[2], int pair) {
    const F32x16 numbers{widen_bf16(vget_low_u16(halves[0].val[pair])),
                         widen_bf16(vget_low_u16(halves[1].val[pair])),
                         widen_bf16(vget_high_u16(halves[0].val[pair])),
                         widen_bf16(vget_high_u16(halves[1].val[pair]))};
    return mul(numbers, scale);
  };
  for (int pair = 0; pair < 2; ++pair) out[pair] = {columns(even, pair), columns(odd, pair)};
}

inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
  return each_four(
      [](float32x4_t x, float32x4_t y, float32x4_t z) { return vfmaq_f32(z, x, y); }, a, b, c);
}

inline F32x16 fms(F32x16 a, F32x16 b, F32x16 c) {
  return each_four(
      [](float32x4_t x, float32x4_t y, float32x4_t z) { return vfmaq_f32(vnegq_f32(z), x, y); },
      a,
      b,
      c);
}

inline F32x16 bits_to_exponent(F32x16 a) {
  return each_four(
      [](float32x4_t x) {
        return vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_f32(x), 23));
      },
      a);
}

inline F32x16 first_lanes(int count, F32x16 a, F32x16 b) {
  constexpr std::int32_t kLanes[4] = {0, 1, 2, 3};
  const int32x4_t lanes = vld1q_s32(kLanes);
  const auto chosen = [&](int first, float32x4_t x, float32x4_t y) {
    return vbslq_f32(vcgtq_s32(vdupq_n_s32(count - first), lanes), x, y);
  };
  return {
      chosen(0, a.q0, b.q0), chosen(4, a.q1, b.q1), chosen(8, a.q2, b.q2), chosen(12, a.q3, b.q3)};
}

inline F32x16 max_magnitude(F32x16 most, F32x16 x) {
  return each_four(
      [](float32x4_t a, float32x4_t b) {
        const uint32x4_t bits = vandq_u32(vreinterpretq_u32_f32(b), vdupq_n_u32(0x7fffffff));
        return vreinterpretq_f32_u32(vmaxq_u32(vreinterpretq_u32_f32(a), bits));
      },
      most,
      x);
}

inline std::uint32_t fold_max_bits(F32x16 a) {
  const auto bits = [](float32x4_t x) { return vreinterpretq_u32_f32(x); };
  return vmaxvq_u32(
      vmaxq_u32(vmaxq_u32(bits(a.q0), bits(a.q1)), vmaxq_u32(bits(a.q2), bits(a.q3))));
}

inline std::uint32_t max_bits_bf16(const std::byte* p) {
  uint16x8_t most = vdupq_n_u16(0);
  for (int i = 0; i < 256; i += 16) {
    const uint16x8_t x = vreinterpretq_u16_u8(load_sixteen(p + i));
    most = vmaxq_u16(most, vandq_u16(x, vdupq_n_u16(0x7fff)));
  }
  return static_cast<std::uint32_t>(vmaxvq_u16(most)) << 16;
}

/// Lanes folded 16 -> 8 -> 4.
inline float32x4_t fold_to_four(F32x16 a) {
  return vaddq_f32(vaddq_f32(a.q0, a.q2), vaddq_f32(a.q1, a.q3));
}

inline float fold_add(F32x16 a) {
  const float32x4_t four = fold_to_four(a);
  const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
  return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}

/// Lane i: the lanes of x[i] folded.
inline F32x16 fold_add_sixteen(const F32x16 (&x)[16]) {
  const auto to_two_each = [](float32x4_t a, float32x4_t b) {
    return vaddq_f32(vcombine_f32(vget_low_f32(a), vget_low_f32(b)),
                     vcombine_f32(vget_high_f32(a), vget_high_f32(b)));
  };
  const auto four = [&](int i) {
    return vpaddq_f32(to_two_each(fold_to_four(x[i]), fold_to_four(x[i + 1])),
                      to_two_each(fold_to_four(x[i + 2]), fold_to_four(x[i + 3])));
  };
  return {four(0), four(4), four(8), four(12)};
}

inline float fold_max(F32x16 a) {
  const float32x4_t four = larger_of(larger_of(a.q0, a.q2), larger_of(a.q1, a.q3));
  const float32x2_t low = vget_low_f32(four);
  const float32x2_t high = vget_high_f32(four);
  const float32x2_t two = vbsl_f32(vcgt_f32(low, high), low, high);
  const float first = vget_lane_f32(two, 0);
  const float second = vget_lane_f32(two, 1);
  return first > second ? first : second;
}

/// No stores that pass by the caches: what follows a release store publishes these bytes like any.
inline void stream_line(std::byte* to, const std::byte* from) {
  for (int i = 0; i < 64; i += 16) store_sixteen(to + i, load_sixteen(from + i));
}

inline void stream_fence() {}

/// Asks for lines from `from` on to be brought into the L2 cache; returns what is behind them.
inline const std::byte* prefetch_lines(const std::byte* from, std::int64_t lines) {
  asm volatile(
      "b 2f\n"
      "1: prfm pldl2keep, [%0]\n"
      "add %0, %0, #64\n"
      "2: subs %1, %1, #1\n"
      "b.pl 1b"
      : "+r"(from), "+r"(lines)
      :
      : "cc");
  return from;
}
