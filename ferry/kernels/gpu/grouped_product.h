// The products of experts on a device: rows that lie group by group times each group's matrix, in
// bf16 with f32 sums, by the tensor cores' warp-wide products. One kernel for all numbers of rows
// and one order of sums: a row's bits depend on that row and the matrix alone (numeric class
// `fast`, docs/numerics.md).
//
// A block takes a tile of 64 rows by 128 columns. 32 numbers of each row and column are under way
// from memory for each of the next two steps while the warps multiply the third: 2 by 4 warps, 32
// rows by 32 columns each.
#pragma once

#include <cmath>

#include "ferry/kernels/gpu/elements.h"
#include "ferry/kernels/gpu/prefix_sums.h"

namespace ferry::gpu {

/// x / (1 + e^-x)
FERRY_GPU float silu(float x) { return x / (1.0F + expf(-x)); }

struct GroupedProduct {
  static constexpr int kThreads = 256;
  static constexpr int kBlocksAtOnce = 2;  ///< on a multiprocessor, by their registers

  const std::byte* in = nullptr;                  ///< rows of bf16 [depth], aligned to 16
  std::int64_t in_stride = 0;                     ///< bytes, a multiple of 16
  const std::byte* const* in_pointers = nullptr;  ///< not null: where each row is instead
  const std::uint16_t* matrices = nullptr;        ///< bf16 [groups, columns, depth], aligned to 16
  std::byte* out = nullptr;                       ///< rows of out_type, same indices as `in`
  std::int64_t out_stride = 0;                    ///< bytes
  DType out_type = DType::f32;
  const std::int32_t* counts = nullptr;   ///< [groups] rows of each
  const std::int64_t* offsets = nullptr;  ///< [groups] and its first row
  int groups = 0;
  int columns = 0;  ///< a multiple of 8; gated: of 16
  int depth = 0;    ///< a multiple of 8
  /// Columns are 8 gates, their 8 ups and so on, and silu(gate) * up goes out: half as many
  /// columns.
  bool gated = false;

  static constexpr std::size_t shared_bytes(int groups) {
    return tiles_bytes(groups) + kStages * kStageBytes;
  }

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
    const std::int64_t row_tiles = t.load(first_tile + groups);
    const std::int64_t tiles = row_tiles * ((columns + kTileColumns - 1) / kTileColumns);
    // Blocks side by side read the same columns.
    for (std::int64_t tile = t.block(); tile < tiles; tile += t.blocks()) {
      const auto row_tile = static_cast<std::uint32_t>(tile % row_tiles);
      const int group = find_last(t, first_tile, groups, row_tile);
      const std::int64_t first = std::int64_t{row_tile - t.load(first_tile + group)} * kTileRows;
      multiply_tile(t,
                    {.group = group,
                     .row = t.load(offsets + group) + first,
                     .rows = t.load(counts + group) - first,
                     .column = static_cast<int>(tile / row_tiles) * kTileColumns});
    }
  }

 private:
  static constexpr int kTileRows = 64, kTileColumns = 128, kTileDepth = 32;
  static constexpr int kStages = 3;
  static constexpr int kWarpRows = 32, kWarpColumns = 32;
  static constexpr int kRowWarps = kTileRows / kWarpRows;
  static constexpr int kRowBytes = 2 * kTileDepth;  ///< of a tile, in shared memory
  static constexpr int kChunks = kRowBytes / 16;
  static constexpr std::size_t kStageBytes = (kTileRows + kTileColumns) * kRowBytes;
  static_assert(kRowWarps * (kTileColumns / kWarpColumns) * kWarpThreads == kThreads);

  struct Tile {
    int group = 0;
    std::int64_t row = 0;   ///< its first
    std::int64_t rows = 0;  ///< from there to the group's last
    int column = 0;         ///< its first
  };

  /// Of a warp: 2 times 16 rows by 4 times 8 columns.
  struct Sums {
    float of[kWarpRows / 16][kWarpColumns / 8][4];
  };

  static constexpr std::size_t tiles_bytes(int groups) {
    return (static_cast<std::size_t>(groups + 1) * sizeof(std::uint32_t) + 15) / 16 * 16;
  }

  /// Where 8 numbers of a row of a tile lie: so that neither those who write 16 bytes each nor the
  /// 8 rows of a matrix meet in a bank.
  static constexpr int place(int row, int chunk) {
    return row * kRowBytes + (chunk ^ (row / 2 % kChunks)) * 16;
  }

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

  FERRY_GPU const std::byte* column(const Tile& tile, int line) const {
    const std::int64_t i = std::int64_t{tile.group} * columns + tile.column + line;
    return reinterpret_cast<const std::byte*>(matrices + i * depth);
  }

  /// This thread's share of what a step multiplies; zeros outside. One group of copies, empty
  /// behind the last step.
  template <class Thread>
  FERRY_GPU void fetch(Thread& t, const Tile& tile, int step) const {
    if (step * kTileDepth < depth) {
      for (int i = t.thread(); i < (kTileRows + kTileColumns) * kChunks; i += kThreads) {
        const bool of_row = i < kTileRows * kChunks;
        const int line = of_row ? i / kChunks : i / kChunks - kTileRows;
        const int first = step * kTileDepth + i % kChunks * 8;
        const bool there =
            first < depth && (of_row ? line < tile.rows : tile.column + line < columns);
        const auto* from = reinterpret_cast<const std::byte*>(matrices);  // for nobody
        if (there) from = (of_row ? row(t, tile.row + line) : column(tile, line)) + 2 * first;
        std::byte* to = of_row ? rows_of(t, step) : columns_of(t, step);
        t.copy_async(to + place(line, i % kChunks), from, there);
      }
    }
    t.commit_copies();
  }

  template <class Thread>
  FERRY_GPU void multiply_tile(Thread& t, const Tile& tile) const {
    Sums sums{};
    for (int step = 0; step < kStages - 1; ++step) fetch(t, tile, step);
    for (int step = 0; step * kTileDepth < depth; ++step) {
      t.template wait_copies<kStages - 2>();
      t.sync();  // all see the step's numbers, and nobody reads those of the step before any more
      fetch(t, tile, step + kStages - 1);
      multiply_step(t, step, sums);
    }
    t.template wait_copies<0>();
    t.sync();
    write(t, tile, sums);
  }

  template <class Thread>
  FERRY_GPU void multiply_step(Thread& t, int step, Sums& sums) const {
    const int first_row = t.warp() % kRowWarps * kWarpRows;
    const int first_column = t.warp() / kRowWarps * kWarpColumns;
    const std::byte* rows = rows_of(t, step);
    const std::byte* cols = columns_of(t, step);
    const int eighth = t.lane() / 8;  // which of four matrices, of whose rows this lane has one
    FERRY_GPU_UNROLL
    for (int k = 0; k < kTileDepth / 16; ++k) {
      MatrixWords a[kWarpRows / 16];
      for (int i = 0; i < kWarpRows / 16; ++i) {
        a[i] = t.load_matrices(
            rows + place(first_row + 16 * i + eighth % 2 * 8 + t.lane() % 8, 2 * k + eighth / 2));
      }
      for (int j = 0; j < kWarpColumns / 8; j += 2) {
        const MatrixWords b = t.load_matrices(
            cols + place(first_column + 8 * j + eighth / 2 * 8 + t.lane() % 8, 2 * k + eighth % 2));
        for (int i = 0; i < kWarpRows / 16; ++i) {
          t.multiply(sums.of[i][j], a[i], b.word[0], b.word[1]);
          t.multiply(sums.of[i][j + 1], a[i], b.word[2], b.word[3]);
        }
      }
    }
  }

  template <class Thread>
  FERRY_GPU void write(Thread& t, const Tile& tile, const Sums& sums) const {
    const int first_row = t.warp() % kRowWarps * kWarpRows + t.lane() / 4;
    const int first_column = tile.column + t.warp() / kRowWarps * kWarpColumns;
    with_element(out_type, [&]<class Out>(Out) {
      FERRY_GPU_UNROLL
      for (int i = 0; i < kWarpRows / 8; ++i) {
        const int row = first_row + 8 * i;
        if (row >= tile.rows) continue;
        auto* to = reinterpret_cast<typename Out::One*>(out + (tile.row + row) * out_stride);
        FERRY_GPU_UNROLL
        for (int j = 0; j < kWarpColumns / 8; ++j) {
          const int column = first_column + 8 * j;
          if (column >= columns || (gated && j % 2 == 1)) continue;
          typename Out::One* at = to + (gated ? column / 2 : column) + t.lane() % 4 * 2;
          for (int c = 0; c < 2; ++c) {
            const float x = sums.of[i / 2][j][i % 2 * 2 + c];
            const float up = sums.of[i / 2][j | 1][i % 2 * 2 + c];
            t.store(at + c, Out::to(gated ? silu(x) * up : x));
          }
        }
      }
    });
  }
};

}  // namespace ferry::gpu
