// What sampling does with sixteen integers in two AVX registers; sampling_scalar.inl says what each
// operation means. Included after int_avx2.inl, inside an anonymous namespace.

struct Sums {
  __m256i v;
};

struct Lanes {
  __m256i low, high;  // all ones where it holds
};

inline Sums no_sums() { return {_mm256_setzero_si256()}; }

inline Sums add_integers(Sums sums, I32x16 x) {
  const __m256i mask = _mm256_set1_epi64x(0xffffffff);
  const __m256i even =
      _mm256_add_epi64(_mm256_and_si256(x.low, mask), _mm256_and_si256(x.high, mask));
  const __m256i odd = _mm256_add_epi64(_mm256_srli_epi64(x.low, 32), _mm256_srli_epi64(x.high, 32));
  return {_mm256_add_epi64(sums.v, _mm256_add_epi64(even, odd))};
}

inline std::uint64_t fold_sums(Sums sums) {
  const __m128i two =
      _mm_add_epi64(_mm256_castsi256_si128(sums.v), _mm256_extracti128_si256(sums.v, 1));
  return static_cast<std::uint64_t>(_mm_cvtsi128_si64(two)) +
         static_cast<std::uint64_t>(_mm_extract_epi64(two, 1));
}

inline I32x16 splat_integer(std::uint32_t x) {
  const __m256i all = _mm256_set1_epi32(static_cast<std::int32_t>(x));
  return {all, all};
}

inline I32x16 load_integers(const std::uint32_t* p) {
  const auto* in = reinterpret_cast<const __m256i_u*>(p);
  return {_mm256_loadu_si256(in), _mm256_loadu_si256(in + 1)};
}

inline void store_integers(std::uint32_t* p, I32x16 x) {
  auto* out = reinterpret_cast<__m256i_u*>(p);
  _mm256_storeu_si256(out, x.low);
  _mm256_storeu_si256(out + 1, x.high);
}

inline I32x16 to_integers(F32x16 x) {
  return {_mm256_cvtps_epi32(x.low), _mm256_cvtps_epi32(x.high)};
}

inline F32x16 from_integers(I32x16 x) {
  return {_mm256_cvtepi32_ps(x.low), _mm256_cvtepi32_ps(x.high)};
}

inline Lanes where_greater(I32x16 a, I32x16 b) {
  return {_mm256_cmpgt_epi32(a.low, b.low), _mm256_cmpgt_epi32(a.high, b.high)};
}

inline Lanes without(Lanes a, Lanes b) {
  return {_mm256_andnot_si256(b.low, a.low), _mm256_andnot_si256(b.high, a.high)};
}

inline I32x16 only(Lanes lanes, I32x16 x) {
  return {_mm256_and_si256(lanes.low, x.low), _mm256_and_si256(lanes.high, x.high)};
}

inline I32x16 count_lanes(I32x16 counts, Lanes lanes) {
  return {_mm256_sub_epi32(counts.low, lanes.low), _mm256_sub_epi32(counts.high, lanes.high)};
}

/// For each set of eight lanes: which of them come first, and how many there are.
struct Packing {
  std::uint8_t from[256][8];
  std::uint8_t count[256];
};

constexpr Packing packing_of_eight() {
  Packing all{};
  for (int set = 0; set < 256; ++set) {
    std::uint8_t n = 0;
    for (int j = 0; j < 8; ++j)
      if ((set >> j & 1) != 0) all.from[set][n++] = static_cast<std::uint8_t>(j);
    all.count[set] = n;
  }
  return all;
}

constexpr Packing kPacking = packing_of_eight();

inline int store_only_eight(std::uint32_t* p, __m256i lanes, __m256i x) {
  const int set = _mm256_movemask_ps(_mm256_castsi256_ps(lanes));
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i_u*>(kPacking.from[set]));
  _mm256_storeu_si256(reinterpret_cast<__m256i_u*>(p),
                      _mm256_permutevar8x32_epi32(x, _mm256_cvtepu8_epi32(bytes)));
  return kPacking.count[set];
}

inline int store_only(std::uint32_t* p, Lanes lanes, I32x16 x) {
  const int low = store_only_eight(p, lanes.low, x.low);
  return low + store_only_eight(p + low, lanes.high, x.high);
}
