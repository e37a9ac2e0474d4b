// The products of experts on a device: rows that lie group by group times each group's matrix, as
// bf16 with f32 sums, by the tensor cores' warp-wide products. Either may be held in fp8 with
// scales, which travels as such up to the registers and is multiplied by its scales as sums. One
// kernel for all numbers of rows and one order of sums: a row's bits depend on that row and the
// matrix alone (numeric class `fast`, docs/numerics.md).
//
// A block takes a tile of 64 rows, or where a group has 16 left or fewer of 16, by 128 columns. 32
// numbers of each row and column are under way from memory for each of the next steps while the
// warps multiply those that have come: 2 by 4 warps, 32 rows by 32 columns each, or 8 of 16 by 16.
// A lane reads eight numbers of its row and its column that lie side by side in one access. The
// tensor core's product of 16 takes four of each lane's, the next one the other four: which number
// goes where within a step is the same for both sides, and of no matter otherwise.
#pragma once

#include <cmath>

#include "ferry/kernels/gpu/elements.h"
#include "ferry/kernels/gpu/prefix_sums.h"
#include "ferry/kernels/gpu/product_numbers.h"
#include "ferry/kernels/kernels.h"

namespace ferry::gpu {

FERRY_GPU float gated_value(const Gating& gating, float gate, float up) {
  float alpha = 1.0F;
  if (gating.kind == Gating::Kind::clamped) {  // a NaN stays one
    alpha = gating.alpha;
    gate = gate > gating.limit ? gating.limit : gate;
    up = up < -gating.limit ? -gating.limit : up;
    up = (up > gating.limit ? gating.limit : up) + 1.0F;
  }
  return gate / (1.0F + expf(-(alpha * gate))) * up;
}

struct GroupedProductArgs {
  const std::byte* in = nullptr;  ///< rows [depth] of bf16, or of the wire fp8; aligned to 16
  std::int64_t in_stride = 0;     ///< bytes, a multiple of 16
  const std::byte* const* in_pointers = nullptr;  ///< not null: where each row is instead
  const float* row_weights = nullptr;   ///< not null: a row's, by which its sums are multiplied
  const std::byte* matrices = nullptr;  ///< [groups, columns, depth], aligned to 16
  /// Of fp8: [groups, columns / 128, depth / 128], rounded up; gated: those of all gates, then
  /// those of all ups, each rounded up.
  const float* scales = nullptr;
  const float* bias = nullptr;  ///< [groups, columns], or null
  std::byte* out = nullptr;     ///< rows of out_type, same indices as `in`
  std::int64_t out_stride = 0;  ///< bytes
  DType out_type = DType::f32;
  const std::int32_t* counts = nullptr;   ///< [groups] rows of each
  const std::int64_t* offsets = nullptr;  ///< [groups] and its first row
  int groups = 0;
  int columns = 0;  ///< a multiple of 8; gated: of 16
  int depth = 0;    ///< a multiple of 16
  /// Columns are 8 gates, their 8 ups and so on, and what Gating makes of both goes out: half as
  /// many columns.
  bool gated = false;
  Gating gating = {};

  static constexpr int kThreads = 256;
  static constexpr int kBlocksAtOnce = 2;  ///< on a multiprocessor, by their registers
  static constexpr std::size_t kStepsBytes = 40 << 10;

  static constexpr std::size_t shared_bytes(int groups) {
    return tiles_bytes(groups) + kStepsBytes;
  }

 protected:
  static constexpr std::size_t tiles_bytes(int groups) {
    return (static_cast<std::size_t>(groups + 1) * sizeof(std::uint32_t) + 15) / 16 * 16;
  }
};

/// Matrix, Row: what they are held in, of product_numbers.h.
template <class Matrix, class Row>
struct GroupedProduct : GroupedProductArgs {
  template <class Thread>
  FERRY_GPU void operator()(Thread& t) const {
    auto* first_tile = reinterpret_cast<std::uint32_t*>(t.shared());
    for (int group = t.thread(); group < groups; group += t.threads())
      t.store(first_tile + group, static_cast<std::uint32_t>(t.load(counts + group)));
    t.sync();
    if (t.warp() == 0) {
      prefix_sums(t, first_tile, groups, [](std::uint32_t rows) {
        return (rows + kTileRows - 1) / kTileRows;
      });
    }
    t.sync();
    const std::uint32_t row_tiles = t.load(first_tile + groups);
    const auto column_tiles =
        static_cast<std::uint32_t>((columns + kTileColumns - 1) / kTileColumns);
    const auto blocks = static_cast<std::uint32_t>(t.blocks());
    // Blocks side by side read the same columns.
    for (auto i = static_cast<std::uint32_t>(t.block()); i < row_tiles * column_tiles;
         i += blocks) {
      const std::uint32_t row_tile = i % row_tiles;
      const int group = find_last(t, first_tile, groups, row_tile);
      const int first = static_cast<int>(row_tile - t.load(first_tile + group)) * kTileRows;
      const Tile tile{.group = group,
                      .row = t.load(offsets + group) + first,
                      .rows = t.load(counts + group) - first,
                      .column = static_cast<int>(i / row_tiles) * kTileColumns};
      if (tile.rows <= kFewRows)
        multiply_tile<Shape<kFewRows>>(t, tile);
      else
        multiply_tile<Shape<kTileRows>>(t, tile);
    }
  }

 private:
  static constexpr bool kScaled = Matrix::kScaled || Row::kScaled;
  /// Sums beside totals leave registers for half as many of both.
  static constexpr int kTileRows = kScaled ? 32 : 64;
  static constexpr int kFewRows = 16, kTileColumns = 128;
  static constexpr int kStepDepth = 32, kScaleDepth = 128, kScaleColumns = 128;
  static constexpr int kRowBytes = kStepDepth * Row::kBytes;  ///< of a step, in shared memory
  static constexpr int kColumnBytes = kStepDepth * Matrix::kBytes;
  static constexpr std::size_t kStageBytes = kTileRows * kRowBytes + kTileColumns * kColumnBytes;
  /// Steps whose numbers have room: the fewer bytes a step has, the more must be under way.
  static constexpr int kStages = kStepsBytes / kStageBytes;
  static_assert(kStages >= 3);

  struct Tile {
    int group = 0;
    std::int64_t row = 0;  ///< its first
    int rows = 0;          ///< from there to the group's last
    int column = 0;        ///< its first
  };

  /// How a tile is shared out over the warps.
  template <int Rows>
  struct Shape {
    static constexpr int kRows = Rows;
    static constexpr int kWarpRows = Rows < 32 ? Rows : 32;
    static constexpr int kRowWarps = Rows / kWarpRows;
    static constexpr int kWarpColumns = kTileColumns / (kThreads / kWarpThreads / kRowWarps);
    static constexpr int kEighths = kWarpRows / 8;     ///< rows of a warp, eight by eight
    static constexpr int kColumns = kWarpColumns / 8;  ///< and columns
    static_assert(kWarpRows % 16 == 0 && kColumns % 2 == 0);

    /// Of a lane: two numbers of each row and column.
    struct Sums {
      float of[kWarpRows / 16][kColumns][4];
    };

    /// Of 128 numbers of the depth, of this lane's rows and of gates and ups.
    struct Scales {
      float row[kEighths];
      float matrix[2];
    };

    template <class Thread>
    static FERRY_GPU int first_row(Thread& t) {
      return t.warp() % kRowWarps * kWarpRows;
    }

    template <class Thread>
    static FERRY_GPU int first_column(Thread& t) {
      return t.warp() / kRowWarps * kWarpColumns;
    }
  };

  template <class Thread>
  FERRY_GPU std::byte* rows_of(Thread& t, int step) const {
    return t.shared() + tiles_bytes(groups) +
           static_cast<std::size_t>(step % kStages) * kStageBytes;
  }

  template <class Thread>
  FERRY_GPU std::byte* columns_of(Thread& t, int step) const {
    return rows_of(t, step) + kTileRows * kRowBytes;
  }

  template <class Thread>
  FERRY_GPU const std::byte* row(Thread& t, std::int64_t i) const {
    return in_pointers != nullptr ? t.load(in_pointers + i) : in + i * in_stride;
  }

  FERRY_GPU std::int64_t column(const Tile& tile, int i) const {
    return std::int64_t{tile.group} * columns + tile.column + i;
  }

  /// This thread's share of a step's numbers of some lines; zeros where a line is null.
  template <class Numbers, class Thread, class Line>
  FERRY_GPU void fetch_lines(Thread& t, std::byte* to, int lines, int step, Line line) const {
    constexpr int kInChunk = 16 / Numbers::kBytes;
    constexpr int kChunks = kStepDepth / kInChunk;
    for (int i = t.thread(); i < lines * kChunks; i += kThreads) {
      const int first = step * kStepDepth + i % kChunks * kInChunk;
      const std::byte* from = first < depth ? line(i / kChunks) : nullptr;
      const bool there = from != nullptr;
      from = there ? from + first * Numbers::kBytes : matrices;
      t.copy_async(to + i * 16, from, there);
    }
  }

  /// One group of copies, empty behind the last step.
  template <class S, class Thread>
  FERRY_GPU void fetch(Thread& t, const Tile& tile, int step) const {
    if (step * kStepDepth < depth) {
      fetch_lines<Row>(t, rows_of(t, step), S::kRows, step, [&](int i) {
        return i < tile.rows ? row(t, tile.row + i) : nullptr;
      });
      fetch_lines<Matrix>(t, columns_of(t, step), kTileColumns, step, [&](int i) {
        return tile.column + i < columns ? matrices + column(tile, i) * depth * Matrix::kBytes
                                         : nullptr;
      });
    }
    t.commit_copies();
  }

  template <class S, class Thread>
  FERRY_GPU void multiply_tile(Thread& t, const Tile& tile) const {
    constexpr int kScaleSteps = kScaleDepth / kStepDepth;
    typename S::Sums sums{};
    typename S::Sums totals{};
    typename S::Scales block{};
    for (int step = 0; step < kStages - 1; ++step) fetch<S>(t, tile, step);
    for (int step = 0; step * kStepDepth < depth; ++step) {
      t.template wait_copies<kStages - 2>();
      t.sync();  // all see the step's numbers, and nobody reads those of the step before any more
      fetch<S>(t, tile, step + kStages - 1);
      if (kScaled && step % kScaleSteps == 0) block = scales_of<S>(t, tile, step / kScaleSteps);
      multiply_step<S>(t, step, sums);
      const bool last = (step + 1) * kStepDepth >= depth;
      if (kScaled && (last || step % kScaleSteps == kScaleSteps - 1))
        add_scaled<S>(totals, block, sums);
    }
    t.template wait_copies<0>();
    t.sync();
    write<S>(t, tile, kScaled ? totals : sums);
  }

  template <class S, class Thread>
  FERRY_GPU void multiply_step(Thread& t, int step, typename S::Sums& sums) const {
    const int eight = t.lane() % 4 * 8;  // numbers of a line
    const auto of_line = [&]<class Numbers>(Numbers, const std::byte* lines, int line) {
      const std::byte* at = lines + (line * kStepDepth + eight) * Numbers::kBytes;
      return Numbers::bf16(t, t.load(reinterpret_cast<const typename Numbers::Eight*>(at)));
    };
    Words a[S::kEighths];
    FERRY_GPU_UNROLL
    for (int i = 0; i < S::kEighths; ++i)
      a[i] = of_line(Row{}, rows_of(t, step), S::first_row(t) + 8 * i + t.lane() / 4);
    FERRY_GPU_UNROLL
    for (int j = 0; j < S::kColumns; ++j) {
      const Words b =
          of_line(Matrix{}, columns_of(t, step), S::first_column(t) + 8 * j + t.lane() / 4);
      FERRY_GPU_UNROLL
      for (int half = 0; half < 4; half += 2) {
        FERRY_GPU_UNROLL
        for (int i = 0; i < S::kEighths; i += 2) {
          const MatrixWords of_rows{
              {a[i].word[half], a[i + 1].word[half], a[i].word[half + 1], a[i + 1].word[half + 1]}};
          t.multiply(sums.of[i / 2][j], of_rows, b.word[half], b.word[half + 1]);
        }
      }
    }
  }

  template <class S, class Thread>
  FERRY_GPU typename S::Scales scales_of(Thread& t, const Tile& tile, int block) const {
    typename S::Scales of{};
    FERRY_GPU_UNROLL
    for (int i = 0; i < S::kEighths; ++i) {
      of.row[i] = 1.0F;
      const int line = S::first_row(t) + 8 * i + t.lane() / 4;
      if constexpr (Row::kScaled) {
        if (line < tile.rows) of.row[i] = Row::scale(t, row(t, tile.row + line), depth, block);
      }
    }
    const int halves = gated ? 2 : 1;
    const int in_half = (columns / halves + kScaleColumns - 1) / kScaleColumns;
    const int blocks = (depth + kScaleDepth - 1) / kScaleDepth;
    FERRY_GPU_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int in_group = half % halves * in_half + tile.column / halves / kScaleColumns;
      of.matrix[half] = 1.0F;
      if constexpr (Matrix::kScaled) {
        of.matrix[half] = t.load(
            scales + (std::int64_t{tile.group} * halves * in_half + in_group) * blocks + block);
      }
    }
    return of;
  }

  /// A sum's share of the total; sums begin anew.
  template <class S>
  FERRY_GPU void add_scaled(typename S::Sums& totals,
                            const typename S::Scales& block,
                            typename S::Sums& sums) const {
    FERRY_GPU_UNROLL
    for (int i = 0; i < S::kEighths; ++i) {
      FERRY_GPU_UNROLL
      for (int j = 0; j < S::kColumns; ++j) {
        const float scale = block.matrix[j % 2] * block.row[i];
        FERRY_GPU_UNROLL
        for (int c = i % 2 * 2; c < i % 2 * 2 + 2; ++c) {
          float& total = totals.of[i / 2][j][c];
          total = std::fma(sums.of[i / 2][j][c], scale, total);
          sums.of[i / 2][j][c] = 0;
        }
      }
    }
  }

  template <class S, class Thread>
  FERRY_GPU void write(Thread& t, const Tile& tile, const typename S::Sums& sums) const {
    with_element(out_type, [&]<class Out>(Out) {
      FERRY_GPU_UNROLL
      for (int i = 0; i < S::kEighths; ++i) {
        const int line = S::first_row(t) + 8 * i + t.lane() / 4;
        if (line >= tile.rows) continue;
        const float weight = row_weights != nullptr ? t.load(row_weights + tile.row + line) : 1.0F;
        auto* to = reinterpret_cast<typename Out::One*>(out + (tile.row + line) * out_stride);
        FERRY_GPU_UNROLL
        for (int j = 0; j < S::kColumns; ++j) {
          const int first = S::first_column(t) + 8 * j;
          if (tile.column + first >= columns || (gated && j % 2 == 1)) continue;
          const int out_column = (tile.column + first) / (gated ? 2 : 1);
          FERRY_GPU_UNROLL
          for (int c = 0; c < 2; ++c) {
            const int own = t.lane() % 4 * 2 + c;
            const auto sum = [&](int eight) {
              const float x = sums.of[i / 2][eight][i % 2 * 2 + c] * weight;
              if (bias == nullptr) return x;
              return x + t.load(bias + column(tile, first + 8 * (eight - j) + own));
            };
            const float x = sum(j);
            t.store(to + out_column + own, Out::to(gated ? gated_value(gating, x, sum(j | 1)) : x));
          }
        }
      }
    });
  }
};

/// Matrix by rows.
using ProductBf16 = GroupedProduct<Bf16Numbers, Bf16Numbers>;
using ProductBf16Fp8 = GroupedProduct<Bf16Numbers, Fp8Numbers<true>>;
using ProductFp8Bf16 = GroupedProduct<Fp8Numbers<false>, Bf16Numbers>;
using ProductFp8 = GroupedProduct<Fp8Numbers<false>, Fp8Numbers<true>>;

}  // namespace ferry::gpu
