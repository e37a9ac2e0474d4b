// What every gemm shares: blocks of rows, and what happens to sums on their way out.
// One source for every instruction set: included after math.inl, inside an anonymous namespace.

inline std::int64_t round_up_to(std::int64_t n, std::int64_t unit) {
  return (n + unit - 1) / unit * unit;
}

inline std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

inline std::int64_t larger(std::int64_t a, std::int64_t b) { return a < b ? b : a; }

/// Brings the panels that come next into the L2 cache, some lines at each step of the products
/// before: at 16 rows a panel takes about as long to multiply as to read. A step has no loop that
/// the compiler sees: around one gcc 12 moves sums from register to register.
struct Prefetcher {
  const std::byte* next;
  std::int64_t lines_left;
  std::int64_t lines_a_step;

  void reading(const std::byte* /*line*/) {}

  void step() {
    const std::int64_t lines = smaller(lines_a_step, lines_left);
    next = prefetch_lines(next, lines);
    lines_left -= lines;
  }
};

/// For `bytes` from `first` on over `steps` steps.
inline Prefetcher prefetcher_of(const std::byte* first, std::int64_t bytes, std::int64_t steps) {
  const std::int64_t lines = (bytes + 63) / 64;
  return {
      .next = first, .lines_left = lines, .lines_a_step = (lines + steps - 1) / larger(steps, 1)};
}

/// How many rows are made ready at a time, so that they stay in the L2 cache while all panels pass
/// by: `bytes` of them, but from `fewest` to `most` rows.
struct RowBudget {
  std::int64_t bytes;
  std::int64_t fewest;
  std::int64_t most;

  /// Rows of the next block when `rows` are left: even blocks, in multiples of `fewest`.
  std::int64_t next(std::int64_t rows, std::int64_t row_bytes) const {
    const std::int64_t fitting = row_bytes > 0 ? bytes / row_bytes / fewest * fewest : most;
    const std::int64_t limit = larger(fewest, smaller(most, fitting));
    const std::int64_t blocks = (rows + limit - 1) / limit;
    return smaller(rows, round_up_to((rows + blocks - 1) / blocks, fewest));
  }

  /// Bytes that next() never exceeds; not less for longer rows.
  std::int64_t most_bytes(std::int64_t row_bytes) const {
    return smaller(most * row_bytes, larger(bytes, fewest * row_bytes));
  }
};

/// The same product for `rows` rows from `first` on.
inline GemmArgs part_of(const GemmArgs& args, std::int64_t first, std::int64_t rows) {
  GemmArgs part = args;
  part.rows = rows;
  part.out.base += first * args.out.stride;
  if (args.in.pointers != nullptr)
    part.in.pointers += first;
  else
    part.in.base += first * args.in.stride;
  return part;
}

/// Sums of up to kPanelColumns columns of some panels for some rows: the sums of row r and panel p
/// (counted from the block's first) start at sums + r * row_step + p * panel_step.
struct SumBlock {
  const float* sums;
  std::int64_t row_step;
  std::int64_t panel_step;
  std::int64_t first_row;
  std::int64_t rows;
  std::int64_t first_panel;
  std::int64_t panels;
};

/// Stores one panel's worth of columns, those below `columns`.
inline void store_columns(
    const GemmArgs& args, std::int64_t row, std::int64_t column, F32x16 x, std::int64_t columns) {
  const std::int64_t left = columns - column;
  if (left <= 0) return;
  const int count = left < kPanelColumns ? static_cast<int>(left) : kPanelColumns;
  std::byte* out = args.out.base + row * args.out.stride;
  if (args.out_type == DType::f32)
    F32Row::store_at(out, column, x, count);
  else
    Bf16Row::store_at(out, column, x, count);
}

inline void finish_store(const GemmArgs& args, const SumBlock& block) {
  const std::int64_t n = args.weights->n;
  for (std::int64_t p = 0; p < block.panels; ++p) {
    const std::int64_t column = (block.first_panel + p) * kPanelColumns;
    const int count = n - column < kPanelColumns ? static_cast<int>(n - column) : kPanelColumns;
    const F32x16 bias =
        args.bias != nullptr ? F32Row::load_at(bytes_of(args.bias), column, count) : splat(0.0F);
    for (std::int64_t r = 0; r < block.rows; ++r) {
      F32x16 x = load(block.sums + r * block.row_step + p * block.panel_step);
      if (args.bias != nullptr) x = add(x, bias);
      store_columns(args, block.first_row + r, column, x, n);
    }
  }
}

inline F32x16 gated(const Gating& gating, F32x16 gate, F32x16 up) {
  if (gating.kind == Gating::Kind::silu) return mul(silu(gate), up);
  const F32x16 g = min(splat(gating.limit), gate);
  const F32x16 u = min(splat(gating.limit), max(splat(-gating.limit), up));
  return mul(mul(g, sigmoid(mul(g, splat(gating.alpha)))), add(u, splat(1.0F)));
}

inline void finish_gated(const GemmArgs& args, const SumBlock& block) {
  const std::int64_t n = args.weights->n / 2;
  for (std::int64_t p = 0; p < block.panels; p += 2) {
    const std::int64_t column = (block.first_panel + p) / 2 * kPanelColumns;
    const float* bias = args.bias;
    if (bias != nullptr) bias += (block.first_panel + p) * kPanelColumns;
    for (std::int64_t r = 0; r < block.rows; ++r) {
      const float* sums = block.sums + r * block.row_step + p * block.panel_step;
      F32x16 gate = load(sums);
      F32x16 up = load(sums + block.panel_step);
      if (bias != nullptr) {
        gate = add(gate, load(bias));
        up = add(up, load(bias + kPanelColumns));
      }
      store_columns(args, block.first_row + r, column, gated(args.gating, gate, up), n);
    }
  }
}

inline void finish(const GemmArgs& args, const SumBlock& block) {
  if (args.epilogue == Epilogue::store)
    finish_store(args, block);
  else
    finish_gated(args, block);
}
