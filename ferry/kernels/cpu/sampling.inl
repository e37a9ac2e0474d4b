// Weights of tokens, and what sampling counts among them (docs/numerics.md). One source for every
// instruction set: included after math.inl and a sampling_*.inl, inside an anonymous namespace.

/// 2^shift e^x for x <= 0. Below -36 it is as good as nothing, and treated as -36.
inline F32x16 scaled_exp(F32x16 x, float shift) {
  constexpr float kLowest = -36.0F;
  constexpr float kLog2E = 0x1.715476p0F;
  constexpr float kLn2High = 0x1.62e43p-1F;  // as in exp()
  constexpr float kLn2Low = -0x1.05c61p-29F;
  constexpr float kRound = 0x1.8p23F;
  constexpr float kFactorials[] = {1.0F / 720, 1.0F / 120, 1.0F / 24, 1.0F / 6, 0.5F, 1.0F, 1.0F};

  x = max(x, splat(kLowest));
  const F32x16 n = sub(fma(x, splat(kLog2E), splat(kRound)), splat(kRound));
  F32x16 r = fma(n, splat(-kLn2High), x);
  r = fma(n, splat(-kLn2Low), r);
  F32x16 sum = splat(1.0F / 5040);
  for (const float factorial : kFactorials) sum = fma(sum, r, splat(factorial));
  return mul(sum, bits_to_exponent(add(n, splat(kRound + 127 + shift))));
}

/// Calls body(sixteen, i, count) for i = 0, 16, 32, ... < n; behind the end stands `filler`.
template <class T, class Body>
void for_whole_sixteens(const T* x, std::int64_t n, T filler, Body body) {
  std::int64_t i = 0;
  for (; i + 16 <= n; i += 16) body(x + i, i, 16);
  if (i == n) return;
  T last[16];
  for (std::int64_t j = 0; j < 16; ++j) last[j] = i + j < n ? x[i + j] : filler;
  body(last, i, static_cast<int>(n - i));
}

inline std::uint64_t weigh(
    const float* x, std::int64_t n, float most, float factor, std::uint32_t* out) {
  constexpr float kBanned = -std::numeric_limits<float>::infinity();
  Sums sums = no_sums();
  for_whole_sixteens(x, n, kBanned, [&](const float* from, std::int64_t i, int count) {
    const F32x16 below = mul(sub(load(from), splat(most)), splat(factor));
    const I32x16 weights = to_integers(scaled_exp(below, kWeightBits));
    sums = add_integers(sums, weights);
    if (count == 16) return store_integers(out + i, weights);
    std::uint32_t last[16];
    store_integers(last, weights);
    for (int j = 0; j < count; ++j) out[i + j] = last[j];
  });
  return fold_sums(sums);
}

/// What a weight's rounding leaves is worth 20 further bits.
inline ExpSum exp_sum(const float* x, std::int64_t n, float most) {
  constexpr float kBanned = -std::numeric_limits<float>::infinity();
  constexpr float kRest = 0x1p20F;
  Sums whole = no_sums();
  Sums rest = no_sums();
  for_whole_sixteens(x, n, kBanned, [&](const float* from, std::int64_t /*i*/, int /*count*/) {
    const F32x16 weight = scaled_exp(sub(load(from), splat(most)), kWeightBits);
    const I32x16 rounded = to_integers(weight);
    // Half a unit more, so that none is negative.
    const F32x16 left = fma(sub(weight, from_integers(rounded)), splat(kRest), splat(kRest / 2));
    whole = add_integers(whole, rounded);
    rest = add_integers(rest, to_integers(left));
  });
  const auto sixteens = static_cast<std::uint64_t>((n + 15) / 16);
  return {.whole = fold_sums(whole),
          .rest = static_cast<std::int64_t>(fold_sums(rest) - (sixteens * 16 << 19))};
}

inline std::uint64_t fold_counts(I32x16 counts) {
  return fold_sums(add_integers(no_sums(), counts));
}

inline WeightCount count_weights(const std::uint32_t* weights,
                                 std::int64_t n,
                                 std::uint32_t limit) {
  const I32x16 at = splat_integer(limit);
  Sums sum = no_sums();
  I32x16 tokens = no_integers();
  for_whole_sixteens(
      weights, n, std::uint32_t{0}, [&](const std::uint32_t* from, std::int64_t, int) {
        const I32x16 x = load_integers(from);
        const Lanes above = where_greater(x, at);
        sum = add_integers(sum, only(above, x));
        tokens = count_lanes(tokens, above);
      });
  return {.sum = fold_sums(sum), .tokens = fold_counts(tokens)};
}

inline WeightPick pick_weights(const std::uint32_t* weights,
                               std::int64_t n,
                               std::uint32_t low,
                               std::uint32_t high,
                               std::uint32_t* out) {
  const I32x16 below = splat_integer(low - 1);
  const I32x16 end = splat_integer(high - 1);
  Sums sum = no_sums();
  I32x16 tokens = no_integers();
  std::int64_t picked = 0;
  for_whole_sixteens(
      weights, n, std::uint32_t{0}, [&](const std::uint32_t* from, std::int64_t, int) {
        const I32x16 x = load_integers(from);
        const Lanes more = where_greater(x, end);
        sum = add_integers(sum, only(more, x));
        tokens = count_lanes(tokens, more);
        picked += store_only(out + picked, without(where_greater(x, below), more), x);
      });
  return {.rest = {.sum = fold_sums(sum), .tokens = fold_counts(tokens)}, .picked = picked};
}
