// What the AVX2 and the AVX-512 files share. Included before them, inside an anonymous namespace.

/// 16 codes of e4m3fn as f16 of 2^-8 the value: that moves the bits and leaves the exponent's bias,
/// and keeps denormals, which VCVTPH2PS converts whatever the thread flushes. The sign comes to be
/// there twice and is cleared once. REQUIRES: no NaN.
inline __m256i finite_fp8_to_f16(__m128i codes) {
  const __m256i moved = _mm256_slli_epi16(_mm256_cvtepi8_epi16(codes), 7);
  return _mm256_and_si256(moved, _mm256_set1_epi16(static_cast<short>(0xbfff)));
}

inline __m256i fp8_to_f16(__m128i codes) {
  const __m256i no_sign = _mm256_or_si256(_mm256_cvtepu8_epi16(codes), _mm256_set1_epi16(0x80));
  const __m256i nan = _mm256_cmpeq_epi16(no_sign, _mm256_set1_epi16(0xff));
  return _mm256_or_si256(finite_fp8_to_f16(codes),
                         _mm256_and_si256(nan, _mm256_set1_epi16(0x7e00)));
}

/// The largest of 16 words without sign, as the upper half of 32 bits: a bf16 as f32.
inline std::uint32_t fold_max_words(__m256i most) {
  const __m128i eight =
      _mm_max_epi16(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1));
  const __m128i inverted = _mm_xor_si128(eight, _mm_set1_epi16(-1));  // there is only a minimum
  const __m128i least = _mm_minpos_epu16(inverted);
  return ~static_cast<std::uint32_t>(_mm_cvtsi128_si32(least)) << 16;
}

/// Asks for lines from `from` on to be brought into the L2 cache; returns what is behind them.
inline const std::byte* prefetch_lines(const std::byte* from, std::int64_t lines) {
  asm volatile(
      "jmp 2f\n"
      "1: prefetcht1 (%0)\n"
      "add $64, %0\n"
      "2: sub $1, %1\n"
      "jns 1b"
      : "+r"(from), "+r"(lines)
      :
      : "cc");
  return from;
}
