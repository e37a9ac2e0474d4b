#include "ferry/moe/parallel_gemm.h"

#include <algorithm>

namespace ferry {

GemmScratch::GemmScratch(int threads, DType dtype, std::int64_t max_k) {
  std::size_t bytes = 0;
  for (const WeightType type : weight_types())
    if (activation_type(type) == dtype)
      bytes = std::max(bytes, kernels().gemm_scratch_bytes(type, max_k));
  for (int t = 0; t < threads; ++t) buffers_.emplace_back(bytes);
}

std::int64_t panel_grain(std::int64_t panels, int threads, Epilogue epilogue) {
  const std::int64_t unit = epilogue == Epilogue::gated_silu ? 2 : 1;
  return std::max(unit, round_up(ceil_div(panels, threads), unit));
}

std::int64_t gemm_panels(const GemmArgs& args) {
  return args.epilogue == Epilogue::gated_silu ? args.weights->gated_panels()
                                               : args.weights->panels();
}

void parallel_gemm(ThreadPool& pool, const GemmScratch& scratch, const GemmArgs& args) {
  if (args.rows == 0) return;
  const std::int64_t panels =
      args.epilogue == Epilogue::gated_silu ? args.weights->gated_panels() : args.weights->panels();
  pool.parallel_for(panels,
                    panel_grain(panels, pool.size(), args.epilogue),
                    [&](std::int64_t begin, std::int64_t end, int worker) {
                      GemmArgs part = args;
                      part.first_panel = begin;
                      part.last_panel = end;
                      part.scratch = scratch.of(worker);
                      kernels().gemm(part);
                    });
}

}  // namespace ferry
