// What sampling does with sixteen integers in AVX-512 registers; sampling_scalar.inl says what each
// operation means. Included after int_avx512.inl, inside an anonymous namespace.

struct Sums {
  __m512i v;
};

struct Lanes {
  __mmask16 v;
};

inline Sums no_sums() { return {_mm512_setzero_si512()}; }

inline Sums add_integers(Sums sums, I32x16 x) {
  const __m512i even = _mm512_and_si512(x.v, _mm512_set1_epi64(0xffffffff));
  return {_mm512_add_epi64(_mm512_add_epi64(sums.v, even), _mm512_srli_epi64(x.v, 32))};
}

inline std::uint64_t fold_sums(Sums sums) {
  return static_cast<std::uint64_t>(_mm512_reduce_add_epi64(sums.v));
}

inline I32x16 splat_integer(std::uint32_t x) {
  return {_mm512_set1_epi32(static_cast<std::int32_t>(x))};
}

inline I32x16 load_integers(const std::uint32_t* p) { return {_mm512_loadu_si512(p)}; }

inline void store_integers(std::uint32_t* p, I32x16 x) { _mm512_storeu_si512(p, x.v); }

inline I32x16 to_integers(F32x16 x) { return {_mm512_cvtps_epi32(x.v)}; }

inline F32x16 from_integers(I32x16 x) { return {_mm512_cvtepi32_ps(x.v)}; }

inline Lanes where_greater(I32x16 a, I32x16 b) { return {_mm512_cmpgt_epi32_mask(a.v, b.v)}; }

inline Lanes without(Lanes a, Lanes b) { return {static_cast<__mmask16>(a.v & ~b.v)}; }

inline I32x16 only(Lanes lanes, I32x16 x) { return {_mm512_maskz_mov_epi32(lanes.v, x.v)}; }

inline I32x16 count_lanes(I32x16 counts, Lanes lanes) {
  return {_mm512_mask_add_epi32(counts.v, lanes.v, counts.v, _mm512_set1_epi32(1))};
}

/// In a register and then stored whole: a store of some lanes is slow where it is microcode.
inline int store_only(std::uint32_t* p, Lanes lanes, I32x16 x) {
  _mm512_storeu_si512(p, _mm512_maskz_compress_epi32(lanes.v, x.v));
  return __builtin_popcount(lanes.v);
}
