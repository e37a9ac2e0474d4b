// Integers sixteen at a time in AVX-512 registers; int_scalar.inl says what each operation means.
// Included after vec_avx512.inl, inside an anonymous namespace.

struct I32x16 {
  __m512i v;
};

struct Bytes64 {
  __m512i v;
};

inline I32x16 no_integers() { return {_mm512_setzero_si512()}; }

inline Bytes64 load_bytes(const std::byte* p) { return {_mm512_loadu_si512(p)}; }

inline Bytes64 splat_four(const std::byte* p) {
  std::int32_t four;
  std::memcpy(&four, p, sizeof four);
  return {_mm512_set1_epi32(four)};
}

inline Bytes64 splat_byte(std::uint8_t x) { return {_mm512_set1_epi8(static_cast<char>(x))}; }

inline Bytes64 lower_halves(Bytes64 x) { return {_mm512_and_si512(x.v, _mm512_set1_epi8(15))}; }

inline Bytes64 upper_halves(Bytes64 x) {
  return {_mm512_and_si512(_mm512_srli_epi16(x.v, 4), _mm512_set1_epi8(15))};
}

template <int Left>
Bytes64 moved_bits(Bytes64 x, std::uint8_t mask) {
  const __m512i bits = _mm512_set1_epi8(static_cast<char>(mask));
  if constexpr (Left > 0) return {_mm512_and_si512(_mm512_slli_epi16(x.v, Left), bits)};
  if constexpr (Left < 0) return {_mm512_and_si512(_mm512_srli_epi16(x.v, -Left), bits)};
  return {_mm512_and_si512(x.v, bits)};
}

inline Bytes64 either(Bytes64 a, Bytes64 b) { return {_mm512_or_si512(a.v, b.v)}; }

inline Bytes64 look_up(const std::uint8_t* sixteen, Bytes64 at) {
  const __m128i table = _mm_loadu_si128(reinterpret_cast<const __m128i_u*>(sixteen));
  return {_mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), at.v)};
}

inline void store_bytes(std::byte* p, Bytes64 x) { _mm512_storeu_si512(p, x.v); }

inline I32x16 splat_integer(const std::byte* p) { return {splat_four(p).v}; }

inline void store_integers(std::int32_t* p, I32x16 x) { _mm512_storeu_si512(p, x.v); }

#ifdef __AVX512VNNI__

/// By asm: gcc 12 copies the sum of its own intrinsic to another register and back.
inline I32x16 dot_fours(I32x16 sum, Bytes64 a, Bytes64 b) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum.v) : "v"(a.v), "v"(b.v));
  return sum;
}

#else

/// As words, even and odd bytes apart: VPMADDUBSW would saturate.
inline I32x16 dot_fours(I32x16 sum, Bytes64 a, Bytes64 b) {
  const __m512i even_a = _mm512_and_si512(a.v, _mm512_set1_epi16(0xff));
  const __m512i odd_a = _mm512_srli_epi16(a.v, 8);
  const __m512i even_b = _mm512_srai_epi16(_mm512_slli_epi16(b.v, 8), 8);
  const __m512i odd_b = _mm512_srai_epi16(b.v, 8);
  const __m512i both =
      _mm512_add_epi32(_mm512_madd_epi16(even_a, even_b), _mm512_madd_epi16(odd_a, odd_b));
  return {_mm512_add_epi32(sum.v, both)};
}

#endif

inline I32x16 dot_small(I32x16 sum, Bytes64 a, Bytes64 b) { return dot_fours(sum, a, b); }

inline constexpr std::int32_t kBiasLeft = 128;

inline I32x16 dot_biased(I32x16 sum, Bytes64 a, Bytes64 b) { return dot_fours(sum, a, b); }

inline I32x16 subtract(I32x16 a, std::int32_t b) {
  return {_mm512_sub_epi32(a.v, _mm512_set1_epi32(b))};
}

inline std::int32_t fold_integers(I32x16 a) { return _mm512_reduce_add_epi32(a.v); }

inline F32x16 as_floats(I32x16 a) { return {_mm512_castsi512_ps(a.v)}; }

inline F32x16 to_floats(I32x16 a) { return {_mm512_cvtepi32_ps(a.v)}; }

/// Sixteen bytes, without sign.
inline I32x16 widen_bytes(const std::byte* p) {
  return {_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i_u*>(p)))};
}

inline I32x16 masked(I32x16 a, std::int32_t mask) {
  return {_mm512_and_si512(a.v, _mm512_set1_epi32(mask))};
}

inline I32x16 either(I32x16 a, I32x16 b) { return {_mm512_or_si512(a.v, b.v)}; }

/// Moved to the left by so many bits, or to the right.
template <int Left>
I32x16 moved(I32x16 a) {
  if constexpr (Left > 0) return {_mm512_slli_epi32(a.v, Left)};
  if constexpr (Left < 0) return {_mm512_srli_epi32(a.v, -Left)};
  return a;
}

/// The numbers at these places, 0 to 15.
inline F32x16 look_up(const float* numbers, I32x16 at) {
  return {_mm512_permutexvar_ps(at.v, _mm512_loadu_ps(numbers))};
}
