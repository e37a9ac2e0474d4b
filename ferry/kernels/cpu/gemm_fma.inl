// gemm by fused multiply-adds, one source for every instruction set. Weights are read once per
// block of rows that fits the L2 cache: panels are the outer loop, rows the inner one.
// Included after gemm_common.inl, inside an anonymous namespace that has defined `struct Tiling`:
//   kOnePanels: panels at once for one row alone, kPassPanels: for the few that one pass takes;
//     kAhead: bytes by which these prefetch, 0: they do not
//   kFewPanels: panels at once for the last one or two of many rows; more go as a pass does
//   kBlockRows: rows at once of gemm_blocks.inl; 0: many rows are done as few are
//   kRows, kPanels: the block of sums held in registers for several rows; kIntRows, kIntPanels:
//     that of gemm_int.inl; kByteRows, kBytePanels: that of gemm_byte_blocks.inl
// No number of panels is above kGroupPanels.

constexpr std::int64_t kGroupPanels = 4;
constexpr RowBudget kReadyRows{.bytes = 512 * 1024, .fewest = 8, .most = 128};

/// The few rows that go through each panel once wait for nothing but memory, unless codes are
/// unpacked for them. Then what is read next, prefetched a little ahead into the L1 cache, comes a
/// fifth faster than with the Prefetcher of the next panels (AMD Zen 5).
struct ReadAhead {
  void reading(const std::byte* line) {
    if constexpr (Tiling::kAhead > 0)
      __builtin_prefetch(line + Tiling::kAhead, /*for writing*/ 0, /*into L1*/ 3);
  }

  void step() {}
};

/// The sums of R rows and P panels. a: R rows of f32. Sums of row r, panel p go to
/// sums + (r * kGroupPanels + p) * 16. steps(k): how often a call prefetches.
struct F32Sums {
  static constexpr int kRows = Tiling::kRows;
  static constexpr int kPanels = Tiling::kPanels;
  static constexpr bool kUnpacks = false;

  static std::int64_t panel_bytes(std::int64_t k) { return k * kPanelColumns * 4; }

  static std::int64_t steps(std::int64_t k) { return (k + kBf16KBlock - 1) / kBf16KBlock; }

  template <int R, int P, class Fetch>
  static void run(const std::byte* const* a,
                  std::int64_t k,
                  const std::byte* w,
                  std::int64_t w_step,
                  Fetch& fetch,
                  float* sums) {
    F32x16 sum[R][P];
    for (int r = 0; r < R; ++r)
      for (int p = 0; p < P; ++p) sum[r][p] = splat(0.0F);
    for (std::int64_t block = 0; block < k; block += kBf16KBlock) {
      const std::int64_t end = smaller(k, block + kBf16KBlock);
      for (std::int64_t i = block; i < end; ++i) {
        F32x16 x[R];
        for (int r = 0; r < R; ++r) x[r] = splat(floats_of(a[r])[i]);
        for (int p = 0; p < P; ++p) {
          const std::byte* from = w + p * w_step + i * (kPanelColumns * 4);
          fetch.reading(from);
          const F32x16 y = load(floats_of(from));
          for (int r = 0; r < R; ++r) sum[r][p] = fma(x[r], y, sum[r][p]);
        }
      }
      fetch.step();
    }
    for (int r = 0; r < R; ++r)
      for (int p = 0; p < P; ++p) store(sums + (r * kGroupPanels + p) * kPanelColumns, sum[r][p]);
  }
};

/// Panels of k numbers a column, `step` bytes from one to the next.
struct PanelGroup {
  const std::byte* first;
  std::int64_t step;
  std::int64_t k;

  const std::byte* at(int panel) const { return first + panel * step; }
};

/// Panels that hold pairs of k, summed in TDPBF16PS's order; a: f32 rows padded with zeros to whole
/// blocks. `Pairs16` says where a pair's numbers are, how many pairs are loaded at once, what the
/// numbers of a block are multiplied by as they are loaded, and how much of k shares a scale of
/// sums.
template <class Pairs16>
struct PairSums {
  static constexpr int kRows = Tiling::kRows;
  static constexpr int kPanels = Tiling::kPanels;
  static constexpr bool kUnpacks = Pairs16::kUnpacks;

  static std::int64_t panel_bytes(std::int64_t k) { return Pairs16::panel_bytes(k); }

  static std::int64_t steps(std::int64_t k) { return k / kBf16KBlock; }

  /// Adds one block's sums.
  template <int R, int P, class Fetch>
  static void add_block(const std::byte* const* a,
                        const PanelGroup& panels,
                        std::int64_t block,
                        Fetch& fetch,
                        F32x16 (&sum)[R][P]) {
    constexpr int kPairs = Pairs16::kPairs;
    typename Pairs16::Factor factor[P];
    F32x16 even[R][P];
    F32x16 odd[R][P];
    for (int p = 0; p < P; ++p) factor[p] = Pairs16::factor(panels.at(p), panels.k, block);
    for (int r = 0; r < R; ++r)
      for (int p = 0; p < P; ++p) even[r][p] = odd[r][p] = splat(0.0F);
    for (std::int64_t i = block; i < block + kBf16KBlock; i += 2 * kPairs) {
      for (int p = 0; p < P; ++p) {
        const std::byte* from = panels.at(p) + Pairs16::bytes(i);
        fetch.reading(from);
        Pairs y[kPairs];
        Pairs16::load(from, factor[p], i - block, y);
        for (int pair = 0; pair < kPairs; ++pair) {
          for (int r = 0; r < R; ++r) {
            const float* x = floats_of(a[r]) + i + std::ptrdiff_t{2} * pair;
            even[r][p] = fma(splat(x[0]), y[pair].even, even[r][p]);
            odd[r][p] = fma(splat(x[1]), y[pair].odd, odd[r][p]);
          }
        }
      }
    }
    fetch.step();
    for (int r = 0; r < R; ++r)
      for (int p = 0; p < P; ++p) sum[r][p] = add(sum[r][p], add(even[r][p], odd[r][p]));
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

/// The factor of numbers that are loaded as they are.
struct NoFactor {};

struct Bf16Pairs {
  static constexpr int kPairs = 1;           ///< loaded at once
  static constexpr std::int64_t kGroup = 0;  ///< no scales
  static constexpr bool kUnpacks = false;
  static constexpr std::int64_t kFewestBlockRows = 16;

  using Factor = NoFactor;

  /// Of k numbers' codes.
  static std::int64_t bytes(std::int64_t k) { return k * (2 * kPanelColumns); }

  static std::int64_t panel_bytes(std::int64_t k) { return bytes(k); }

  static Factor factor(const std::byte* /*panel*/, std::int64_t /*k*/, std::int64_t /*block*/) {
    return {};
  }

  /// `at`: the first k among those of the block that share the factor.
  static void load(const std::byte* p,
                   NoFactor /*one*/,
                   std::int64_t /*at*/,
                   Pairs (&out)[kPairs]) {
    out[0] = load_bf16_pairs(p);
  }
};

/// Rows as the sums read them: RowsView without its inline members.
struct ReadyRows {
  const std::byte* base;
  std::int64_t stride;
  const std::byte* const* pointers;

  const std::byte* row(std::int64_t i) const {
    return pointers != nullptr ? pointers[i] : base + i * stride;
  }
};

/// R rows from block.first_row on and the block's panels, which begin at w. Never inlined: among
/// others of its kind it would run out of registers.
template <class Sums, int R, int P, class Fetch>
[[gnu::noinline]] void some_rows(const GemmArgs& args,
                                 const ReadyRows& in,
                                 std::int64_t k,
                                 const std::byte* w,
                                 Fetch& fetch,
                                 SumBlock block) {
  const std::int64_t w_step = Sums::panel_bytes(k);
  const std::byte* a[R];
  for (int r = 0; r < R; ++r) a[r] = in.row(block.first_row + r);
  alignas(64) float sums[R * kGroupPanels * kPanelColumns];
  std::int64_t p = 0;
  for (; p + P <= block.panels; p += P)
    Sums::template run<R, P>(a, k, w + p * w_step, w_step, fetch, sums + p * kPanelColumns);
  for (; p < block.panels; ++p)
    Sums::template run<R, 1>(a, k, w + p * w_step, w_step, fetch, sums + p * kPanelColumns);
  block.sums = sums;
  block.rows = R;
  finish(args, block);
}

/// Panels as they lie in memory.
struct PanelsInPlace {
  const std::byte* data;
  std::int64_t bytes;  ///< of one

  const std::byte* source(std::int64_t panel) const { return data + panel * bytes; }

  const std::byte* at(std::int64_t panel, std::int64_t /*panels*/) const { return source(panel); }
};

/// Panels at once for a number of rows, fewer than a block has.
constexpr int panels_for(std::int64_t rows) {
  return rows <= 2 ? Tiling::kFewPanels : Tiling::kPassPanels;
}

/// What the products of one group of panels with all rows may prefetch: the next group.
template <class Sums, class Panels>
Prefetcher next_group(const GemmArgs& args,
                      const Panels& panels,
                      std::int64_t k,
                      std::int64_t after) {
  const std::int64_t ahead = larger(0, smaller(kGroupPanels, args.last_panel - after));
  const std::int64_t rest = args.rows % Sums::kRows;
  const std::int64_t calls = args.rows / Sums::kRows * (kGroupPanels / Sums::kPanels) +
                             (rest > 0 ? kGroupPanels / panels_for(rest) : 0);
  const std::int64_t steps = calls * Sums::steps(k);
  return prefetcher_of(panels.source(after), ahead * panels.bytes, steps);
}

/// Calls body(block, its panels) for each group of panels.
template <class Panels, class Body>
void for_groups(const GemmArgs& args, const Panels& panels, Body body) {
  for (std::int64_t panel = args.first_panel; panel < args.last_panel; panel += kGroupPanels) {
    const std::int64_t count = smaller(kGroupPanels, args.last_panel - panel);
    body(SumBlock{.sums = nullptr,
                  .row_step = kGroupPanels * kPanelColumns,
                  .panel_step = kPanelColumns,
                  .first_row = 0,
                  .rows = 0,
                  .first_panel = panel,
                  .panels = count},
         panels.at(panel, count));
  }
}

/// All panels with the R rows of `args`, P panels at once.
template <class Sums, int R, int P, class Panels>
void one_pass(const GemmArgs& args, const ReadyRows& in, std::int64_t k, const Panels& panels) {
  ReadAhead fetch;
  for_groups(args, panels, [&](const SumBlock& block, const std::byte* w) {
    some_rows<Sums, R, P>(args, in, k, w, fetch, block);
  });
}

/// The rows from block.first_row on, R at most or none.
template <class Sums, int R>
void last_rows(const GemmArgs& args,
               const ReadyRows& in,
               std::int64_t k,
               const std::byte* w,
               Prefetcher& fetch,
               const SumBlock& block) {
  if constexpr (R > 0) {
    if (args.rows - block.first_row < R)
      return last_rows<Sums, R - 1>(args, in, k, w, fetch, block);
    some_rows<Sums, R, panels_for(R)>(args, in, k, w, fetch, block);
  }
}

/// All panels with any number of rows.
template <class Sums, class Panels>
void many_passes(const GemmArgs& args, const ReadyRows& in, std::int64_t k, const Panels& panels) {
  for_groups(args, panels, [&](SumBlock block, const std::byte* w) {
    Prefetcher fetch = next_group<Sums>(args, panels, k, block.first_panel + block.panels);
    for (; block.first_row + Sums::kRows <= args.rows; block.first_row += Sums::kRows)
      some_rows<Sums, Sums::kRows, Sums::kPanels>(args, in, k, w, fetch, block);
    last_rows<Sums, Sums::kRows - 1>(args, in, k, w, fetch, block);
  });
}

/// All rows and panels of `args`; k counts the padding.
template <class Sums, class Panels>
void all_panels(const GemmArgs& args, const ReadyRows& in, std::int64_t k, const Panels& panels) {
  if constexpr (!Sums::kUnpacks) {
    if (args.rows == 1) return one_pass<Sums, 1, Tiling::kOnePanels>(args, in, k, panels);
    if constexpr (Sums::kRows >= 2)
      if (args.rows == 2) return one_pass<Sums, 2, Tiling::kPassPanels>(args, in, k, panels);
    if constexpr (Sums::kRows >= 4) {
      if (args.rows == 3) return one_pass<Sums, 3, Tiling::kPassPanels>(args, in, k, panels);
      if (args.rows == 4) return one_pass<Sums, 4, Tiling::kPassPanels>(args, in, k, panels);
    }
  }
  many_passes<Sums>(args, in, k, panels);
}

/// bf16 rows widened to f32, padded with zeros to k_padded elements.
inline void widen_rows(const GemmArgs& args, std::int64_t k_padded, float* out) {
  const std::int64_t k = args.weights->k;
  for (std::int64_t r = 0; r < args.rows; ++r) {
    const std::byte* row = row_of(args.in, r);
    float* to = out + r * k_padded;
    for_sixteens(k, [&](std::int64_t i, int count) {
      store(to + i, Bf16Row::load_at(row, i, count));  // a part is filled up with zeros
    });
    for (std::int64_t i = round_up_to(k, 16); i < k_padded; i += 16) store(to + i, splat(0.0F));
  }
}

inline std::size_t widened_scratch_bytes(std::int64_t k) {
  return static_cast<std::size_t>(kReadyRows.most_bytes(round_up_to(k, kBf16KBlock) * 4) + 64);
}

template <class Sums, class Panels>
void gemm_widened(const GemmArgs& args, float* wide, const Panels& panels) {
  const std::int64_t k = round_up_to(args.weights->k, kBf16KBlock);
  for (std::int64_t first = 0, rows; first < args.rows; first += rows) {
    rows = kReadyRows.next(args.rows - first, k * 4);
    const GemmArgs part = part_of(args, first, rows);
    widen_rows(part, k, wide);
    all_panels<Sums>(part, {bytes_of(wide), k * 4, nullptr}, k, panels);
  }
}

inline void gemm_bf16(const GemmArgs& args) {
  using Sums = PairSums<Bf16Pairs>;
  const std::int64_t k = round_up_to(args.weights->k, kBf16KBlock);
  auto* wide =
      reinterpret_cast<float*>(aligned_scratch(args, widened_scratch_bytes(args.weights->k)));
  gemm_widened<Sums>(args, wide, PanelsInPlace{args.weights->data, Sums::panel_bytes(k)});
}

inline void gemm_f32(const GemmArgs& args) {
  const std::int64_t k = args.weights->k;
  for (std::int64_t first = 0, rows; first < args.rows; first += rows) {
    rows = kReadyRows.next(args.rows - first, k * 4);
    const GemmArgs part = part_of(args, first, rows);
    all_panels<F32Sums>(part,
                        {part.in.base, part.in.stride, part.in.pointers},
                        k,
                        PanelsInPlace{args.weights->data, F32Sums::panel_bytes(k)});
  }
}
