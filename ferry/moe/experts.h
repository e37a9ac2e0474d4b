// Experts: the grouped gated FFN over the slots that this rank holds.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "ferry/buffer.h"
#include "ferry/compute/gated_ffn.h"
#include "ferry/compute/parallel_gemm.h"
#include "ferry/compute/tensor_group.h"
#include "ferry/core/threads.h"
#include "ferry/core/types.h"
#include "ferry/expert_rows.h"
#include "ferry/kernels/kernels.h"

namespace ferry {

/// Grouped gated FFN. With slices each rank of a group computes its own columns of every expert,
/// all of them for the same rows: the weights are those columns alone, what gate and up make is
/// gathered between the projections, and of the results each rank writes its own columns. Threads:
/// one call at a time; uses the rank's pool. Owns its scratch, sized at construction for `max_rows`
/// rows over all slots; more are done in turns. Borrows the group and, for a call, weights.
/// Numerics: a row times its weight is rounded to `dtype` once.
class Experts {
 public:
  struct Options {
    int hidden = 0;
    int inter = 0;
    Gating gating = {};
    DType dtype = DType::f32;  ///< of rows, also of those between the two projections
    std::int64_t max_rows = 0;
    bool row_weights = false;  ///< rows come with weights
  };

  /// Whole experts.
  Experts(const Options& options, ThreadPool& pool) : Experts(options, pool, nullptr) {}

  /// Slices of experts, with the ranks that hold others of the same ones; a group of one holds
  /// whole experts.
  Experts(const Options& options, TensorGroup& slices) : Experts(options, slices.pool(), &slices) {}

  Experts(const Experts&) = delete;
  Experts& operator=(const Experts&) = delete;

  /// REQUIRES: rows.in_type is that of the options, and the activation type of the weights;
  /// weights[l].gate_up.data is not null for every slot l with rows; rows.weights as the options
  /// say. With slices all ranks of the group call it with the same rows. `phase`: names them in
  /// messages. Errors: of the group's gathers.
  void run(const ExpertRows& rows,
           std::span<const GatedFfnWeights> weights,
           const GatherPhase& phase = {.name = "experts"});

 private:
  Experts(const Options& options, ThreadPool& pool, TensorGroup* slices);

  /// Rows of one slot that are done in one turn.
  struct Segment {
    std::size_t slot = 0;
    std::int64_t first_row = 0;  // of ExpertRows
    std::int64_t count = 0;
    std::int64_t between = 0;  // first row in between_
  };

  void run_turn(const ExpertRows& rows,
                std::span<const GatedFfnWeights> weights,
                const GatherPhase& phase);
  RowsView weigh(const ExpertRows& rows);
  template <class ArgsOf>
  void project(ArgsOf args_of);

  Options options_;
  ThreadPool& pool_;
  TensorGroup alone_;
  TensorGroup& slices_;
  const ColumnRange own_;  // of what gate and up make
  Buffer between_;         // [max_rows, inter] of dtype: what gate and up make
  Buffer weighed_;         // [max_rows, hidden] of dtype: rows times their weights
  GemmScratch scratch_;
  std::vector<Segment> segments_;  // of the turn
};

}  // namespace ferry
