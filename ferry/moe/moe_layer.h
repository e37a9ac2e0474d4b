// One MoE layer, expert-parallel. START READING HERE, then moe_layer.cpp: it is the path of a
// token.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "ferry/buffer.h"
#include "ferry/compute/gated_ffn.h"
#include "ferry/compute/parallel_gemm.h"
#include "ferry/compute/tensor_group.h"
#include "ferry/core/error.h"
#include "ferry/core/step_clock.h"
#include "ferry/core/threads.h"
#include "ferry/kernels/kernels.h"
#include "ferry/moe/device_experts.h"
#include "ferry/moe/exchange_lanes.h"
#include "ferry/moe/experts.h"
#include "ferry/placement.h"
#include "ferry/router.h"

namespace ferry {

/// Weights of one layer, as this rank holds them. Borrowed.
struct MoeWeights {
  PackedMatrix router;                    ///< f32 [H, E]
  std::span<const float> router_bias;     ///< [E] or empty: added to its logits
  std::span<const float> selection_bias;  ///< [E] or empty; see route()
  /// [slots_per_rank]; empty slots have no data. With slices: this rank's columns alone.
  std::span<const GatedFfnWeights> local;
  std::optional<GatedFfnWeights> shared;  ///< shared expert; at least this rank's columns of it
  PackedMatrix shared_gate;               ///< f32 [H, 1]; no data = no gate
};

/// Tokens went through a layer without all of their experts, because a rank is gone
/// (on_dead_rank = mask). Nothing but their results is wrong.
class LostTokens : public TransportError {
 public:
  using TransportError::TransportError;
};

/// What all MoE layers of a model share on one rank: the lanes, the experts' scratch, the pool.
/// Construction is collective (it makes the dispatchers). Threads: one at a time.
class MoeContext {
 public:
  struct Options {
    RouterOptions router;
    /// With row_weights the router's weights go onto what experts read, and results are added up as
    /// they are; else results are weighted.
    DispatcherOptions dispatcher;
    /// Each step's tokens travel as two halves on lanes of their own, so that one half is on its
    /// way while the experts compute the other.
    bool two_batch_overlap = false;
    int inter = 0;
    Gating gating = {};        ///< of the experts, routed and shared
    int shared_inter = 0;      ///< 0 = no shared expert
    DType dtype = DType::f32;  ///< of activations
    /// The ranks that hold the same tokens, which share out the shared expert: dispatcher.tp of
    /// them, times those of `slices`. Outlives the context. Null: each rank has tokens of its own.
    TensorGroup* group = nullptr;
    /// The ranks of the group that hold the same experts, each its slice of their columns. Each
    /// exchanges with the ranks that have the same slice of other experts: over these alone goes
    /// the transport, and dispatcher.result_columns are this rank's own. Outlives the context.
    /// Null: each rank has whole experts.
    TensorGroup* slices = nullptr;
    /// The device in whose memory the experts are, in numeric class `fast` (DeviceExperts): then
    /// whole ones whose weights are never put in other places. Outlives the context. Null: the host
    /// computes them.
    GpuQueue* experts_on = nullptr;
    StepClock* clock = nullptr;  ///< outlives the context; null: nothing is measured
  };

  MoeContext(const Options& options, Transport& transport, ThreadPool& pool);

  /// Over all lanes.
  ExchangeStats exchange_stats() const { return lanes_.stats(); }

  std::vector<SourceStats> source_stats() const { return lanes_.source_stats(); }

  /// That this rank has spent in dispatch and combine, waits included, experts' work not.
  std::chrono::nanoseconds exchange_time() const { return lanes_.time(); }

  /// Whether the layers go on when a rank dies.
  bool masks() const { return lanes_.masks(); }

  /// Goes on without `rank`, of which the caller knows that it is gone. REQUIRES: masks().
  void mask(Rank rank) { lanes_.mask(rank); }

  bool is_masked(Rank rank) const { return lanes_.is_masked(rank); }

  /// Throws LostTokens when tokens of any layer run since the last call lack an expert's result.
  void check_nothing_lost();

 private:
  friend class MoeLayer;

  /// The first tokens that were lost.
  struct Loss {
    int layer = 0;
    std::size_t tokens = 0;
    Rank rank = 0;
  };

  static constexpr std::int64_t kExpertRowsPerTurn = 4096;

  void note_losses(int layer);

  MutableRowsView f32_rows(float* rows) const;
  MutableRowsView own_columns(float* rows) const;
  /// `count` tokens of a chunk, from its token `first` on, in f32. Converted into scratch where
  /// they are not: once a token, and read from there afterwards.
  RowsView convert_to_f32(const RowsView& rows, int first, int count);
  /// What has been converted, from the chunk's first token on; or `rows`, where they are f32.
  RowsView converted(const RowsView& rows) const;

  const Options options_;
  ThreadPool& pool_;
  ExchangeLanes lanes_;
  TensorGroup alone_;
  TensorGroup& group_;
  TensorGroup& slices_;
  Experts experts_;
  std::optional<DeviceExperts> device_experts_;
  std::optional<GatedFfn> shared_expert_;
  std::optional<Loss> loss_;

  // Scratch for max_tokens tokens.
  GemmScratch gemm_scratch_;
  Buffer hidden_f32_;               // [tokens, H]: what the router reads
  std::vector<float> shared_gate_;  // [tokens]
  std::vector<float> logits_;       // [tokens, E]
};

/// One layer: borrows the context, its placement and its weights; their owner may put others in
/// their place between two calls of forward(), on all ranks alike. Threads: one at a time.
class MoeLayer {
 public:
  MoeLayer(MoeContext& context, const Placement& placement, MoeWeights weights, int index);

  /// out = MoE(hidden), collective over the ranks of the context; ranks without tokens pass
  /// tokens = 0. More than max_tokens tokens run as several exchanges, on all ranks alike. What
  /// tokens lost with a rank that is masked, MoeContext::check_nothing_lost() tells: all exchanges
  /// of a step run before anybody gives up, so that the survivors stay in step.
  ///   hidden  [tokens, H] of the model's type    out  f32 [tokens, H], overwritten
  void forward(const RowsView& hidden, int tokens, float* out);

  /// Where the next forward()'s rows may be written so that they need not be copied; none where the
  /// context's wire or lanes want them elsewhere. Valid until forward().
  std::optional<MutableRowsView> input(int tokens) const;

  /// From now on the rows that each local slot computes are added to `slot_rows` [slots_per_rank],
  /// borrowed; empty = counted no longer. Every row counts once, on the rank that computes it;
  /// padding is no row.
  void count_rows(std::span<std::int32_t> slot_rows);

 private:
  void route(const RowsView& hidden, const ExchangeLanes::Part& part);
  void run_experts(const ExpertRows& rows);
  bool run_shared_expert(const RowsView& hidden, int tokens, const MutableRowsView& out);

  MoeContext& context_;
  const Placement& placement_;
  MoeWeights weights_;
  int index_;
  std::span<std::int32_t> slot_rows_;
  std::uint32_t turn_ = 0;  // exchanges so far
};

}  // namespace ferry
