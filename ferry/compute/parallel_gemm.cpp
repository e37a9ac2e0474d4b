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

void parallel_gemm(ThreadPool& pool, const GemmScratch& scratch, const GemmArgs& args) {
  const std::array all{PanelRange{0, gemm_panels(args)}};
  parallel_gemm(pool, scratch, args, all);
}

void parallel_gemm(ThreadPool& pool,
                   const GemmScratch& scratch,
                   const GemmArgs& args,
                   std::span<const PanelRange> ranges) {
  if (args.rows == 0) return;
  std::int64_t panels = 0;
  for (const PanelRange& range : ranges) panels += range.end - range.begin;
  // Tasks are cut out of the ranges laid end to end.
  pool.parallel_for(panels,
                    panel_grain(panels, pool.size(), args.epilogue),
                    [&](std::int64_t begin, std::int64_t end, int worker) {
                      GemmArgs part = args;
                      part.scratch = scratch.of(worker);
                      std::int64_t before = 0;  // panels of the ranges gone through
                      for (const PanelRange& range : ranges) {
                        const std::int64_t shift = range.begin - before;
                        before += range.end - range.begin;
                        part.first_panel = std::max(begin + shift, range.begin);
                        part.last_panel = std::min(end + shift, range.end);
                        if (part.first_panel < part.last_panel) kernels_of(pool).gemm(part);
                      }
                    });
}

}  // namespace ferry
