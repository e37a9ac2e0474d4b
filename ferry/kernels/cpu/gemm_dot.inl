// gemm in the numeric class `fast`, with weights of bf16 or that become bf16: the processor's own
// instruction (VDPBF16PS, BFDOT) multiplies pairs of k as they lie in a panel and adds both
// products to a sum, without widening either side. Its order and roundings are the processor's own
// (docs/numerics.md), but one chain over all pairs of k (fp8: of each block of 128) for any number
// of rows: a row's sums do not depend on the others, nor on whether codes become bf16 in registers
// or in scratch.
// Included after gemm_ggml.inl, inside an anonymous namespace that wraps the instruction:
//   DotPairs: 16 columns' pairs as they lie in a panel; panel_pairs(from) loads them,
//     pairs_of(Pairs) makes them of numbers that bf16 holds
//   dot(sum, weights, pair): both products with a row's pair of bf16 are added

/// A load's pairs.
template <class Pairs16>
inline void load_dot_pairs(const std::byte* from,
                           const typename Pairs16::Factor& factor,
                           std::int64_t at,
                           DotPairs (&out)[Pairs16::kPairs]) {
  if constexpr (std::is_base_of_v<Bf16Pairs, Pairs16>) {
    out[0] = panel_pairs(from);
  } else {
    Pairs pairs[Pairs16::kPairs];
    Pairs16::load(from, factor, at, pairs);
    for (int i = 0; i < Pairs16::kPairs; ++i) out[i] = pairs_of(pairs[i]);
  }
}

/// As PairSums, over rows of bf16 padded with zeros to whole blocks.
template <class Pairs16>
struct DotSums {
  static constexpr int kRows = Tiling::kRows;
  static constexpr int kPanels = Tiling::kPanels;
  static constexpr bool kUnpacks = Pairs16::kUnpacks;

  static std::int64_t panel_bytes(std::int64_t k) { return Pairs16::panel_bytes(k); }

  static std::int64_t steps(std::int64_t k) { return k / kBf16KBlock; }

  /// Adds one block's products to the sums.
  template <int R, int P, class Fetch>
  static void add_block(const std::byte* const* a,
                        const PanelGroup& panels,
                        std::int64_t block,
                        Fetch& fetch,
                        F32x16 (&sum)[R][P]) {
    constexpr int kPairs = Pairs16::kPairs;
    typename Pairs16::Factor factor[P];
    for (int p = 0; p < P; ++p) factor[p] = Pairs16::factor(panels.at(p), panels.k, block);
    for (std::int64_t i = block; i < block + kBf16KBlock; i += 2 * kPairs) {
      DotPairs y[P][kPairs];
      for (int p = 0; p < P; ++p) {
        const std::byte* from = panels.at(p) + Pairs16::bytes(i);
        fetch.reading(from);
        load_dot_pairs<Pairs16>(from, factor[p], i - block, y[p]);
      }
      for (int r = 0; r < R; ++r) {
        for (int pair = 0; pair < kPairs; ++pair) {
          std::int32_t both;
          std::memcpy(&both, a[r] + 2 * i + pair * std::ptrdiff_t{sizeof both}, sizeof both);
          for (int p = 0; p < P; ++p) sum[r][p] = dot(sum[r][p], y[p][pair], both);
        }
      }
    }
    fetch.step();
  }

  template <int R, int P, class Fetch>
  static void run(const std::byte* const* a,
                  std::int64_t k,
                  const std::byte* w,
                  std::int64_t w_step,
                  Fetch& fetch,
                  float* sums) {
    F32x16 total[R][P];
    for (int r = 0; r < R; ++r)
      for (int p = 0; p < P; ++p) total[r][p] = splat(0.0F);
    if constexpr (Pairs16::kGroup == 0) {
      for (std::int64_t block = 0; block < k; block += kBf16KBlock)
        add_block<R, P>(a, {w, w_step, k}, block, fetch, total);
    } else {
      const std::byte* scales = w + Pairs16::bytes(k);
      for (std::int64_t first = 0; first < k;
           first += Pairs16::kGroup, scales += kPanelColumns * 4) {
        F32x16 sum[R][P];
        for (int r = 0; r < R; ++r)
          for (int p = 0; p < P; ++p) sum[r][p] = splat(0.0F);
        const std::int64_t end = smaller(k, first + Pairs16::kGroup);
        for (std::int64_t block = first; block < end; block += kBf16KBlock)
          add_block<R, P>(a, {w, w_step, k}, block, fetch, sum);
        for (int p = 0; p < P; ++p) {
          const F32x16 scale = load(floats_of(scales + p * w_step));
          for (int r = 0; r < R; ++r) total[r][p] = fma(sum[r][p], scale, total[r][p]);
        }
      }
    }
    for (int r = 0; r < R; ++r)
      for (int p = 0; p < P; ++p) store(sums + (r * kGroupPanels + p) * kPanelColumns, total[r][p]);
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

/// All rows and panels; k counts the padding. `padded`: room for widened_scratch_bytes().
template <class Sums, class Panels>
void dot_rows(const GemmArgs& args, std::int64_t k, std::byte* padded, const Panels& panels) {
  for (std::int64_t first = 0, rows; first < args.rows; first += rows) {
    rows = kReadyRows.next(args.rows - first, k * 2);
    const GemmArgs part = part_of(args, first, rows);
    ReadyRows in{part.in.base, part.in.stride, part.in.pointers};
    if (k != args.weights->k) {
      pad_rows(part, k, padded);
      in = {padded, k * 2, nullptr};
    }
    all_panels<Sums>(part, in, k, panels);
  }
}

/// From so many rows on codes become bf16 in scratch, once for all of them.
constexpr std::int64_t kFewestDotUnpackedRows = 3;

template <class Pairs16>
void gemm_dot_of_codes(const GemmArgs& args,
                       std::int64_t k,
                       void (*unpack)(const std::byte* panel, std::int64_t k, std::byte* out)) {
  std::byte* unpacked = aligned_scratch(args, unpacked_gemm_scratch_bytes(args.weights->k));
  std::byte* padded = unpacked + kGroupPanels * Bf16Pairs::panel_bytes(k);
  const std::int64_t bytes = Pairs16::panel_bytes(k);
  const std::byte* data = args.weights->data;
  if (args.rows < kFewestDotUnpackedRows)
    dot_rows<DotSums<Pairs16>>(args, k, padded, PanelsInPlace{data, bytes});
  else
    dot_rows<DotSums<Bf16Pairs>>(args, k, padded, Bf16OfCodes{data, bytes, k, unpacked, unpack});
}

inline void gemm_dot_fp8(const GemmArgs& args, std::int64_t k) {
  std::byte* unpacked = aligned_scratch(args, fp8_gemm_scratch_bytes(args.weights->k));
  std::byte* padded = unpacked + kGroupPanels * UnpackedFp8Pairs::panel_bytes(k);
  const std::int64_t bytes = Fp8Pairs::panel_bytes(k);
  const std::byte* data = args.weights->data;
  if (args.rows < kFewestDotUnpackedRows)
    dot_rows<DotSums<Fp8Pairs>>(args, k, padded, PanelsInPlace{data, bytes});
  else
    dot_rows<DotSums<UnpackedFp8Pairs>>(args, k, padded, UnpackedPanels{data, bytes, k, unpacked});
}

/// REQUIRES: multiplies_bf16(type).
inline void gemm_dot(const GemmArgs& args) {
  const PackedMatrix& w = *args.weights;
  const std::int64_t k = round_up_to(w.k, kBf16KBlock);
  if (w.type == WeightType::bf16) {
    dot_rows<DotSums<Bf16Pairs>>(args,
                                 k,
                                 aligned_scratch(args, widened_scratch_bytes(w.k)),
                                 PanelsInPlace{w.data, Bf16Pairs::panel_bytes(k)});
  } else if (w.type == WeightType::fp8) {
    gemm_dot_fp8(args, k);
  } else if (w.type == WeightType::mxfp4) {
    gemm_dot_of_codes<Mxfp4Pairs>(args, k, unpack_mxfp4);
  } else {
    with_ggml_pairs(w.type, [&]<class Pairs16>(Pairs16) {
      gemm_dot_of_codes<Pairs16>(args, k, unpack_ggml<Pairs16>);
    });
  }
}

/// As peaks.inl has it of other instructions.
inline std::uint64_t multiply_pairs_of_bf16(std::int64_t rounds) {
  constexpr int kSums = Tiling::kSums;
  F32x16 sum[kSums];
  for (F32x16& s : sum) s = splat(0.0F);
  const DotPairs ones = pairs_of({splat(1.0F), splat(1.0F)});
  std::int32_t pair = 0x3f803f80;
  for (std::int64_t i = 0; i < rounds; ++i) {
    asm volatile("" : "+r"(pair));  // for all the compiler knows, another than in the last round
    for (F32x16& s : sum) s = dot(s, ones, pair);
  }
  alignas(64) float out[kPanelColumns];
  for (const F32x16& s : sum) {
    store(out, s);
    asm volatile("" : : "r"(out) : "memory");
  }
  return static_cast<std::uint64_t>(rounds) * kSums * 2 * 2 * kPanelColumns;
}
