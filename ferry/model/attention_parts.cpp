#include "ferry/model/attention_parts.h"

#include <algorithm>

#include "ferry/kernels/kernels.h"

namespace ferry {

namespace {

// Multiply-adds worth handing to another thread: well above the cost of waking it.
constexpr std::int64_t kAttendGrainWork = 1 << 16;

}  // namespace

Buffer rows_buffer(std::int64_t rows, std::int64_t width, DType type) {
  return Buffer(static_cast<std::size_t>(rows * width) * dtype_bytes(type));
}

StepAngles::StepAngles(const RopeOptions& options, int max_tokens)
    : rope_(options),
      cos_(rows_buffer(max_tokens, rope_.pairs(), DType::f32)),
      sin_(rows_buffer(max_tokens, rope_.pairs(), DType::f32)) {}

void StepAngles::begin_step(std::span<const TokenPlace> tokens, ThreadPool& pool) {
  pool.parallel_for(
      std::ssize(tokens), kAttentionRowGrain, [&](std::int64_t begin, std::int64_t end, int) {
        for (std::int64_t t = begin; t < end; ++t) {
          rope_.angles(tokens[static_cast<std::size_t>(t)].position,
                       cos_.as<float>() + t * rope_.pairs(),
                       sin_.as<float>() + t * rope_.pairs());
        }
      });
}

void StepAngles::turn(float* head, std::int64_t token) const {
  rope_.turn(
      head, cos_.as<float>() + token * rope_.pairs(), sin_.as<float>() + token * rope_.pairs());
}

std::int64_t attend_grain(std::int64_t multiplies) {
  return std::max<std::int64_t>(1, kAttendGrainWork / multiplies);
}

OutputProjection::OutputProjection(
    int max_tokens, int hidden, DType type, ThreadPool& pool, const GemmScratch& gemm_scratch)
    : hidden_(hidden),
      type_(type),
      pool_(pool),
      gemm_scratch_(gemm_scratch),
      projected_(rows_buffer(max_tokens, hidden, DType::f32)) {}

void OutputProjection::add(const RowsView& heads,
                           std::int64_t tokens,
                           const PackedMatrix& weights,
                           const std::vector<float>& bias,
                           const MutableRowsView& residual) const {
  parallel_gemm(pool_,
                gemm_scratch_,
                {.in = heads,
                 .rows = tokens,
                 .weights = &weights,
                 .bias = bias.empty() ? nullptr : bias.data(),
                 .out = {projected_.data(), row_bytes(hidden_, DType::f32)},
                 .out_type = DType::f32});
  pool_.parallel_for(tokens, kAttentionRowGrain, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t t = begin; t < end; ++t)
      kernels().add(residual.row(t), type_, projected_.as<float>() + t * hidden_, hidden_);
  });
}

}  // namespace ferry
