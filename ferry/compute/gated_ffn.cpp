#include "ferry/compute/gated_ffn.h"

#include <algorithm>

#include "ferry/core/error.h"

namespace ferry {

GatedFfn::GatedFfn(const Options& options, TensorGroup& group, ThreadPool& pool)
    : options_(options),
      group_(group),
      scratch_(pool, options.dtype, std::max(options.hidden, options.inter)),
      between_(static_cast<std::size_t>(options.max_rows) *
               static_cast<std::size_t>(options.inter) * dtype_bytes(options.dtype)) {}

void GatedFfn::run(const RowsView& in,
                   std::int64_t count,
                   const GatedFfnWeights& weights,
                   const MutableRowsView& out,
                   const GatherPhase& phase) {
  FERRY_CHECK(count <= options_.max_rows, "{} rows, room for {}", count, options_.max_rows);
  const MutableRowsView between{
      between_.data(), options_.inter * static_cast<std::ptrdiff_t>(dtype_bytes(options_.dtype))};
  group_.multiply(scratch_,
                  {.in = in,
                   .rows = count,
                   .weights = &weights.gate_up,
                   .bias = weights.gate_up_bias,
                   .epilogue = Epilogue::gated,
                   .gating = options_.gating,
                   .out = between,
                   .out_type = options_.dtype});
  group_.gather_columns(between, count, options_.inter, options_.dtype, phase);
  group_.multiply(scratch_,
                  {.in = {between.base, between.stride},
                   .rows = count,
                   .weights = &weights.down,
                   .bias = weights.down_bias,
                   .out = out,
                   .out_type = DType::f32});
}

}  // namespace ferry
