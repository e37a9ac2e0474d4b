// One MoE layer, expert-parallel. START READING HERE, then moe_layer.cpp: it is the path of a
// token.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "ferry/core/buffer.h"
#include "ferry/core/threads.h"
#include "ferry/kernels/kernels.h"
#include "ferry/moe/dispatcher.h"
#include "ferry/moe/experts.h"
#include "ferry/moe/parallel_gemm.h"
#include "ferry/moe/placement.h"
#include "ferry/moe/router.h"

namespace ferry {

/// Weights of one layer, as this rank holds them. Borrowed.
struct MoeWeights {
  PackedMatrix router;                    ///< f32 [H, E]
  std::vector<GatedFfnWeights> local;     ///< [slots_per_rank]; empty slots have no data
  std::optional<GatedFfnWeights> shared;  ///< shared expert, whole on every rank
  PackedMatrix shared_gate;               ///< f32 [H, 1]; no data = no gate
};

/// What all MoE layers of a model share on one rank: the lane, the experts' scratch, the pool.
/// Construction is collective (it makes the dispatcher). Threads: one at a time.
class MoeContext {
 public:
  struct Options {
    RouterOptions router;
    DispatcherOptions dispatcher;
    int inter = 0;
    int shared_inter = 0;      ///< 0 = no shared expert
    DType dtype = DType::f32;  ///< weights and activations
  };

  MoeContext(const Options& options, Transport& transport, ThreadPool& pool);

  const Dispatcher& dispatcher() const { return dispatcher_; }

 private:
  friend class MoeLayer;

  static constexpr std::int64_t kExpertRowsPerTurn = 4096;

  MutableRowsView f32_rows(float* rows) const;
  /// The same rows in f32, converted into scratch where they are not.
  RowsView rows_as_f32(const RowsView& rows, int tokens);

  const Options options_;
  ThreadPool& pool_;
  Dispatcher dispatcher_;
  Experts experts_;
  std::optional<Experts> shared_experts_;

  // Scratch for max_tokens tokens.
  GemmScratch gemm_scratch_;
  Buffer hidden_f32_;                // [tokens, H]: what the router reads
  std::vector<float> shared_gate_;   // [tokens]
  std::vector<float> logits_;        // [tokens, E]
  std::vector<ExpertId> topk_ids_;   // [tokens, K]
  std::vector<SlotId> topk_slots_;   // [tokens, K]
  std::vector<float> topk_weights_;  // [tokens, K]
};

/// One layer: borrows the context, its placement and its weights. Threads: one at a time.
class MoeLayer {
 public:
  MoeLayer(MoeContext& context, const Placement& placement, MoeWeights weights, int index);

  /// out = MoE(hidden), collective over the ranks of the context; ranks without tokens pass
  /// tokens = 0. More than max_tokens tokens run as several exchanges, on all ranks alike.
  ///   hidden  [tokens, H] of the model's type    out  f32 [tokens, H], overwritten
  void forward(const RowsView& hidden, int tokens, float* out);

 private:
  struct Routing {                // of one exchange, in the context's scratch
    std::span<ExpertId> experts;  // [tokens, K]
    std::span<SlotId> slots;
    std::span<float> weights;
  };

  void forward_exchange(const RowsView& hidden, int tokens, int chunks, float* out);
  Routing route(const RowsView& hidden, int tokens);
  bool run_shared_expert(const RowsView& hidden, int tokens, float* out);

  MoeContext& context_;
  const Placement& placement_;
  MoeWeights weights_;
  int index_;
};

}  // namespace ferry
