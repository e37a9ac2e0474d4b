// A gated feed-forward block that every token runs through, dense layers' or a shared expert: its
// columns are shared out over the ranks that hold the same tokens.
#pragma once

#include <cstdint>

#include "ferry/buffer.h"
#include "ferry/compute/parallel_gemm.h"
#include "ferry/compute/tensor_group.h"
#include "ferry/core/threads.h"
#include "ferry/kernels/kernels.h"

namespace ferry {

/// One gated FFN: y = down(silu(gate(x)) * up(x)), or as another Gating has it. Gate and up are
/// packed into one matrix of 2 * inter columns, panels alternating gate, up.
struct GatedFfnWeights {
  PackedMatrix gate_up;
  PackedMatrix down;
  bool biased = false;                  ///< also of an empty slot's shapes
  const float* gate_up_bias = nullptr;  ///< as GemmArgs::bias of a gated product
  const float* down_bias = nullptr;     ///< [H]
};

/// Owns the scratch; borrows the group. Threads: one at a time.
class GatedFfn {
 public:
  struct Options {
    int hidden = 0;
    int inter = 0;
    Gating gating = {};
    DType dtype = DType::f32;  ///< of rows, also of those between the two projections
    int max_rows = 0;
  };

  GatedFfn(const Options& options, TensorGroup& group, ThreadPool& pool);

  /// out = down(g), where g is what Gating makes of gate(in) and up(in). Of it this rank
  /// computes group.own_columns(hidden) and leaves the others as they are.
  ///   in  [count, H] of the options' type    out  f32 [count, H]
  /// `phase`: names the block in messages. REQUIRES: count <= max_rows.
  void run(const RowsView& in,
           std::int64_t count,
           const GatedFfnWeights& weights,
           const MutableRowsView& out,
           const GatherPhase& phase);

 private:
  const Options options_;
  TensorGroup& group_;
  GemmScratch scratch_;
  Buffer between_;  // [max_rows, inter]: gate and up as one
};

}  // namespace ferry
