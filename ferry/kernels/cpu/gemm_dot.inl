// gemm with bf16 weights in the numeric class `fast`: VDPBF16PS multiplies pairs of k as they lie
// in a panel and adds both products to a sum, without widening either side. Its order and roundings
// are the processor's own (docs/numerics.md), but one chain over all pairs of k for any number of
// rows: a row's sums do not depend on the others. Included after gemm_fma.inl, inside an anonymous
// namespace.

/// As PairSums, over rows of bf16 padded with zeros to whole blocks.
struct DotSums {
  static constexpr int kRows = Tiling::kRows;
  static constexpr int kPanels = Tiling::kPanels;
  static constexpr bool kUnpacks = false;

  static std::int64_t panel_bytes(std::int64_t k) { return k * kPanelColumns * 2; }

  static std::int64_t steps(std::int64_t k) { return k / kBf16KBlock; }

  template <int R, int P, class Fetch>
  static void run(const std::byte* const* a,
                  std::int64_t k,
                  const std::byte* w,
                  std::int64_t w_step,
                  Fetch& fetch,
                  float* sums) {
    constexpr std::int64_t kPairBytes = 2 * kPanelColumns * 2;
    F32x16 sum[R][P];
    for (int r = 0; r < R; ++r)
      for (int p = 0; p < P; ++p) sum[r][p] = splat(0.0F);
    for (std::int64_t block = 0; block < k; block += kBf16KBlock) {
      for (std::int64_t i = block / 2; i < (block + kBf16KBlock) / 2; ++i) {
        __m512i y[P];
        for (int p = 0; p < P; ++p) {
          const std::byte* from = w + p * w_step + i * kPairBytes;
          fetch.reading(from);
          y[p] = _mm512_loadu_si512(from);
        }
        for (int r = 0; r < R; ++r) {
          std::int32_t pair;
          std::memcpy(&pair, a[r] + i * sizeof pair, sizeof pair);
          const __m512i x = _mm512_set1_epi32(pair);
          for (int p = 0; p < P; ++p) {
            sum[r][p] = F32x16{_mm512_dpbf16_ps(sum[r][p].v,
                                                reinterpret_cast<const __m512bh&>(x),
                                                reinterpret_cast<const __m512bh&>(y[p]))};
          }
        }
      }
      fetch.step();
    }
    for (int r = 0; r < R; ++r)
      for (int p = 0; p < P; ++p) store(sums + (r * kGroupPanels + p) * kPanelColumns, sum[r][p]);
  }
};

/// Rows as they are, but padded with zeros to k elements.
inline void pad_rows(const GemmArgs& args, std::int64_t k, std::byte* out) {
  const auto own = static_cast<std::size_t>(args.weights->k) * 2;
  const auto whole = static_cast<std::size_t>(k) * 2;
  for (std::int64_t r = 0; r < args.rows; ++r, out += whole) {
    std::memcpy(out, row_of(args.in, r), own);
    std::memset(out + own, 0, whole - own);
  }
}

inline void gemm_dot(const GemmArgs& args) {
  const std::int64_t k = round_up_to(args.weights->k, kBf16KBlock);
  std::byte* padded = aligned_scratch(args, widened_scratch_bytes(args.weights->k));
  const PanelsInPlace panels{args.weights->data, DotSums::panel_bytes(k)};
  for (std::int64_t first = 0, rows; first < args.rows; first += rows) {
    rows = kReadyRows.next(args.rows - first, k * 2);
    const GemmArgs part = part_of(args, first, rows);
    ReadyRows in{part.in.base, part.in.stride, part.in.pointers};
    if (k != args.weights->k) {
      pad_rows(part, k, padded);
      in = {padded, k * 2, nullptr};
    }
    all_panels<DotSums>(part, in, k, panels);
  }
}

inline std::uint64_t multiply_pairs_of_bf16(std::int64_t rounds) {
  constexpr int kSums = 16;
  F32x16 sum[kSums];
  for (F32x16& s : sum) s = splat(0.0F);
  __m512i x = _mm512_set1_epi32(0x3f803f80);
  for (std::int64_t i = 0; i < rounds; ++i) {
    asm volatile("" : "+v"(x));
    for (F32x16& s : sum) {
      s = F32x16{_mm512_dpbf16_ps(
          s.v, reinterpret_cast<const __m512bh&>(x), reinterpret_cast<const __m512bh&>(x))};
    }
  }
  for (const F32x16& s : sum) asm volatile("" : : "v"(s.v));
  return static_cast<std::uint64_t>(rounds) * kSums * 2 * 2 * kPanelColumns;
}
