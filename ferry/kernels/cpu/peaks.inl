// What the machine can do at most, for the floors that benchmarks print. One source for every
// instruction set: included after gemm.inl, inside an anonymous namespace.

/// Enough chains for two units of four cycles, in AVX2's halves too.
constexpr int kChains = Tiling::kRows < 4 ? 5 : 12;

/// Of bytes, whose units take five: as many as gemm has sums in registers, if that is more.
constexpr int kByteChains = Tiling::kIntRows * Tiling::kIntPanels > kChains
                                ? Tiling::kIntRows* Tiling::kIntPanels
                                : kChains;

/// Chains of multiply-adds in registers.
inline std::uint64_t multiply_floats(std::int64_t rounds) {
  F32x16 sum[kChains];
  for (int i = 0; i < kChains; ++i) sum[i] = splat(static_cast<float>(i));
  const F32x16 x = splat(0.5F);
  for (std::int64_t round = 0; round < rounds; ++round) {
    for (int i = 0; i < kChains; ++i) sum[i] = fma(sum[i], x, x);
  }
  F32x16 all = sum[0];
  for (int i = 1; i < kChains; ++i) all = add(all, sum[i]);
  const float result = fold_add(all);
  asm volatile("" : : "r,m"(result));  // somebody wants it
  return static_cast<std::uint64_t>(rounds) * kChains * 16 * 2;
}

/// The same of bytes, as gemm multiplies such codes. Each chain loads its own, lest the compiler
/// multiply once for all of them.
template <class Codes>
std::uint64_t multiply_bytes(std::int64_t rounds) {
  alignas(64) std::byte bytes[kByteChains * 64] = {};
  I32x16 sum[kByteChains];
  for (int i = 0; i < kByteChains; ++i) sum[i] = no_integers();
  const Bytes64 x = splat_byte(1);
  for (std::int64_t round = 0; round < rounds; ++round) {
    const std::byte* others = bytes;
    asm volatile("" : "+r"(others));  // for all the compiler knows, others than in the last round
    for (std::int64_t i = 0; i < kByteChains; ++i)
      sum[i] = Codes::dot(sum[i], x, load_bytes(others + 64 * i));
  }
  std::int32_t result = 0;
  for (int i = 0; i < kByteChains; ++i) result |= fold_integers(sum[i]);
  asm volatile("" : : "r,m"(result));
  return static_cast<std::uint64_t>(rounds) * kByteChains * 64 * 2;
}

inline std::uint64_t multiply_in_registers(WeightType weights, std::int64_t rounds) {
  if (weights == WeightType::int8 || weights == WeightType::q8_0_int8)
    return multiply_bytes<Int8Codes>(rounds);
  if (takes_int8_rows(weights)) return multiply_bytes<Int4Codes>(rounds);
  return multiply_floats(rounds);
}

/// One read stream stays below what a core of some processors can take in; four reach it
/// (docs/performance.md).
inline float greatest(const float* x, std::int64_t n) {
  constexpr std::int64_t kStreams = 4;
  constexpr std::uint32_t kInfinity = 0x7f800000U;
  const std::int64_t quarter = n / kStreams / 16 * 16;
  F32x16 most[kStreams];
  F32x16 magnitude = splat(0.0F);
  for (F32x16& m : most) m = splat(x[0]);
  for (std::int64_t i = 0; i < quarter; i += 16) {
    for (std::int64_t s = 0; s < kStreams; ++s) {
      const F32x16 next = load(x + s * quarter + i);
      most[s] = max(most[s], next);
      magnitude = max_magnitude(magnitude, next);
    }
  }
  for (std::int64_t i = kStreams * quarter; i < n; ++i) {
    most[0] = max(most[0], splat(x[i]));
    magnitude = max_magnitude(magnitude, splat(x[i]));
  }
  if (fold_max_bits(magnitude) > kInfinity) return float_of(0x7fc00000U);
  return fold_max(max(max(most[0], most[1]), max(most[2], most[3])));
}
