// What a layer that predicts further tokens (multi-token prediction) reads: one row made of a
// token's embedding and the hidden state of the token before it. The layer itself is like any
// other; decoder.h says when it runs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "ferry/buffer.h"
#include "ferry/compute/parallel_gemm.h"
#include "ferry/compute/tensor_group.h"
#include "ferry/core/threads.h"
#include "ferry/model/config.h"
#include "ferry/model/weights.h"

namespace ferry {

/// Owns scratch for max_rows rows; borrows the rest. Threads: one at a time. Ranks that hold the
/// same tokens call it alike.
class DraftInput {
 public:
  DraftInput(const ModelConfig& config,
             const DenseWeights& dense,
             int max_rows,
             TensorGroup& group,
             const GemmScratch& gemm_scratch);

  /// Row i of `out` [tokens, H], of the activations' type: projection [norm(embedding of
  /// tokens[i]), norm(hidden[i])]. `hidden`: rows [H] of that type behind the model's last norm;
  /// null stands for zeros. `scratch`: f32 [tokens, H]. REQUIRES: no row of `hidden` lies in `out`.
  void make(std::span<const std::int32_t> tokens,
            std::span<const std::byte* const> hidden,
            const MutableRowsView& out,
            float* scratch);

 private:
  const ModelConfig& config_;
  const DenseWeights& dense_;
  TensorGroup& group_;
  const GemmScratch& gemm_scratch_;
  std::ptrdiff_t half_;  // bytes of [H]
  Buffer both_;          // [rows, 2 H]
};

}  // namespace ferry
