// The decoder: token ids in, logits out. Attention and dense layers run on the ranks that hold the
// tokens, one or a group that shares the work; every MoE layer is one exchange over all ranks.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "ferry/core/threads.h"
#include "ferry/model/checkpoint.h"
#include "ferry/model/config.h"
#include "ferry/model/kv_cache.h"
#include "ferry/model/weights.h"
#include "ferry/moe/moe_layer.h"
#include "ferry/transport/transport.h"

namespace ferry {

/// The tokens of one sequence in one step, behind the ones its cache holds.
struct SequenceStep {
  enum class Logits : std::uint8_t { none, last, all };

  KvCache* cache = nullptr;              ///< grows by tokens.size()
  std::span<const std::int32_t> tokens;  ///< ids, checked against the vocabulary by the caller
  Logits logits = Logits::last;          ///< for which of these tokens logits are wanted
};

/// All ranks must have the same.
struct DecoderOptions {
  int tp = 1;  ///< ranks [g * tp, (g + 1) * tp) hold the same sequences and share out attention,
               ///< dense layers and head; divides the ranks
  int max_tokens = 512;  ///< of one group in one step, over all its sequences
  MoeA2ABackend backend = MoeA2ABackend::pplx;       ///< chosen: not `automatic` (choose_backend.h)
  DeepepMode deepep_mode = DeepepMode::low_latency;  ///< matters to backend deepep alone
  std::optional<DispatchFormat> layout;              ///< default: the backend's
  bool two_batch_overlap = false;  ///< half of a step's tokens travel while the others compute
  /// How tokens choose among replicas; `weighted` by the shares of the placements that the decoder
  /// gets. No bit of a result depends on it.
  ReplicaRule replica_rule = ReplicaRule::hash;
  std::optional<WireType> dispatch_wire;  ///< default: the model's activation type
  std::optional<WireType> combine_wire;
  std::chrono::nanoseconds timeout = std::chrono::seconds(30);
};

/// One rank's decoder. Construction is collective. Threads: one at a time.
/// A token's logits are the same bits whatever else is in the step, however the prompt is cut into
/// steps, for any number of ranks, any tp and threads (per-expert-combine backends;
/// docs/numerics.md).
class Decoder {
 public:
  /// `dense`: shared by the thread ranks of one process, hence the shared_ptr. `experts`: what
  /// load_expert_weights gave this rank.
  Decoder(const ModelConfig& config,
          std::shared_ptr<const DenseWeights> dense,
          ExpertWeights experts,
          const DecoderOptions& options,
          Transport& transport,
          ThreadPool& pool);
  ~Decoder();

  /// Collective: all ranks call it the same number of times; a rank without tokens passes an empty
  /// batch. Ranks of one group pass the same batch, each with caches of its own. Returns the wanted
  /// logits, f32 [wanted tokens, vocab] in order of the batch; valid until the next call. REQUIRES:
  /// at most max_tokens tokens; a cache of activation_type() for each sequence, with room for its
  /// tokens, no further than the model's max_positions.
  ///
  /// Throws LostTokens when tokens lack an expert's result because a rank is gone and backends mask
  /// it: the caches have not grown, so that the same batch may be run again.
  std::span<const float> forward(std::span<const SequenceStep> batch);

  /// From now on every step adds the rows that each local slot computes to `slot_rows`, borrowed:
  /// [sparse layers][slots_per_rank]; empty = counted no longer.
  void count_rows(std::span<std::int32_t> slot_rows);

  /// The experts held here, and where all ranks hold theirs.
  const ExpertWeights& experts() const;

  /// Memory for `count` more experts' blocks, kept as long as the decoder.
  std::vector<std::byte*> spare_blocks(std::size_t count);

  /// Collective: the experts move into memory that peers map, kept as long as the decoder: blocks
  /// [sparse layers][slots_per_rank], then slots_per_rank spare ones.
  Region& share_blocks(Transport& transport);

  ReplicaRule replica_rule() const;

  /// From the next step on, a sparse layer's experts lie as `placement` says, those of this rank in
  /// `blocks` [slots_per_rank], which the decoder has or has given out. All ranks alike.
  void place_layer(int layer, const Placement& placement, std::span<std::byte* const> blocks);

  /// Whether the backend goes on when a rank dies.
  bool masks() const;
  /// Goes on without `rank`: from the next step on its experts' replicas compute in its place.
  /// Throws TransportError when it had experts that no living rank has. REQUIRES: masks().
  void mask(Rank rank);
  /// Ranks that are known to be gone, also those that only an exchange has found out about.
  bool is_masked(Rank rank) const;

  const ModelConfig& config() const;
  /// Ranks that hold the same sequences as this one, itself included.
  int tp() const;
  /// Of hidden states and caches: the type of the dense weights.
  DType activation_type() const;
  ExchangeStats exchange_stats() const;
  /// MoeContext::exchange_time().
  std::chrono::nanoseconds exchange_time() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace ferry
