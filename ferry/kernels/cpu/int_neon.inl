// Integers sixteen at a time in four NEON registers; int_scalar.inl says what each operation means.
// Files compiled for it multiply by SDOT. Included after vec_neon.inl, inside an
// anonymous namespace.

struct I32x16 {
  int32x4_t q0, q1, q2, q3;
};

struct Bytes64 {
  uint8x16_t q0, q1, q2, q3;
};

inline I32x16 no_integers() {
  const int32x4_t zero = vdupq_n_s32(0);
  return {zero, zero, zero, zero};
}

inline Bytes64 load_bytes(const std::byte* p) {
  return {load_sixteen(p), load_sixteen(p + 16), load_sixteen(p + 32), load_sixteen(p + 48)};
}

inline Bytes64 splat_four(const std::byte* p) {
  std::uint32_t four;
  std::memcpy(&four, p, sizeof four);
  const uint8x16_t all = vreinterpretq_u8_u32(vdupq_n_u32(four));
  return {all, all, all, all};
}

inline Bytes64 splat_byte(std::uint8_t x) {
  const uint8x16_t all = vdupq_n_u8(x);
  return {all, all, all, all};
}

inline Bytes64 lower_halves(Bytes64 x) {
  const uint8x16_t mask = vdupq_n_u8(15);
  return {vandq_u8(x.q0, mask), vandq_u8(x.q1, mask), vandq_u8(x.q2, mask), vandq_u8(x.q3, mask)};
}

inline Bytes64 upper_halves(Bytes64 x) {
  return {vshrq_n_u8(x.q0, 4), vshrq_n_u8(x.q1, 4), vshrq_n_u8(x.q2, 4), vshrq_n_u8(x.q3, 4)};
}

template <int Left>
Bytes64 moved_bits(Bytes64 x, std::uint8_t mask) {
  const int8x16_t left = vdupq_n_s8(Left);  // USHL moves to the right by less than nothing
  const uint8x16_t bits = vdupq_n_u8(mask);
  return {vandq_u8(vshlq_u8(x.q0, left), bits),
          vandq_u8(vshlq_u8(x.q1, left), bits),
          vandq_u8(vshlq_u8(x.q2, left), bits),
          vandq_u8(vshlq_u8(x.q3, left), bits)};
}

inline Bytes64 either(Bytes64 a, Bytes64 b) {
  return {vorrq_u8(a.q0, b.q0), vorrq_u8(a.q1, b.q1), vorrq_u8(a.q2, b.q2), vorrq_u8(a.q3, b.q3)};
}

inline Bytes64 look_up(const std::uint8_t* sixteen, Bytes64 at) {
  const uint8x16_t table = vld1q_u8(sixteen);
  return {vqtbl1q_u8(table, at.q0),
          vqtbl1q_u8(table, at.q1),
          vqtbl1q_u8(table, at.q2),
          vqtbl1q_u8(table, at.q3)};
}

inline void store_bytes(std::byte* p, Bytes64 x) {
  auto* out = reinterpret_cast<std::uint8_t*>(p);
  vst1q_u8(out, x.q0);
  vst1q_u8(out + 16, x.q1);
  vst1q_u8(out + 32, x.q2);
  vst1q_u8(out + 48, x.q3);
}

inline I32x16 splat_integer(const std::byte* p) {
  const int32x4_t all = vreinterpretq_s32_u8(splat_four(p).q0);
  return {all, all, all, all};
}

inline void store_integers(std::int32_t* p, I32x16 x) {
  vst1q_s32(p, x.q0);
  vst1q_s32(p + 4, x.q1);
  vst1q_s32(p + 8, x.q2);
  vst1q_s32(p + 12, x.q3);
}

/// Both have a sign here: bytes of a below 128 are the same with and without one. Without SDOT two
/// products are added as a word of 16 bits, which holds them since no byte of b is -128: the
/// greatest are 2 * 127 * 128. (a may have a -128, which some stored int8 weights have.)
inline int32x4_t dot(int32x4_t sum, uint8x16_t a, uint8x16_t b) {
  const int8x16_t x = vreinterpretq_s8_u8(a);
  const int8x16_t y = vreinterpretq_s8_u8(b);
#if defined(__ARM_FEATURE_DOTPROD)
  return vdotq_s32(sum, x, y);
#else
  const int16x8_t low = vmull_s8(vget_low_s8(x), vget_low_s8(y));
  const int16x8_t high = vmull_high_s8(x, y);
  return vpadalq_s16(sum, vpaddq_s16(low, high));
#endif
}

inline I32x16 dot_small(I32x16 sum, Bytes64 a, Bytes64 b) {
  return {dot(sum.q0, a.q0, b.q0),
          dot(sum.q1, a.q1, b.q1),
          dot(sum.q2, a.q2, b.q2),
          dot(sum.q3, a.q3, b.q3)};
}

/// The value is taken, not the code.
inline constexpr std::int32_t kBiasLeft = 0;

inline I32x16 dot_biased(I32x16 sum, Bytes64 a, Bytes64 b) {
  const uint8x16_t bias = vdupq_n_u8(0x80);
  return dot_small(
      sum,
      {veorq_u8(a.q0, bias), veorq_u8(a.q1, bias), veorq_u8(a.q2, bias), veorq_u8(a.q3, bias)},
      b);
}

inline I32x16 subtract(I32x16 a, std::int32_t b) {
  const int32x4_t all = vdupq_n_s32(b);
  return {vsubq_s32(a.q0, all), vsubq_s32(a.q1, all), vsubq_s32(a.q2, all), vsubq_s32(a.q3, all)};
}

inline std::int32_t fold_integers(I32x16 a) {
  return vaddvq_s32(vaddq_s32(vaddq_s32(a.q0, a.q1), vaddq_s32(a.q2, a.q3)));
}

inline F32x16 as_floats(I32x16 a) {
  return {vreinterpretq_f32_s32(a.q0),
          vreinterpretq_f32_s32(a.q1),
          vreinterpretq_f32_s32(a.q2),
          vreinterpretq_f32_s32(a.q3)};
}

inline F32x16 to_floats(I32x16 a) {
  return {vcvtq_f32_s32(a.q0), vcvtq_f32_s32(a.q1), vcvtq_f32_s32(a.q2), vcvtq_f32_s32(a.q3)};
}

/// Sixteen bytes, without sign.
inline I32x16 widen_bytes(const std::byte* p) {
  const uint8x16_t x = load_sixteen(p);
  const uint16x8_t low = vmovl_u8(vget_low_u8(x));
  const uint16x8_t high = vmovl_high_u8(x);
  return {vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(low))),
          vreinterpretq_s32_u32(vmovl_high_u16(low)),
          vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(high))),
          vreinterpretq_s32_u32(vmovl_high_u16(high))};
}

inline I32x16 masked(I32x16 a, std::int32_t mask) {
  const int32x4_t bits = vdupq_n_s32(mask);
  return {
      vandq_s32(a.q0, bits), vandq_s32(a.q1, bits), vandq_s32(a.q2, bits), vandq_s32(a.q3, bits)};
}

inline I32x16 either(I32x16 a, I32x16 b) {
  return {
      vorrq_s32(a.q0, b.q0), vorrq_s32(a.q1, b.q1), vorrq_s32(a.q2, b.q2), vorrq_s32(a.q3, b.q3)};
}

/// Moved to the left by so many bits, or to the right. REQUIRES: no sign.
template <int Left>
I32x16 moved(I32x16 a) {
  const int32x4_t left = vdupq_n_s32(Left);  // USHL and SSHL move to the right by less than nothing
  return {
      vshlq_s32(a.q0, left), vshlq_s32(a.q1, left), vshlq_s32(a.q2, left), vshlq_s32(a.q3, left)};
}

/// The numbers at these places, 0 to 15.
inline F32x16 look_up(const float* numbers, I32x16 at) {
  const auto* bytes = reinterpret_cast<const std::byte*>(numbers);
  const uint8x16x4_t table = {{load_sixteen(bytes),
                               load_sixteen(bytes + 16),
                               load_sixteen(bytes + 32),
                               load_sixteen(bytes + 48)}};
  const auto four = [&](int32x4_t places) {
    // The places of a number's four bytes.
    const int32x4_t of_bytes = vmlaq_s32(vdupq_n_s32(0x03020100), places, vdupq_n_s32(0x04040404));
    return vreinterpretq_f32_u8(vqtbl4q_u8(table, vreinterpretq_u8_s32(of_bytes)));
  };
  return {four(at.q0), four(at.q1), four(at.q2), four(at.q3)};
}
