// gemm with blocks that meet rows of int8. One source for every instruction set: included after
// gemm_fma.inl and byte_blocks.inl, inside an anonymous namespace.
//
// Sums of products within a group, or half a group where that has a scale of its own, are exact
// integers below 2^22, whatever their order; docs/numerics.md has what happens to them. A few
// rows unpack codes as they multiply. For more a group of panels becomes bytes and f32 first, which
// is one form for nearly all.

/// Rows that go through each panel once.
constexpr int kFewByteRows = Tiling::kByteRows;

template <class Blocks>
struct ByteBlockSums {
  static constexpr int kRows = Tiling::kByteRows;
  static constexpr int kPanels = Tiling::kBytePanels;
  static constexpr bool kUnpacks = true;

  static std::int64_t panel_bytes(std::int64_t k) { return Blocks::panel_bytes(k); }

  static std::int64_t steps(std::int64_t k) { return k / kGgmlGroup; }

  static I32x16 dot(I32x16 sum, const Bytes64& codes, const Bytes64& x) {
    if constexpr (Blocks::kSmall)
      return dot_small(sum, codes, x);
    else
      return dot_biased(sum, codes, x);
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
    for (std::int64_t first = 0; first < k; first += kGgmlGroup) {
      const std::byte* rows[R];
      for (int r = 0; r < R; ++r) rows[r] = a[r] + first / kGgmlGroup * RowGroup::kBytes;
      add_group<R, P>(rows, {w, w_step, k}, first, total);
      fetch.step();
    }
    for (int r = 0; r < R; ++r)
      for (int p = 0; p < P; ++p) store(sums + (r * kGroupPanels + p) * kPanelColumns, total[r][p]);
  }

  /// Adds the sums of a group's products.
  template <int R, int P>
  [[gnu::always_inline]] static void add_group(const std::byte* const* rows,
                                               const PanelGroup& panels,
                                               std::int64_t first,
                                               F32x16 (&total)[R][P]) {
    const std::byte* codes[P];
    for (int p = 0; p < P; ++p) codes[p] = Blocks::codes(panels.at(p), first);
    I32x16 sum[R][P];
    F32x16 own[R][P];
    for_lines([&]<int I>() [[gnu::always_inline]] {
      constexpr int kLines = kGroupLines / Blocks::kParts;
      constexpr int kPart = I / kLines;
      if constexpr (I % kLines == 0) start<R, P, kPart>(rows, sum);
      if constexpr (R > P) {
        Bytes64 line[P];
        for (int p = 0; p < P; ++p) line[p] = Blocks::template line<I>(codes[p]);
        for (int r = 0; r < R; ++r) {
          const Bytes64 x = splat_four(rows[r] + 4 * I);
          for (int p = 0; p < P; ++p) sum[r][p] = dot(sum[r][p], line[p], x);
        }
      } else {
        Bytes64 x[R];
        for (int r = 0; r < R; ++r) x[r] = splat_four(rows[r] + 4 * I);
        for (int p = 0; p < P; ++p) {
          const Bytes64 line = Blocks::template line<I>(codes[p]);
          for (int r = 0; r < R; ++r) sum[r][p] = dot(sum[r][p], line, x[r]);
        }
      }
      if constexpr (I % kLines == kLines - 1) {
        for (int p = 0; p < P; ++p) {
          const F32x16 scale = Blocks::factor(panels.at(p), panels.k, first).scale[kPart];
          for (int r = 0; r < R; ++r) {
            const F32x16 exact = sub(as_floats(sum[r][p]), splat(kSumsFrom));
            own[r][p] = kPart == 0 ? mul(exact, scale) : fma(exact, scale, own[r][p]);
          }
        }
      }
    });
    if constexpr (Blocks::kLeasts) {
      for (int p = 0; p < P; ++p) {
        const F32x16 least = Blocks::factor(panels.at(p), panels.k, first).least[0];
        for (int r = 0; r < R; ++r)
          own[r][p] = fma(RowGroup::splat_float(rows[r] + RowGroup::kLessSum), least, own[r][p]);
      }
    }
    for (int r = 0; r < R; ++r) {
      const F32x16 scale = RowGroup::splat_float(rows[r] + RowGroup::kScale);
      for (int p = 0; p < P; ++p) total[r][p] = fma(own[r][p], scale, total[r][p]);
    }
  }

 private:
  template <int R, int P, int Part>
  [[gnu::always_inline]] static void start(const std::byte* const* rows, I32x16 (&sum)[R][P]) {
    for (int r = 0; r < R; ++r) {
      const I32x16 from = splat_integer(rows[r] + RowGroup::kStart + 4 * Part);
      for (int p = 0; p < P; ++p) sum[r][p] = from;
    }
  }
};

/// Panels that are unpacked in scratch, a group at a time.
template <class Blocks>
struct BytesOfBlocks {
  const std::byte* data;
  std::int64_t bytes;  ///< of a panel of codes
  std::int64_t k;
  std::byte* unpacked;  ///< room for kGroupPanels

  const std::byte* source(std::int64_t panel) const { return data + panel * bytes; }

  const std::byte* at(std::int64_t panel, std::int64_t panels) const {
    for (std::int64_t p = 0; p < panels; ++p)
      unpack_byte_blocks<Blocks>(
          source(panel + p), k, unpacked + p * Unpacked<Blocks>::panel_bytes(k));
    return unpacked;
  }
};

/// Of the unpacked panels of any type: two parts take as much as one with what is taken off.
inline std::int64_t unpacked_byte_panels(std::int64_t k) {
  return kGroupPanels * UnpackedBlocks<true, 2, false>::panel_bytes(k);
}

inline std::size_t byte_block_scratch_bytes(std::int64_t k) {
  const std::int64_t padded = round_up_to(k, kGgmlGroup);
  return static_cast<std::size_t>(unpacked_byte_panels(padded) +
                                  kReadyRows.most_bytes(RowGroup::row_bytes(padded)) + 64);
}

/// All panels with the rows of `args`, R at most. Codes and scales lie apart in a panel, so that
/// reading a little ahead of codes would leave scales behind: the next panels are fetched as a
/// whole.
template <class Blocks, int R>
void few_byte_rows(const GemmArgs& args, const ReadyRows& in, std::int64_t k) {
  using Sums = ByteBlockSums<Blocks>;
  if constexpr (R > 0) {
    if (args.rows < R) return few_byte_rows<Blocks, R - 1>(args, in, k);
    constexpr int kAtOnce = R <= 2 ? Tiling::kFewPanels : Tiling::kBytePanels;
    const PanelsInPlace panels{args.weights->data, Sums::panel_bytes(k)};
    for_groups(args, panels, [&](const SumBlock& block, const std::byte* w) {
      Prefetcher fetch = next_group<Sums>(args, panels, k, block.first_panel + block.panels);
      some_rows<Sums, R, kAtOnce>(args, in, k, w, fetch, block);
    });
  }
}

template <class Blocks>
void gemm_of_byte_blocks(const GemmArgs& args) {
  const std::int64_t k = round_up_to(args.weights->k, kGgmlGroup);
  std::byte* unpacked = aligned_scratch(args, byte_block_scratch_bytes(args.weights->k));
  std::byte* ready = unpacked + unpacked_byte_panels(k);
  const std::int64_t bytes = Blocks::panel_bytes(k);
  const std::int64_t stride = RowGroup::row_bytes(k);
  for (std::int64_t first = 0, rows; first < args.rows; first += rows) {
    rows = kReadyRows.next(args.rows - first, stride);
    const GemmArgs part = part_of(args, first, rows);
    for (std::int64_t r = 0; r < rows; ++r)
      quantise_groups(
          row_of(part.in, r), args.weights->k, Blocks::kLeft, Blocks::kParts, ready + r * stride);
    const ReadyRows in{ready, stride, nullptr};
    if (rows <= kFewByteRows)
      few_byte_rows<Blocks, kFewByteRows>(part, in, k);
    else
      many_passes<ByteBlockSums<Unpacked<Blocks>>>(
          part, in, k, BytesOfBlocks<Blocks>{args.weights->data, bytes, k, unpacked});
  }
}

/// REQUIRES: is_byte_block(args.weights->type).
inline void byte_block_gemm(const GemmArgs& args) {
  with_byte_blocks(args.weights->type,
                   [&]<class Blocks>(Blocks) { gemm_of_byte_blocks<Blocks>(args); });
}
