// Sixteen f32 lanes in two AVX registers; vec_scalar.inl says what each operation means.
// Included inside an anonymous namespace.

struct F32x16 {
  __m256 low, high;
};

/// All ones in 32-bit lanes below `count`, counted from lane `first` on.
inline __m256i first_mask(int count, int first) {
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(count - first), lanes);
}

inline F32x16 splat(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }

inline F32x16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }

inline F32x16 load_part(const float* p, int count) {
  return {_mm256_maskload_ps(p, first_mask(count, 0)),
          _mm256_maskload_ps(p + 8, first_mask(count, 8))};
}

inline __m256 widen_bf16(__m128i x) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
}

inline __m128i load_eight(const std::byte* p) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i_u*>(p));
}

/// AVX2 cannot mask 8- and 16-bit lanes: the end of a row goes through this.
struct PartOfRow {
  alignas(32) std::byte data[32];
};

/// `count` elements of `bytes` bytes, and zeros.
inline PartOfRow copy_part(const std::byte* p, int count, int bytes = 2) {
  PartOfRow part{};
  std::memcpy(part.data, p, static_cast<std::size_t>(count * bytes));
  return part;
}

inline F32x16 load_bf16(const std::byte* p) {
  return {widen_bf16(load_eight(p)), widen_bf16(load_eight(p + 16))};
}

inline F32x16 load_bf16_part(const std::byte* p, int count) {
  return load_bf16(copy_part(p, count).data);
}

inline F32x16 load_f16(const std::byte* p) {
  return {_mm256_cvtph_ps(load_eight(p)), _mm256_cvtph_ps(load_eight(p + 16))};
}

inline F32x16 load_f16_part(const std::byte* p, int count) {
  return load_f16(copy_part(p, count).data);
}

inline void store(float* p, F32x16 x) {
  _mm256_storeu_ps(p, x.low);
  _mm256_storeu_ps(p + 8, x.high);
}

inline void store_part(float* p, F32x16 x, int count) {
  _mm256_maskstore_ps(p, first_mask(count, 0), x.low);
  _mm256_maskstore_ps(p + 8, first_mask(count, 8), x.high);
}

/// Rounds to nearest even; the result lies in the lower half of each 32-bit lane.
inline __m256i round_bf16(__m256 x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256 nan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
  const __m256i chosen = _mm256_blendv_epi8(rounded, quiet, _mm256_castps_si256(nan));
  return _mm256_srli_epi32(chosen, 16);
}

inline void store_bf16(std::byte* p, F32x16 x) {
  const __m256i packed = _mm256_packus_epi32(round_bf16(x.low), round_bf16(x.high));
  _mm256_storeu_si256(reinterpret_cast<__m256i_u*>(p),
                      _mm256_permute4x64_epi64(packed, _MM_SHUFFLE(3, 1, 2, 0)));
}

inline void store_bf16_part(std::byte* p, F32x16 x, int count) {
  PartOfRow part;
  store_bf16(part.data, x);
  std::memcpy(p, part.data, static_cast<std::size_t>(count) * 2);
}

inline void store_f16(std::byte* p, F32x16 x) {
  auto* out = reinterpret_cast<__m128i_u*>(p);
  _mm_storeu_si128(out, _mm256_cvtps_ph(x.low, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  _mm_storeu_si128(out + 1, _mm256_cvtps_ph(x.high, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

inline void store_f16_part(std::byte* p, F32x16 x, int count) {
  PartOfRow part;
  store_f16(part.data, x);
  std::memcpy(p, part.data, static_cast<std::size_t>(count) * 2);
}

inline F32x16 widen_f16(__m256i halves) {
  return {_mm256_cvtph_ps(_mm256_castsi256_si128(halves)),
          _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1))};
}

inline F32x16 load_fp8(const std::byte* p) { return widen_f16(fp8_to_f16(load_eight(p))); }

inline F32x16 load_fp8_part(const std::byte* p, int count) {
  return load_fp8(copy_part(p, count, 1).data);
}

struct Sixteens {
  F32x16 first, second;
};

inline Sixteens load_two_fp8(const std::byte* p) { return {load_fp8(p), load_fp8(p + 16)}; }

inline Sixteens load_two_finite_fp8(const std::byte* p) {
  return {widen_f16(finite_fp8_to_f16(load_eight(p))),
          widen_f16(finite_fp8_to_f16(load_eight(p + 16)))};
}

inline F32x16 load_int8(const std::byte* p) {
  const __m128i x = load_eight(p);
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(x)),
          _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(x, 8)))};
}

inline F32x16 load_int8_part(const std::byte* p, int count) {
  return load_int8(copy_part(p, count, 1).data);
}

/// The codes lie in the lowest byte of each 32-bit lane; vec_avx512.inl explains the steps.
inline __m256i round_fp8(__m256 x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i magnitude = _mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff));
  const __m256i exponent = _mm256_max_epi32(_mm256_and_si256(bits, _mm256_set1_epi32(0x7f800000)),
                                            _mm256_set1_epi32(kFp8Normal << 23));
  const __m256i unit = _mm256_add_epi32(exponent, _mm256_set1_epi32(kFp8Rounder));
  const __m256 rounded = _mm256_add_ps(_mm256_castsi256_ps(magnitude), _mm256_castsi256_ps(unit));
  const __m256i code =
      _mm256_add_epi32(_mm256_castps_si256(rounded), _mm256_srli_epi32(exponent, 20));
  const __m256i sign = _mm256_and_si256(_mm256_srli_epi32(bits, 24), _mm256_set1_epi32(0x80));
  return _mm256_or_si256(_mm256_and_si256(code, _mm256_set1_epi32(0x7f)), sign);
}

inline void store_fp8(std::byte* p, F32x16 x) {
  const __m256i packed = _mm256_packus_epi32(round_fp8(x.low), round_fp8(x.high));
  const __m256i words = _mm256_permute4x64_epi64(packed, _MM_SHUFFLE(3, 1, 2, 0));
  const __m128i high = _mm256_extracti128_si256(words, 1);
  _mm_storeu_si128(reinterpret_cast<__m128i_u*>(p),
                   _mm_packus_epi16(_mm256_castsi256_si128(words), high));
}

inline void store_fp8_part(std::byte* p, F32x16 x, int count) {
  PartOfRow part;
  store_fp8(part.data, x);
  std::memcpy(p, part.data, static_cast<std::size_t>(count));
}

inline void store_int8(std::byte* p, F32x16 x) {
  const __m256i packed = _mm256_packs_epi32(_mm256_cvtps_epi32(x.low), _mm256_cvtps_epi32(x.high));
  const __m256i words = _mm256_permute4x64_epi64(packed, _MM_SHUFFLE(3, 1, 2, 0));
  const __m128i high = _mm256_extracti128_si256(words, 1);
  _mm_storeu_si128(reinterpret_cast<__m128i_u*>(p),
                   _mm_packs_epi16(_mm256_castsi256_si128(words), high));
}

inline void store_int8_part(std::byte* p, F32x16 x, int count) {
  PartOfRow part;
  store_int8(part.data, x);
  std::memcpy(p, part.data, static_cast<std::size_t>(count));
}

struct Pairs {
  F32x16 even, odd;
};

inline Pairs widen_bf16_pairs(__m256i low, __m256i high) {
  const __m256i upper_half = _mm256_set1_epi32(static_cast<int>(0xffff0000U));
  return {{_mm256_castsi256_ps(_mm256_slli_epi32(low, 16)),
           _mm256_castsi256_ps(_mm256_slli_epi32(high, 16))},
          {_mm256_castsi256_ps(_mm256_and_si256(low, upper_half)),
           _mm256_castsi256_ps(_mm256_and_si256(high, upper_half))}};
}

inline Pairs load_bf16_pairs(const std::byte* p) {
  const auto* in = reinterpret_cast<const __m256i_u*>(p);
  return widen_bf16_pairs(_mm256_loadu_si256(in), _mm256_loadu_si256(in + 1));
}

inline __m256i bf16_pairs(__m256 even, __m256 odd) {
  return _mm256_blend_epi16(
      _mm256_srli_epi32(_mm256_castps_si256(even), 16), _mm256_castps_si256(odd), 0xaa);
}

inline void store_bf16_pairs(std::byte* p, const Pairs& pairs) {
  auto* out = reinterpret_cast<__m256i_u*>(p);
  _mm256_storeu_si256(out, bf16_pairs(pairs.even.low, pairs.odd.low));
  _mm256_storeu_si256(out + 1, bf16_pairs(pairs.even.high, pairs.odd.high));
}

inline F32x16 add(F32x16 a, F32x16 b) {
  return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
}

inline F32x16 sub(F32x16 a, F32x16 b) {
  return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)};
}

inline F32x16 mul(F32x16 a, F32x16 b) {
  return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
}

inline F32x16 div(F32x16 a, F32x16 b) {
  return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)};
}

inline F32x16 square_root(F32x16 a) { return {_mm256_sqrt_ps(a.low), _mm256_sqrt_ps(a.high)}; }

inline F32x16 max(F32x16 a, F32x16 b) {
  return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)};
}

inline F32x16 min(F32x16 a, F32x16 b) {
  return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)};
}

inline F32x16 load_powers(const std::byte* p) {
  const auto eight = [](const std::byte* from) {
    const auto* in = reinterpret_cast<const __m128i_u*>(from);
    const __m256i exponents = _mm256_cvtepu8_epi32(_mm_loadu_si64(in));
    return _mm256_castsi256_ps(_mm256_slli_epi32(exponents, 23));
  };
  return {eight(p), eight(p + 8)};
}

inline Pairs times(const Pairs& pairs, F32x16 scale) {
  return {mul(pairs.even, scale), mul(pairs.odd, scale)};
}

/// The upper and the lower byte of each number's bf16 are looked up apart and put side by side. Two
/// columns are 16 bytes apart in memory if they are four apart in the panel, so that putting side
/// by side within each half of a register, as it does, leaves them in their order.
inline void load_e2m1(const std::byte* p, F32x16 scale, Pairs (&out)[2]) {
  const auto both = [](__m128i half) { return _mm256_broadcastsi128_si256(half); };
  const __m256i upper_bytes =
      both(_mm_setr_epi8(0, 63, 63, 63, 64, 64, 64, 64, -128, -65, -65, -65, -64, -64, -64, -64));
  const __m256i lower_bytes =
      both(_mm_setr_epi8(0, 0, -128, -64, 0, 64, -128, -64, 0, 0, -128, -64, 0, 64, -128, -64));
  const __m256i mask = _mm256_set1_epi8(15);
  const __m256i codes = _mm256_loadu_si256(reinterpret_cast<const __m256i_u*>(p));
  const __m256i even = _mm256_and_si256(codes, mask);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi16(codes, 4), mask);
  const __m256i even_upper = _mm256_shuffle_epi8(upper_bytes, even);
  const __m256i even_lower = _mm256_shuffle_epi8(lower_bytes, even);
  const __m256i odd_upper = _mm256_shuffle_epi8(upper_bytes, odd);
  const __m256i odd_lower = _mm256_shuffle_epi8(lower_bytes, odd);
  const auto pairs = [](__m256i first, __m256i second) {
    return widen_bf16_pairs(_mm256_unpacklo_epi16(first, second),
                            _mm256_unpackhi_epi16(first, second));
  };
  out[0] = times(pairs(_mm256_unpacklo_epi8(even_lower, even_upper),
                       _mm256_unpacklo_epi8(odd_lower, odd_upper)),
                 scale);
  out[1] = times(pairs(_mm256_unpackhi_epi8(even_lower, even_upper),
                       _mm256_unpackhi_epi8(odd_lower, odd_upper)),
                 scale);
}

inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}

inline F32x16 fms(F32x16 a, F32x16 b, F32x16 c) {
  return {_mm256_fmsub_ps(a.low, b.low, c.low), _mm256_fmsub_ps(a.high, b.high, c.high)};
}

inline F32x16 bits_to_exponent(F32x16 a) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(a.low), 23)),
          _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(a.high), 23))};
}

inline F32x16 first_lanes(int count, F32x16 a, F32x16 b) {
  return {_mm256_blendv_ps(b.low, a.low, _mm256_castsi256_ps(first_mask(count, 0))),
          _mm256_blendv_ps(b.high, a.high, _mm256_castsi256_ps(first_mask(count, 8)))};
}

inline F32x16 max_magnitude(F32x16 most, F32x16 x) {
  const __m256i mask = _mm256_set1_epi32(0x7fffffff);
  const __m256i low = _mm256_and_si256(_mm256_castps_si256(x.low), mask);
  const __m256i high = _mm256_and_si256(_mm256_castps_si256(x.high), mask);
  return {_mm256_castsi256_ps(_mm256_max_epi32(_mm256_castps_si256(most.low), low)),
          _mm256_castsi256_ps(_mm256_max_epi32(_mm256_castps_si256(most.high), high))};
}

inline std::uint32_t fold_max_bits(F32x16 a) {
  const __m256i eight = _mm256_max_epi32(_mm256_castps_si256(a.low), _mm256_castps_si256(a.high));
  const __m128i four =
      _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  const __m128i two = _mm_max_epi32(four, _mm_shuffle_epi32(four, _MM_SHUFFLE(1, 0, 3, 2)));
  const __m128i one = _mm_max_epi32(two, _mm_shuffle_epi32(two, _MM_SHUFFLE(2, 3, 0, 1)));
  return static_cast<std::uint32_t>(_mm_cvtsi128_si32(one));
}

inline std::uint32_t max_bits_bf16(const std::byte* p) {
  const __m256i mask = _mm256_set1_epi16(0x7fff);
  __m256i most = _mm256_setzero_si256();
  for (int i = 0; i < 256; i += 32) {
    const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i_u*>(p + i));
    most = _mm256_max_epi16(most, _mm256_and_si256(x, mask));
  }
  return fold_max_words(most);
}

template <class Op8, class Op4, class Op1>
inline float fold(F32x16 a, Op8 op8, Op4 op4, Op1 op1) {
  const __m256 eight = op8(a.low, a.high);
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

/// Lane i: the lanes of x[i] folded.
inline F32x16 fold_add_sixteen(const F32x16 (&x)[16]) {
  alignas(32) float sums[16];
  for (int i = 0; i < 16; ++i) sums[i] = fold_add(x[i]);
  return load(sums);
}

inline float fold_max(F32x16 a) {
  return fold(
      a,
      [](__m256 x, __m256 y) { return _mm256_max_ps(x, y); },
      [](__m128 x, __m128 y) { return _mm_max_ps(x, y); },
      [](__m128 x, __m128 y) { return _mm_max_ss(x, y); });
}

inline void stream_line(std::byte* to, const std::byte* from) {
  const auto* in = reinterpret_cast<const __m256i*>(from);
  auto* out = reinterpret_cast<__m256i*>(to);
  _mm256_stream_si256(out, _mm256_loadu_si256(in));
  _mm256_stream_si256(out + 1, _mm256_loadu_si256(in + 1));
}

inline void stream_fence() { _mm_sfence(); }
