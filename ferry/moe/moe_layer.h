// One MoE layer, expert-parallel. START READING HERE, then moe_layer.cpp: it is the path of a
// token.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "ferry/core/buffer.h"
#include "ferry/core/threads.h"
#include "ferry/kernels/kernels.h"
#include "ferry/moe/dispatcher.h"
#include "ferry/moe/experts.h"
#include "ferry/moe/placement.h"
#include "ferry/moe/router.h"

namespace ferry {

/// Weights of one layer, as this rank holds them. Borrowed.
struct MoeWeights {
  PackedMatrix router;                    ///< f32, [H, E]
  std::vector<GatedFfnWeights> local;     ///< [slots_per_rank], empty slots have no data
  std::optional<GatedFfnWeights> shared;  ///< shared expert, on every rank
  PackedMatrix shared_gate;               ///< f32 [H, 1]; data null = no gate
};

/// What all MoE layers of a model have in common on one rank: the lane, the scratch, the pool.
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

  const Options options;
  ThreadPool& pool;
  Dispatcher dispatcher;
  Experts experts;
  std::unique_ptr<Experts> shared;  // null when the model has no shared expert

  // Scratch for max_tokens tokens.
  Buffer router_input;               // f32 [tokens, H], when activations are not f32
  std::vector<Buffer> gemm_scratch;  // one a thread
  std::vector<float> logits;         // [tokens, E]
  std::vector<ExpertId> topk_ids;    // [tokens, K]
  std::vector<SlotId> topk_slots;    // [tokens, K]
  std::vector<float> topk_weights;   // [tokens, K]
  Buffer shared_out;                 // f32 [tokens, H]
  std::vector<float> shared_gate;    // [tokens]
};

/// out = MoE(hidden), collective over the ranks of the context; ranks without tokens pass
/// tokens = 0. More than max_tokens tokens run as several exchanges, on all ranks alike.
///   hidden  [tokens, H] of the model's type    out  f32 [tokens, H], overwritten
void moe_forward(MoeContext& context,
                 const Placement& placement,
                 const MoeWeights& weights,
                 const RowsView& hidden,
                 int tokens,
                 float* out,
                 int layer);

}  // namespace ferry
