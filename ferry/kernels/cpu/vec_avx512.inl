// Sixteen f32 lanes in one AVX-512 register; vec_scalar.inl says what each operation means.
// Included inside an anonymous namespace.

struct F32x16 {
  __m512 v;
};

inline __mmask16 first_mask(int count) { return static_cast<__mmask16>((1U << count) - 1U); }

inline F32x16 splat(float x) { return {_mm512_set1_ps(x)}; }

inline F32x16 load(const float* p) { return {_mm512_loadu_ps(p)}; }

inline F32x16 load_part(const float* p, int count) {
  return {_mm512_maskz_loadu_ps(first_mask(count), p)};
}

inline F32x16 widen_bf16(__m256i x) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16))};
}

inline F32x16 load_bf16(const std::byte* p) {
  return widen_bf16(_mm256_loadu_si256(reinterpret_cast<const __m256i_u*>(p)));
}

inline F32x16 load_bf16_part(const std::byte* p, int count) {
  return widen_bf16(_mm256_maskz_loadu_epi16(first_mask(count), p));
}

inline F32x16 load_f16(const std::byte* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i_u*>(p)))};
}

inline F32x16 load_f16_part(const std::byte* p, int count) {
  return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first_mask(count), p))};
}

inline void store(float* p, F32x16 x) { _mm512_storeu_ps(p, x.v); }

inline void store_part(float* p, F32x16 x, int count) {
  _mm512_mask_storeu_ps(p, first_mask(count), x.v);
}

/// Rounds to nearest even by integers; VCVTNEPS2BF16 would flush denormals and is not everywhere.
inline __m256i round_bf16(F32x16 x) {
  const __m512i bits = _mm512_castps_si512(x.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  const __mmask16 nan = _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q);
  const __m512i chosen = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(chosen, 16));
}

inline void store_bf16(std::byte* p, F32x16 x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i_u*>(p), round_bf16(x));
}

inline void store_bf16_part(std::byte* p, F32x16 x, int count) {
  _mm256_mask_storeu_epi16(p, first_mask(count), round_bf16(x));
}

inline __m256i round_f16(F32x16 x) {
  return _mm512_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

inline void store_f16(std::byte* p, F32x16 x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i_u*>(p), round_f16(x));
}

inline void store_f16_part(std::byte* p, F32x16 x, int count) {
  _mm256_mask_storeu_epi16(p, first_mask(count), round_f16(x));
}

inline F32x16 load_fp8(const std::byte* p) {
  return {_mm512_cvtph_ps(fp8_to_f16(_mm_loadu_si128(reinterpret_cast<const __m128i_u*>(p))))};
}

inline F32x16 load_fp8_part(const std::byte* p, int count) {
  return {_mm512_cvtph_ps(fp8_to_f16(_mm_maskz_loadu_epi8(first_mask(count), p)))};
}

struct Sixteens {
  F32x16 first, second;
};

inline Sixteens widen_two_f16(__m512i halves) {
  return {{_mm512_cvtph_ps(_mm512_castsi512_si256(halves))},
          {_mm512_cvtph_ps(_mm512_extracti64x4_epi64(halves, 1))}};
}

/// finite_fp8_to_f16 and fp8_to_f16 (vec_x86.inl) with twice the lanes.
inline __m512i finite_fp8_to_f16(__m256i codes) {
  const __m512i moved = _mm512_slli_epi16(_mm512_cvtepi8_epi16(codes), 7);
  return _mm512_and_si512(moved, _mm512_set1_epi16(static_cast<short>(0xbfff)));
}

inline __m512i fp8_to_f16(__m256i codes) {
  const __m512i magnitude = _mm512_and_si512(_mm512_cvtepu8_epi16(codes), _mm512_set1_epi16(0x7f));
  const __mmask32 nan = _mm512_cmpeq_epi16_mask(magnitude, _mm512_set1_epi16(0x7f));
  return _mm512_mask_mov_epi16(finite_fp8_to_f16(codes), nan, _mm512_set1_epi16(0x7e00));
}

inline Sixteens load_two_fp8(const std::byte* p) {
  return widen_two_f16(fp8_to_f16(_mm256_loadu_si256(reinterpret_cast<const __m256i_u*>(p))));
}

inline Sixteens load_two_finite_fp8(const std::byte* p) {
  return widen_two_f16(
      finite_fp8_to_f16(_mm256_loadu_si256(reinterpret_cast<const __m256i_u*>(p))));
}

inline F32x16 widen_int8(__m128i x) { return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(x))}; }

inline F32x16 load_int8(const std::byte* p) {
  return widen_int8(_mm_loadu_si128(reinterpret_cast<const __m128i_u*>(p)));
}

inline F32x16 load_int8_part(const std::byte* p, int count) {
  return widen_int8(_mm_maskz_loadu_epi8(first_mask(count), p));
}

/// 2^20 times the power of two at or below |x|, but of 2^-6 at least, is a number whose last bit
/// stands for what the code's last bit does: adding it to |x| rounds. Its exponent makes the
/// code's.
inline __m128i round_fp8(F32x16 x) {
  const __m512i bits = _mm512_castps_si512(x.v);
  const __m512i magnitude = _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff));
  const __m512i exponent = _mm512_max_epi32(_mm512_and_si512(bits, _mm512_set1_epi32(0x7f800000)),
                                            _mm512_set1_epi32(kFp8Normal << 23));
  const __m512i unit = _mm512_add_epi32(exponent, _mm512_set1_epi32(kFp8Rounder));
  const __m512 rounded = _mm512_add_ps(_mm512_castsi512_ps(magnitude), _mm512_castsi512_ps(unit));
  const __m512i code =
      _mm512_add_epi32(_mm512_castps_si512(rounded), _mm512_srli_epi32(exponent, 20));
  constexpr int kFirstWhereMaskElseSecond = 0xca;
  return _mm512_cvtepi32_epi8(_mm512_ternarylogic_epi32(
      _mm512_set1_epi32(0x80), _mm512_srli_epi32(bits, 24), code, kFirstWhereMaskElseSecond));
}

inline void store_fp8(std::byte* p, F32x16 x) {
  _mm_storeu_si128(reinterpret_cast<__m128i_u*>(p), round_fp8(x));
}

inline void store_fp8_part(std::byte* p, F32x16 x, int count) {
  _mm_mask_storeu_epi8(p, first_mask(count), round_fp8(x));
}

inline __m128i round_int8(F32x16 x) { return _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x.v)); }

inline void store_int8(std::byte* p, F32x16 x) {
  _mm_storeu_si128(reinterpret_cast<__m128i_u*>(p), round_int8(x));
}

inline void store_int8_part(std::byte* p, F32x16 x, int count) {
  _mm_mask_storeu_epi8(p, first_mask(count), round_int8(x));
}

struct Pairs {
  F32x16 even, odd;
};

inline Pairs load_bf16_pairs(const std::byte* p) {
  const __m512i pairs = _mm512_loadu_si512(p);
  const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000U));
  return {{_mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16))},
          {_mm512_castsi512_ps(_mm512_and_si512(pairs, high))}};
}

/// The pairs as they lie in a panel of bf16. REQUIRES: numbers that bf16 holds.
inline __m512i bf16_pairs(const Pairs& pairs) {
  constexpr int kFirstOrSecondUnderMask = 0xf8;
  const __m512i even = _mm512_srli_epi32(_mm512_castps_si512(pairs.even.v), 16);
  const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000U));
  return _mm512_ternarylogic_epi32(
      even, _mm512_castps_si512(pairs.odd.v), high, kFirstOrSecondUnderMask);
}

inline void store_bf16_pairs(std::byte* p, const Pairs& pairs) {
  _mm512_storeu_si512(p, bf16_pairs(pairs));
}

inline F32x16 add(F32x16 a, F32x16 b) { return {_mm512_add_ps(a.v, b.v)}; }

inline F32x16 sub(F32x16 a, F32x16 b) { return {_mm512_sub_ps(a.v, b.v)}; }

inline F32x16 mul(F32x16 a, F32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }

inline F32x16 div(F32x16 a, F32x16 b) { return {_mm512_div_ps(a.v, b.v)}; }

inline F32x16 square_root(F32x16 a) { return {_mm512_sqrt_ps(a.v)}; }

inline F32x16 max(F32x16 a, F32x16 b) { return {_mm512_max_ps(a.v, b.v)}; }

inline F32x16 min(F32x16 a, F32x16 b) { return {_mm512_min_ps(a.v, b.v)}; }

inline F32x16 load_powers(const std::byte* p) {
  const __m128i exponents = _mm_loadu_si128(reinterpret_cast<const __m128i_u*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu8_epi32(exponents), 23))};
}

/// VPERMPS takes the lowest four bits of each lane for an index.
inline Pairs widen_e2m1(__m128i codes, F32x16 scale) {
  const __m512 values = _mm512_setr_ps(0.0F,
                                       0.5F,
                                       1.0F,
                                       1.5F,
                                       2.0F,
                                       3.0F,
                                       4.0F,
                                       6.0F,
                                       -0.0F,
                                       -0.5F,
                                       -1.0F,
                                       -1.5F,
                                       -2.0F,
                                       -3.0F,
                                       -4.0F,
                                       -6.0F);
  const __m512i both = _mm512_cvtepu8_epi32(codes);
  return {mul({_mm512_permutexvar_ps(both, values)}, scale),
          mul({_mm512_permutexvar_ps(_mm512_srli_epi32(both, 4), values)}, scale)};
}

inline void load_e2m1(const std::byte* p, F32x16 scale, Pairs (&out)[2]) {
  const __m256i fours = _mm256_loadu_si256(reinterpret_cast<const __m256i_u*>(p));
  const __m256i in_order =
      _mm256_permutevar8x32_epi32(fours, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  out[0] = widen_e2m1(_mm256_castsi256_si128(in_order), scale);
  out[1] = widen_e2m1(_mm256_extracti128_si256(in_order, 1), scale);
}

inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }

inline F32x16 fms(F32x16 a, F32x16 b, F32x16 c) { return {_mm512_fmsub_ps(a.v, b.v, c.v)}; }

inline F32x16 bits_to_exponent(F32x16 a) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(a.v), 23))};
}

inline F32x16 first_lanes(int count, F32x16 a, F32x16 b) {
  return {_mm512_mask_blend_ps(first_mask(count), b.v, a.v)};
}

inline F32x16 max_magnitude(F32x16 most, F32x16 x) {
  const __m512i magnitude =
      _mm512_and_si512(_mm512_castps_si512(x.v), _mm512_set1_epi32(0x7fffffff));
  return {_mm512_castsi512_ps(_mm512_max_epi32(_mm512_castps_si512(most.v), magnitude))};
}

inline std::uint32_t fold_max_bits(F32x16 a) {
  return static_cast<std::uint32_t>(_mm512_reduce_max_epi32(_mm512_castps_si512(a.v)));
}

inline std::uint32_t max_bits_bf16(const std::byte* p) {
  const __m512i mask = _mm512_set1_epi16(0x7fff);
  __m512i most = _mm512_and_si512(_mm512_loadu_si512(p), mask);
  for (int i = 64; i < 256; i += 64)
    most = _mm512_max_epi16(most, _mm512_and_si512(_mm512_loadu_si512(p + i), mask));
  return fold_max_words(
      _mm256_max_epi16(_mm512_castsi512_si256(most), _mm512_extracti64x4_epi64(most, 1)));
}

template <class Op8, class Op4, class Op1>
inline float fold(F32x16 a, Op8 op8, Op4 op4, Op1 op1) {
  const __m256 eight = op8(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 four = op4(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = op4(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(op1(two, _mm_movehdup_ps(two)));
}

inline float fold_add(F32x16 a) {
  return fold(
      a,
      [](__m256 x, __m256 y) { return _mm256_add_ps(x, y); },
      [](__m128 x, __m128 y) { return _mm_add_ps(x, y); },
      [](__m128 x, __m128 y) { return _mm_add_ss(x, y); });
}

/// Lane i: the lanes of x[i] folded. Each step adds the halves of two vectors' lanes at once and
/// leaves half as many vectors; which two decides one bit of where a sum comes to lie.
inline F32x16 fold_add_sixteen(const F32x16 (&x)[16]) {
  __m512 eights[8];  // from here on, index bits 3, 1 and 0 of x's
  for (int i = 0; i < 8; ++i) {
    const int from = (i & 4) * 2 + (i & 3);
    eights[i] = _mm512_add_ps(_mm512_shuffle_f32x4(x[from].v, x[from + 4].v, 0x44),
                              _mm512_shuffle_f32x4(x[from].v, x[from + 4].v, 0xee));
  }
  __m512 fours[4];  // bits 1 and 0
  for (int i = 0; i < 4; ++i)
    fours[i] = _mm512_add_ps(_mm512_shuffle_f32x4(eights[i], eights[i + 4], 0x88),
                             _mm512_shuffle_f32x4(eights[i], eights[i + 4], 0xdd));
  __m512 twos[2];  // bit 1
  for (int i = 0; i < 2; ++i)
    twos[i] = _mm512_add_ps(_mm512_shuffle_ps(fours[2 * i], fours[2 * i + 1], 0x44),
                            _mm512_shuffle_ps(fours[2 * i], fours[2 * i + 1], 0xee));
  return {_mm512_add_ps(_mm512_shuffle_ps(twos[0], twos[1], 0x88),
                        _mm512_shuffle_ps(twos[0], twos[1], 0xdd))};
}

inline float fold_max(F32x16 a) {
  return fold(
      a,
      [](__m256 x, __m256 y) { return _mm256_max_ps(x, y); },
      [](__m128 x, __m128 y) { return _mm_max_ps(x, y); },
      [](__m128 x, __m128 y) { return _mm_max_ss(x, y); });
}

inline void stream_line(std::byte* to, const std::byte* from) {
  _mm512_stream_si512(reinterpret_cast<__m512i*>(to), _mm512_loadu_si512(from));
}

inline void stream_fence() { _mm_sfence(); }
