// gemm for many rows where registers are few: weights that meet bf16 rows, in the same order as
// PairSums of gemm_fma.inl. Included after gemm_ggml.inl, inside an anonymous namespace.
//
// With sixteen registers there is room for the sums of two rows, so each pair of weights would be
// read and widened again for every two rows, from a panel that the L1 cache does not hold. Here a
// piece of a panel, kPieceK of its k, becomes f32 once and stays in the L1 cache while all rows
// pass by. The chains over even and odd k are done one after the other, which leaves registers for
// Tiling::kBlockRows rows; what a row has summed up so far waits in memory for the next piece.

constexpr std::int64_t kPieceK = 128;
static_assert(kPieceK % kBf16KBlock == 0 && kPieceK == kFp8Block);

/// Panels whose sums are put away together: gate and up.
constexpr std::int64_t kBlockPanels = 2;

/// The greatest number of rows that are made ready at a time.
constexpr std::int64_t kMostBlockRows = kReadyRows.most;

/// bf16 rows widened to f32 and padded with zeros to k elements, piece by piece: of each kPieceK of
/// k all rows, one behind the other. Rows a power of two apart would drive each other and the
/// weights out of the L1 cache.
inline void widen_in_pieces(const GemmArgs& args, std::int64_t k, float* out) {
  for (std::int64_t first = 0; first < k; first += kPieceK) {
    const std::int64_t end = smaller(k, first + kPieceK);
    for (std::int64_t r = 0; r < args.rows; ++r) {
      const std::byte* row = row_of(args.in, r);
      for (std::int64_t i = first; i < end; i += 16, out += 16) {
        const std::int64_t left = args.weights->k - i;
        store(out,
              left <= 0 ? splat(0.0F)
                        : Bf16Row::load_at(row, i, static_cast<int>(smaller(left, 16))));
      }
    }
  }
}

/// The k from `first` to before `end` of a panel as f32: of each kBf16KBlock of them the even ones,
/// then the odd ones, a row of kPanelColumns each.
template <class Pairs16>
void widen_piece(
    const std::byte* panel, std::int64_t k, std::int64_t first, std::int64_t end, float* out) {
  constexpr int kPairs = Pairs16::kPairs;
  for (std::int64_t block = first; block < end; block += kBf16KBlock) {
    const auto factor = Pairs16::factor(panel, k, block);
    for (std::int64_t i = 0; i < kBf16KBlock; i += 2 * kPairs) {
      Pairs y[kPairs];
      Pairs16::load(panel + Pairs16::bytes(block + i), factor, i, y);
      for (int pair = 0; pair < kPairs; ++pair) {
        float* even = out + (i / 2 + pair) * kPanelColumns;
        store(even, y[pair].even);
        store(even + kBf16KBlock / 2 * kPanelColumns, y[pair].odd);
      }
    }
    out += kBf16KBlock * kPanelColumns;
  }
}

/// A chain of fused multiply-adds over every other of a block's k, for R rows.
template <int R>
void chain(const float* const* a, const float* w, F32x16 (&sum)[R]) {
  for (int r = 0; r < R; ++r) sum[r] = splat(0.0F);
#pragma GCC unroll 4
  for (std::int64_t i = 0; i < kBf16KBlock / 2; ++i) {
    const F32x16 y = load(w + i * kPanelColumns);
    for (int r = 0; r < R; ++r) sum[r] = fma(splat(a[r][2 * i]), y, sum[r]);
  }
}

/// Adds the products of R rows, `k` numbers each, with a piece of k to the rows' sums, kBlockPanels
/// * kPanelColumns apart. scale: of the piece, or null.
template <int R>
[[gnu::noinline]] void piece_rows(
    const float* a, const float* w, std::int64_t k, const float* scale, float* sums) {
  F32x16 total[R];
  for (int r = 0; r < R; ++r)
    total[r] = scale != nullptr ? splat(0.0F) : load(sums + r * (kBlockPanels * kPanelColumns));
  for (std::int64_t block = 0; block < k; block += kBf16KBlock, w += kBf16KBlock * kPanelColumns) {
    const float* rows[R];
    for (int r = 0; r < R; ++r) rows[r] = a + r * k + block;
    F32x16 even[R];
    chain<R>(rows, w, even);
    for (int r = 0; r < R; ++r) ++rows[r];
    F32x16 odd[R];
    chain<R>(rows, w + kBf16KBlock / 2 * kPanelColumns, odd);
    for (int r = 0; r < R; ++r) total[r] = add(total[r], add(even[r], odd[r]));
  }
  for (int r = 0; r < R; ++r) {
    float* sum = sums + r * (kBlockPanels * kPanelColumns);
    store(sum, scale != nullptr ? fma(total[r], load(scale), load(sum)) : total[r]);
  }
}

/// piece_rows<rows>, where rows is at most R.
template <int R>
void piece_of_rows(std::int64_t rows,
                   const float* a,
                   const float* w,
                   std::int64_t k,
                   const float* scale,
                   float* sums) {
  if constexpr (R > 0) {
    if (rows == R) return piece_rows<R>(a, w, k, scale, sums);
    piece_of_rows<R - 1>(rows, a, w, k, scale, sums);
  }
}

/// The sums of one panel for all rows of `args`, which lie widened in a.
template <class Pairs16>
void block_panel(
    const GemmArgs& args, const float* a, std::int64_t k, const std::byte* w, float* sums) {
  alignas(64) float piece[kPieceK * kPanelColumns];
  const auto* scales = floats_of(w + Pairs16::bytes(k));
  for (std::int64_t r = 0; r < args.rows; ++r)
    store(sums + r * (kBlockPanels * kPanelColumns), splat(0.0F));
  const std::int64_t passes = (args.rows + Tiling::kBlockRows - 1) / Tiling::kBlockRows;
  for (std::int64_t first = 0; first < k; first += kPieceK) {
    const std::int64_t length = smaller(kPieceK, k - first);
    widen_piece<Pairs16>(w, k, first, first + length, piece);
    Prefetcher fetch =
        prefetcher_of(w + Pairs16::bytes(first + length), Pairs16::bytes(length), passes);
    const float* scale = nullptr;
    if constexpr (Pairs16::kGroup != 0) scale = scales + first / kPieceK * kPanelColumns;
    for (std::int64_t pass = 0; pass < passes; ++pass) {
      const std::int64_t row = args.rows * pass / passes;
      const std::int64_t rows = args.rows * (pass + 1) / passes - row;
      piece_of_rows<Tiling::kBlockRows>(rows,
                                        a + first * args.rows + row * length,
                                        piece,
                                        length,
                                        scale,
                                        sums + row * (kBlockPanels * kPanelColumns));
      fetch.step();
    }
  }
}

/// All panels of `args`, whose rows lie widened in a; k counts the padding.
template <class Pairs16>
void block_panels(const GemmArgs& args, const float* a, std::int64_t k) {
  alignas(64) float sums[kMostBlockRows * kBlockPanels * kPanelColumns];
  const std::int64_t bytes = Pairs16::panel_bytes(k);
  for (std::int64_t first = args.first_panel; first < args.last_panel; first += kBlockPanels) {
    const std::int64_t panels = smaller(kBlockPanels, args.last_panel - first);
    for (std::int64_t p = 0; p < panels; ++p)
      block_panel<Pairs16>(
          args, a, k, args.weights->data + (first + p) * bytes, sums + p * kPanelColumns);
    finish(args,
           {.sums = sums,
            .row_step = kBlockPanels * kPanelColumns,
            .panel_step = kPanelColumns,
            .first_row = 0,
            .rows = args.rows,
            .first_panel = first,
            .panels = panels});
  }
}

template <class Pairs16>
void gemm_in_blocks(const GemmArgs& args) {
  const std::int64_t k = round_up_to(args.weights->k, kBf16KBlock);
  auto* wide =
      reinterpret_cast<float*>(aligned_scratch(args, widened_scratch_bytes(args.weights->k)));
  for (std::int64_t first = 0, rows; first < args.rows; first += rows) {
    rows = kReadyRows.next(args.rows - first, k * 4);
    const GemmArgs part = part_of(args, first, rows);
    widen_in_pieces(part, k, wide);
    block_panels<Pairs16>(part, wide, k);
  }
}

/// From Pairs16::kFewestBlockRows rows on; fewer wait for the weights, not for the arithmetic, and
/// those that are costly to widen gain earlier.
template <class Pairs16>
void gemm_in_blocks_or(void (*few_rows)(const GemmArgs&), const GemmArgs& args) {
  if constexpr (Tiling::kBlockRows > 0)
    if (args.rows >= Pairs16::kFewestBlockRows) return gemm_in_blocks<Pairs16>(args);
  few_rows(args);
}
