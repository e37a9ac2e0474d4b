// Integers sixteen at a time in two AVX registers; int_scalar.inl says what each operation means.
// Included after vec_avx2.inl, inside an anonymous namespace.

struct I32x16 {
  __m256i low, high;
};

struct Bytes64 {
  __m256i low, high;
};

inline I32x16 no_integers() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }

inline Bytes64 load_bytes(const std::byte* p) {
  const auto* in = reinterpret_cast<const __m256i_u*>(p);
  return {_mm256_loadu_si256(in), _mm256_loadu_si256(in + 1)};
}

inline Bytes64 splat_four(const std::byte* p) {
  std::int32_t four;
  std::memcpy(&four, p, sizeof four);
  return {_mm256_set1_epi32(four), _mm256_set1_epi32(four)};
}

inline Bytes64 splat_byte(std::uint8_t x) {
  const __m256i all = _mm256_set1_epi8(static_cast<char>(x));
  return {all, all};
}

inline Bytes64 lower_halves(Bytes64 x) {
  const __m256i mask = _mm256_set1_epi8(15);
  return {_mm256_and_si256(x.low, mask), _mm256_and_si256(x.high, mask)};
}

inline Bytes64 upper_halves(Bytes64 x) {
  return lower_halves({_mm256_srli_epi16(x.low, 4), _mm256_srli_epi16(x.high, 4)});
}

template <int Left>
Bytes64 moved_bits(Bytes64 x, std::uint8_t mask) {
  const __m256i bits = _mm256_set1_epi8(static_cast<char>(mask));
  const auto moved = [&](__m256i half) {
    if constexpr (Left > 0) return _mm256_and_si256(_mm256_slli_epi16(half, Left), bits);
    if constexpr (Left < 0) return _mm256_and_si256(_mm256_srli_epi16(half, -Left), bits);
    return _mm256_and_si256(half, bits);
  };
  return {moved(x.low), moved(x.high)};
}

inline Bytes64 either(Bytes64 a, Bytes64 b) {
  return {_mm256_or_si256(a.low, b.low), _mm256_or_si256(a.high, b.high)};
}

inline Bytes64 look_up(const std::uint8_t* sixteen, Bytes64 at) {
  const __m256i table =
      _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i_u*>(sixteen)));
  return {_mm256_shuffle_epi8(table, at.low), _mm256_shuffle_epi8(table, at.high)};
}

inline void store_bytes(std::byte* p, Bytes64 x) {
  auto* out = reinterpret_cast<__m256i_u*>(p);
  _mm256_storeu_si256(out, x.low);
  _mm256_storeu_si256(out + 1, x.high);
}

inline I32x16 splat_integer(const std::byte* p) {
  const Bytes64 all = splat_four(p);
  return {all.low, all.high};
}

inline void store_integers(std::int32_t* p, I32x16 x) {
  auto* out = reinterpret_cast<__m256i_u*>(p);
  _mm256_storeu_si256(out, x.low);
  _mm256_storeu_si256(out + 1, x.high);
}

#ifdef __AVXVNNI__

/// By asm: gcc 12 copies the sum of its own intrinsic to another register and back. As VEX has it:
/// the EVEX form is AVX-512's.
inline __m256i dot_small(__m256i sum, __m256i a, __m256i b) {
  asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b));
  return sum;
}

inline constexpr std::int32_t kBiasLeft = 128;

inline __m256i dot_biased(__m256i sum, __m256i a, __m256i b) { return dot_small(sum, a, b); }

#else

/// VPMADDUBSW adds two products as a word of 16 bits, which must not saturate: 2 * 127 * 128 does
/// not.
inline __m256i dot_small(__m256i sum, __m256i a, __m256i b) {
  const __m256i pairs = _mm256_maddubs_epi16(a, b);
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

/// The value is taken, not the code: its magnitude times b with the value's sign.
inline constexpr std::int32_t kBiasLeft = 0;

/// b is a row as IntRow::quantise rounds it, from -127 to 127. With values in that range, too, two
/// products add up to 2 * 127 * 127 at most, and VPSIGNB never has to negate -128. (A stored -128
/// may stand among the values: 128 is its magnitude as a byte without sign.)
inline __m256i dot_biased(__m256i sum, __m256i a, __m256i b) {
  const __m256i value = _mm256_xor_si256(a, _mm256_set1_epi8(-128));
  return dot_small(sum, _mm256_abs_epi8(value), _mm256_sign_epi8(b, value));
}

#endif

inline I32x16 dot_small(I32x16 sum, Bytes64 a, Bytes64 b) {
  return {dot_small(sum.low, a.low, b.low), dot_small(sum.high, a.high, b.high)};
}

inline I32x16 dot_biased(I32x16 sum, Bytes64 a, Bytes64 b) {
  return {dot_biased(sum.low, a.low, b.low), dot_biased(sum.high, a.high, b.high)};
}

inline I32x16 subtract(I32x16 a, std::int32_t b) {
  const __m256i all = _mm256_set1_epi32(b);
  return {_mm256_sub_epi32(a.low, all), _mm256_sub_epi32(a.high, all)};
}

inline std::int32_t fold_integers(I32x16 a) {
  const __m256i eight = _mm256_add_epi32(a.low, a.high);
  const __m128i four =
      _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  const __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, _MM_SHUFFLE(1, 0, 3, 2)));
  return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, _MM_SHUFFLE(2, 3, 0, 1))));
}

inline F32x16 as_floats(I32x16 a) {
  return {_mm256_castsi256_ps(a.low), _mm256_castsi256_ps(a.high)};
}

inline F32x16 to_floats(I32x16 a) {
  return {_mm256_cvtepi32_ps(a.low), _mm256_cvtepi32_ps(a.high)};
}

/// Sixteen bytes, without sign.
inline I32x16 widen_bytes(const std::byte* p) {
  const __m128i x = load_eight(p);
  return {_mm256_cvtepu8_epi32(x), _mm256_cvtepu8_epi32(_mm_srli_si128(x, 8))};
}

inline I32x16 masked(I32x16 a, std::int32_t mask) {
  const __m256i bits = _mm256_set1_epi32(mask);
  return {_mm256_and_si256(a.low, bits), _mm256_and_si256(a.high, bits)};
}

inline I32x16 either(I32x16 a, I32x16 b) {
  return {_mm256_or_si256(a.low, b.low), _mm256_or_si256(a.high, b.high)};
}

/// Moved to the left by so many bits, or to the right.
template <int Left>
I32x16 moved(I32x16 a) {
  if constexpr (Left > 0) return {_mm256_slli_epi32(a.low, Left), _mm256_slli_epi32(a.high, Left)};
  if constexpr (Left < 0)
    return {_mm256_srli_epi32(a.low, -Left), _mm256_srli_epi32(a.high, -Left)};
  return a;
}

/// The numbers at these places, 0 to 15.
inline F32x16 look_up(const float* numbers, I32x16 at) {
  const auto eight = [&](__m256i places) {
    const __m256 lower = _mm256_permutevar8x32_ps(_mm256_loadu_ps(numbers), places);
    const __m256 upper = _mm256_permutevar8x32_ps(_mm256_loadu_ps(numbers + 8), places);
    return _mm256_blendv_ps(lower, upper, _mm256_castsi256_ps(_mm256_slli_epi32(places, 28)));
  };
  return {eight(at.low), eight(at.high)};
}
