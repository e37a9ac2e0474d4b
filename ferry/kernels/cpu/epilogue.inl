// What happens to a gemm's sums on their way out, one source for every instruction set.
// Included after math.inl, inside an anonymous namespace.

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

inline void finish_gated(const GemmArgs& args, const SumBlock& block) {
  const std::int64_t n = args.weights->n / 2;
  for (std::int64_t p = 0; p < block.panels; p += 2) {
    const std::int64_t column = (block.first_panel + p) / 2 * kPanelColumns;
    for (std::int64_t r = 0; r < block.rows; ++r) {
      const float* sums = block.sums + r * block.row_step + p * block.panel_step;
      const F32x16 x = mul(silu(load(sums)), load(sums + block.panel_step));
      store_columns(args, block.first_row + r, column, x, n);
    }
  }
}

inline void finish(const GemmArgs& args, const SumBlock& block) {
  if (args.epilogue == Epilogue::store)
    finish_store(args, block);
  else
    finish_gated(args, block);
}
