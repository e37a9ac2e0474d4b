// One matrix product on all threads of a rank. A matrix that is made of several tensors may lie in
// strips: columns side by side, those of each strip packed in a type of their own.
#pragma once

#include <span>
#include <vector>

#include "ferry/buffer.h"
#include "ferry/core/threads.h"
#include "ferry/kernels/kernels.h"

namespace ferry {

/// The scratch of the pool's gemm kernels, one piece a thread, for inputs of up to `max_k` elements
/// of `dtype` and any weights that take them.
class GemmScratch {
 public:
  GemmScratch(const ThreadPool& pool, DType dtype, std::int64_t max_k);

  std::span<std::byte> of(int worker) const {
    const Buffer& b = buffers_[static_cast<std::size_t>(worker)];
    return {b.data(), b.size()};
  }

 private:
  std::vector<Buffer> buffers_;
};

/// Panels that one thread should take at a time: whole gate, up pairs, small enough that all
/// threads stay busy and large enough that a row block is packed few times.
std::int64_t panel_grain(std::int64_t panels, int threads, Epilogue epilogue);

/// All panels that a product runs over.
std::int64_t gemm_panels(const GemmArgs& args);

/// The gemm of the pool's kernels over all panels of args.weights, split by columns over the pool;
/// fills in first_panel, last_panel and scratch. The split never changes a bit.
void parallel_gemm(ThreadPool& pool, const GemmScratch& scratch, const GemmArgs& args);

/// Panels [begin, end) of a product.
struct PanelRange {
  std::int64_t begin = 0;
  std::int64_t end = 0;
};

/// Columns [begin, end) of a product.
struct ColumnRange {
  std::int64_t begin = 0;
  std::int64_t end = 0;

  std::int64_t size() const { return end - begin; }
};

/// The panels of one strip that hold columns of some ranges of the whole matrix. Ranges rise; a
/// panel that two of them touch belongs to the first.
class StripPanels {
 public:
  /// A strip of `columns` columns, of which the first is number `first` of the whole matrix.
  StripPanels(std::int64_t first, std::int64_t columns) : first_(first), columns_(columns) {}

  /// Those of the next range; none where it has no column in this strip.
  PanelRange next(const ColumnRange& range);

 private:
  std::int64_t first_;
  std::int64_t columns_;
  std::int64_t end_ = 0;  // of the panels given
};

/// The same over these panels alone. REQUIRES: gated: all bounds even.
void parallel_gemm(ThreadPool& pool,
                   const GemmScratch& scratch,
                   const GemmArgs& args,
                   std::span<const PanelRange> ranges);

/// The same over a matrix [k, n] that lies in these strips, and over the panels of each that hold
/// any of these columns, whose ranges rise. `args` is as for one matrix of all columns, but for its
/// weights, which are not looked at. A column's bits do not depend on what lies in other strips.
/// REQUIRES: not gated.
void parallel_gemm(ThreadPool& pool,
                   const GemmScratch& scratch,
                   const GemmArgs& args,
                   std::span<const PackedMatrix> strips,
                   std::span<const ColumnRange> columns);

/// All columns of such a matrix.
void parallel_gemm(ThreadPool& pool,
                   const GemmScratch& scratch,
                   const GemmArgs& args,
                   std::span<const PackedMatrix> strips);

/// Columns of all strips together.
std::int64_t columns_of(std::span<const PackedMatrix> strips);

}  // namespace ferry
