#include "ferry/compute/parallel_gemm.h"

#include <algorithm>
#include <array>

#include "ferry/core/types.h"

namespace ferry {

GemmScratch::GemmScratch(const ThreadPool& pool, DType dtype, std::int64_t max_k) {
  std::size_t bytes = 0;
  for (const WeightType type : weight_types())
    if (activation_type(type) == dtype)
      bytes = std::max(bytes, kernels_of(pool).gemm_scratch_bytes(type, max_k));
  for (int t = 0; t < pool.size(); ++t) buffers_.emplace_back(bytes);
}

std::int64_t panel_grain(std::int64_t panels, int threads, Epilogue epilogue) {
  const std::int64_t unit = epilogue == Epilogue::gated ? 2 : 1;
  return std::max(unit, round_up(ceil_div(panels, threads), unit));
}

std::int64_t gemm_panels(const GemmArgs& args) {
  return args.epilogue == Epilogue::gated ? args.weights->gated_panels() : args.weights->panels();
}

PanelRange StripPanels::next(const ColumnRange& range) {
  const std::int64_t begin = std::max(range.begin - first_, std::int64_t{0});
  const std::int64_t end = std::min(range.end - first_, columns_);
  if (begin >= end) return {end_, end_};
  PanelRange panels{std::max(end_, begin / kPanelColumns), ceil_div(end, kPanelColumns)};
  end_ = panels.end = std::max(panels.begin, panels.end);
  return panels;
}

namespace {

/// Some panels of one matrix whose columns lie among those of a wider one.
struct Piece {
  const PackedMatrix* weights = nullptr;
  std::int64_t first_column = 0;  // of the matrix in the wider one
  PanelRange panels;
};

/// What a product of the wider matrix is to this one.
GemmArgs args_of(GemmArgs args, const Piece& piece) {
  args.weights = piece.weights;
  args.out.base += piece.first_column * static_cast<std::ptrdiff_t>(dtype_bytes(args.out_type));
  if (args.bias != nullptr) args.bias += piece.first_column;
  return args;
}

/// `each_piece` calls what it is given with every piece, in the same order each time.
template <class EachPiece>
void run_pieces(ThreadPool& pool,
                const GemmScratch& scratch,
                const GemmArgs& args,
                const EachPiece& each_piece) {
  if (args.rows == 0) return;
  std::int64_t panels = 0;
  each_piece([&](const Piece& piece) { panels += piece.panels.end - piece.panels.begin; });
  // Tasks are cut out of the pieces laid end to end.
  pool.parallel_for(panels,
                    panel_grain(panels, pool.size(), args.epilogue),
                    [&](std::int64_t begin, std::int64_t end, int worker) {
                      std::int64_t before = 0;  // panels of the pieces gone through
                      each_piece([&](const Piece& piece) {
                        const std::int64_t shift = piece.panels.begin - before;
                        before += piece.panels.end - piece.panels.begin;
                        GemmArgs part = args_of(args, piece);
                        part.scratch = scratch.of(worker);
                        part.first_panel = std::max(begin + shift, piece.panels.begin);
                        part.last_panel = std::min(end + shift, piece.panels.end);
                        if (part.first_panel < part.last_panel) kernels_of(pool).gemm(part);
                      });
                    });
}

}  // namespace

void parallel_gemm(ThreadPool& pool, const GemmScratch& scratch, const GemmArgs& args) {
  const std::array all{PanelRange{0, gemm_panels(args)}};
  parallel_gemm(pool, scratch, args, all);
}

void parallel_gemm(ThreadPool& pool,
                   const GemmScratch& scratch,
                   const GemmArgs& args,
                   std::span<const PanelRange> ranges) {
  run_pieces(pool, scratch, args, [&](const auto& visit) {
    for (const PanelRange& range : ranges) visit(Piece{args.weights, 0, range});
  });
}

void parallel_gemm(ThreadPool& pool,
                   const GemmScratch& scratch,
                   const GemmArgs& args,
                   std::span<const PackedMatrix> strips,
                   std::span<const ColumnRange> columns) {
  run_pieces(pool, scratch, args, [&](const auto& visit) {
    std::int64_t first = 0;
    for (const PackedMatrix& strip : strips) {
      StripPanels panels(first, strip.n);
      for (const ColumnRange& range : columns) visit(Piece{&strip, first, panels.next(range)});
      first += strip.n;
    }
  });
}

void parallel_gemm(ThreadPool& pool,
                   const GemmScratch& scratch,
                   const GemmArgs& args,
                   std::span<const PackedMatrix> strips) {
  const std::array all{ColumnRange{0, columns_of(strips)}};
  parallel_gemm(pool, scratch, args, strips, all);
}

std::int64_t columns_of(std::span<const PackedMatrix> strips) {
  std::int64_t columns = 0;
  for (const PackedMatrix& strip : strips) columns += strip.n;
  return columns;
}

}  // namespace ferry
