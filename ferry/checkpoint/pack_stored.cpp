#include "ferry/checkpoint/pack_stored.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "ferry/core/types.h"

namespace ferry {

namespace {

constexpr std::int64_t kPanelGrain = 8;

std::byte* as_bytes(float* x) { return reinterpret_cast<std::byte*>(x); }

/// One of the matrices, and the scales of its blocks where it has none and they must be known
/// before its rows are quantised.
struct Source {
  StoredMatrix matrix;
  std::vector<float> block_scales;
};

/// A thread's memory for one panel: its columns as rows of the checkpoint.
struct PanelRows {
  std::vector<float> plain;
  std::vector<std::byte> codes;
  std::vector<float> scales;  // of each row, whether or not rows share them in the checkpoint
};

void compute_block_scales(Source& source, ThreadPool& pool) {
  const StoredMatrix& matrix = source.matrix;
  const std::int64_t k = matrix.columns;
  const std::int64_t groups = weight_groups(WeightType::fp8, k);
  const std::int64_t blocks = ceil_div(matrix.rows, kFp8Block);
  source.block_scales.resize(static_cast<std::size_t>(blocks * groups));
  pool.parallel_for(blocks, 1, [&](std::int64_t begin, std::int64_t end, int) {
    std::vector<float> rows(static_cast<std::size_t>(kFp8Block * k));
    for (std::int64_t b = begin; b < end; ++b) {
      const std::int64_t count = std::min<std::int64_t>(kFp8Block, matrix.rows - b * kFp8Block);
      matrix.read_rows(b * kFp8Block, count, DType::f32, as_bytes(rows.data()));
      fp8_block_scales(
          as_bytes(rows.data()), DType::f32, count, k, source.block_scales.data() + b * groups);
    }
  });
}

/// Codes and scales of rows [first, first + count) to those of the panel from `column` on.
void quantised_rows(const Source& source,
                    std::int64_t first,
                    std::int64_t count,
                    WeightType type,
                    std::int64_t column,
                    PanelRows& panel) {
  const StoredMatrix& matrix = source.matrix;
  type = code_type(type);
  const std::int64_t k = matrix.columns;
  const std::int64_t groups = weight_groups(type, k);
  if (!matrix.holds(type)) {
    panel.plain.resize(static_cast<std::size_t>(count * k));
    matrix.read_rows(first, count, DType::f32, as_bytes(panel.plain.data()));
  }
  for (std::int64_t i = 0; i < count; ++i) {
    std::byte* codes = panel.codes.data() + (column + i) * code_row_bytes(type, k);
    float* scales = panel.scales.data() + (column + i) * groups;
    if (matrix.holds(type)) {
      matrix.read_codes(first + i, codes, scales);
      continue;
    }
    if (!source.block_scales.empty()) {
      std::copy_n(
          source.block_scales.data() + (first + i) / rows_per_scale(type) * groups, groups, scales);
    }
    quantize_row(type, as_bytes(panel.plain.data() + i * k), DType::f32, k, scales, codes);
  }
}

/// Packs columns [begin, end) of the merged matrix to the panel at args.out. A panel that is not
/// plain rows of one matrix is put together first: as codes, or as f32, which every type fits in.
void pack_columns(std::span<const Source> sources,
                  std::int64_t begin,
                  std::int64_t end,
                  PanelRows& panel,
                  PackArgs args) {
  args.n = end - begin;
  while (begin >= sources.front().matrix.rows) {
    begin -= sources.front().matrix.rows;
    end -= sources.front().matrix.rows;
    sources = sources.subspan(1);
  }
  const StoredMatrix& first = sources.front().matrix;
  if (end <= first.rows && first.is_plain() && first.row_after_row() && !is_quantized(args.type)) {
    args.source = first.row(begin);
    args.source_type = first.dtype;
    pack_matrix(args);
    return;
  }
  const std::int64_t groups = weight_groups(args.type, args.k);
  const std::int64_t code_bytes = code_row_bytes(args.type, args.k);
  std::vector<float> merged;
  if (is_quantized(args.type)) {
    panel.codes.resize(static_cast<std::size_t>(kPanelColumns * code_bytes));
    panel.scales.resize(static_cast<std::size_t>(kPanelColumns * groups));
    args.source = panel.codes.data();
    args.scales = panel.scales.data();
  } else {
    merged.resize(static_cast<std::size_t>(args.n * args.k));
    args.source = as_bytes(merged.data());
    args.source_type = DType::f32;
  }
  for (std::int64_t column = 0; column < args.n; begin = 0, sources = sources.subspan(1)) {
    const StoredMatrix& matrix = sources.front().matrix;
    const std::int64_t count = std::min(args.n - column, matrix.rows - begin);
    if (is_quantized(args.type)) {
      quantised_rows(sources.front(), begin, count, args.type, column, panel);
    } else {
      matrix.read_rows(begin, count, DType::f32, as_bytes(merged.data() + column * args.k));
    }
    column += count;
  }
  pack_matrix(args);
}

}  // namespace

void pack_stored(std::span<const StoredMatrix> matrices,
                 const PackTarget& target,
                 ThreadPool& pool) {
  std::vector<Source> sources;
  std::int64_t columns = 0;
  for (const StoredMatrix& matrix : matrices) {
    Source& source = sources.emplace_back(Source{matrix, {}});
    columns += matrix.rows;
    if (target.type == WeightType::fp8 && !matrix.holds(target.type))
      compute_block_scales(source, pool);
  }
  const std::int64_t k = matrices.front().columns;
  const auto step = static_cast<std::ptrdiff_t>(PackedMatrix::packed_panel_bytes(target.type, k)) *
                    target.panel_step;
  const PanelRange all{0, ceil_div(columns, kPanelColumns)};
  for (const PanelRange& range : target.panels.empty() ? std::span(&all, 1) : target.panels) {
    const std::int64_t panels = range.end - range.begin;
    pool.parallel_for(panels, kPanelGrain, [&](std::int64_t begin, std::int64_t end, int) {
      PanelRows rows;
      for (std::int64_t p = range.begin + begin; p < range.begin + end; ++p) {
        pack_columns(
            sources,
            p * kPanelColumns,
            std::min(columns, (p + 1) * kPanelColumns),
            rows,
            {.type = target.type, .k = k, .out = target.data + (p - target.first_panel) * step});
      }
    });
  }
}

QuantizedMatrix quantize_stored(const StoredMatrix& matrix, WeightType type, ThreadPool& pool) {
  const std::int64_t k = matrix.columns;
  const std::int64_t groups = weight_groups(type, k);
  const std::int64_t code_bytes = code_row_bytes(type, k);
  QuantizedMatrix out;
  out.codes.resize(static_cast<std::size_t>(matrix.rows * code_bytes));
  out.scales.resize(static_cast<std::size_t>(ceil_div(matrix.rows, rows_per_scale(type)) * groups));
  // In pieces that no block of scales straddles.
  pool.parallel_for(
      ceil_div(matrix.rows, kFp8Block), 1, [&](std::int64_t begin, std::int64_t end, int) {
        std::vector<float> plain;
        for (std::int64_t piece = begin; piece < end; ++piece) {
          const std::int64_t first = piece * kFp8Block;
          const std::int64_t count = std::min<std::int64_t>(kFp8Block, matrix.rows - first);
          std::byte* codes = out.codes.data() + first * code_bytes;
          float* scales = out.scales.data() + first / rows_per_scale(type) * groups;
          if (matrix.holds(type)) {
            for (std::int64_t r = 0; r < count; ++r)
              matrix.read_codes(
                  first + r, codes + r * code_bytes, scales + r / rows_per_scale(type) * groups);
            continue;
          }
          plain.resize(static_cast<std::size_t>(count * k));
          matrix.read_rows(first, count, DType::f32, as_bytes(plain.data()));
          const QuantizedMatrix part =
              quantize_matrix(type, as_bytes(plain.data()), DType::f32, count, k);
          std::ranges::copy(part.codes, codes);
          std::ranges::copy(part.scales, scales);
        }
      });
  return out;
}

}  // namespace ferry
