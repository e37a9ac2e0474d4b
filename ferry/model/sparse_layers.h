// The layers of a model that have experts, and the owner of those: what Decoder runs, and what the
// balancer moves experts with.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "ferry/compute/tensor_group.h"
#include "ferry/dispatcher.h"
#include "ferry/exchange/gpu/gpu_queue.h"
#include "ferry/model/config.h"
#include "ferry/model/decoder_options.h"
#include "ferry/model/weights.h"
#include "ferry/transport.h"

namespace ferry {

/// The exchange of a model's experts, of activations of `type`, by a rank that holds `slice` of its
/// experts' columns. The backend must be chosen.
DispatcherOptions expert_exchange(const ModelConfig& config,
                                  const DecoderOptions& options,
                                  DType type,
                                  int slots_per_rank,
                                  const GroupMember& slice);

/// Throws ConfigError, in the words of the program's options, where experts cannot be in slices as
/// these say. The backend must be chosen. That members are of one host, SparseLayers itself finds
/// out.
void check_slices(const DecoderOptions& options, const ModelConfig& config);

/// One rank's. Construction is collective. Borrows config, dense weights, transport and group.
/// Threads: one at a time. Layers are numbered as the model's.
/// With expert_slices S, ranks [p * S, (p + 1) * S) are place p of the experts: placements and
/// slots count places, each rank of one has its slice of all experts there, and rank r exchanges on
/// a track of its own, with the ranks that have slice r % S at the other places.
class SparseLayers {
 public:
  /// What it reaches other ranks by.
  struct Links {
    Transport& transport;
    TensorGroup& group;
  };

  SparseLayers(const ModelConfig& config,
               const DenseWeights& dense,
               ExpertWeights experts,
               const DecoderOptions& options,
               const Links& links,
               StepClock* clock = nullptr);

  /// Collective, also without tokens: `rows` [tokens, H] of activations in, f32 [tokens, H] out.
  void forward(int layer, const RowsView& rows, int tokens, float* out);

  /// MoeLayer::input().
  std::optional<MutableRowsView> input(int layer, int tokens) const {
    return layers_[static_cast<std::size_t>(layer)]->input(tokens);
  }

  /// Throws LostTokens (moe_layer.h).
  void check_nothing_lost();

  /// From now on every step adds the rows that each local slot computes to `slot_rows`, borrowed:
  /// [sparse layers][slots_per_rank]; empty = counted no longer.
  void count_rows(std::span<std::int32_t> slot_rows);

  /// How tokens choose among replicas.
  ReplicaRule replica_rule() const { return rule_; }

  /// Where all ranks hold the experts of a layer that has some.
  const Placement& placement(int layer) const;

  /// The blocks of this rank's experts in such a layer [slots_per_rank], null in empty slots, and
  /// how large the largest of any layer is.
  std::vector<std::byte*> blocks(int layer);
  std::size_t block_bytes() const;

  /// Where layers' blocks are not of one size, they move into memory that has room for the largest
  /// in the place of each, so that any place serves any layer. blocks() are others afterwards.
  void level_blocks();

  /// Memory for `count` more experts' blocks, each the largest, kept as long as this.
  std::vector<std::byte*> spare_blocks(std::size_t count);

  /// Collective: the experts move into memory that peers map, kept as long as this: blocks
  /// [sparse layers][slots_per_rank], then slots_per_rank spare ones. REQUIRES: no spare_blocks().
  Region& share_blocks(Transport& transport);

  /// The experts, for next_expert_weights() of the next epoch; this is over then, and nothing but
  /// its destructor may be called. What lay in memory that peers map is copied out of it. Not
  /// collective, and also for ranks that a failed step has left behind.
  ExpertWeights take_experts();

  /// From the next step on, a layer's experts lie as `placement` says, those of this rank in
  /// `blocks` [slots_per_rank], which this has or has given out. All ranks alike.
  void place_layer(int layer, const Placement& placement, std::span<std::byte* const> blocks);

  /// The ranks that are one holder, which placements count as one rank; 1: each has whole experts.
  int expert_slices() const { return slices_.tp(); }

  /// Whether each rank sums its experts' results first: then the bits of a row depend on where
  /// these lie.
  bool sums_on_ranks() const { return sums_on_ranks_; }

  /// Whether any expert lies in more than one slot.
  bool has_replicas() const;

  /// Whether the backend goes on when a rank dies.
  bool masks() const;
  /// Goes on without `rank`: from the next step on its experts' replicas compute in its place.
  /// Throws TransportError when it had experts that no living rank has. REQUIRES: masks().
  void mask(Rank rank);
  /// Ranks of the transport that are known to be gone, also those that only an exchange has found
  /// out about.
  bool is_masked(Rank rank) const;

  ExchangeStats exchange_stats() const;
  /// [R], by source rank; empty where nothing is exchanged. Nothing for ranks on other tracks.
  std::vector<SourceStats> source_stats() const;
  /// MoeContext::exchange_time().
  std::chrono::nanoseconds exchange_time() const;

 private:
  Placement with_choice(const Placement& placement) const;
  std::vector<float> shares_of(const Placement& placement) const;
  void check_no_expert_lost(int layer, Rank gone) const;

  const ModelConfig& config_;
  const ReplicaRule rule_;
  const bool sums_on_ranks_;
  const int ranks_;
  TensorGroup slices_;
  const std::unique_ptr<Transport> own_track_;  // none where all ranks are on one
  Transport& track_;
  const int tp_;       // on the track
  const Rank holder_;  // this rank on the track
  const int hosts_;
  ExpertWeights experts_;
  std::unique_ptr<Region> region_;               // where they lie once they are shared
  std::unique_ptr<GpuQueue> device_;             // of the experts; none where the host has them
  std::optional<MoeContext> context_;            // none when no layer is sparse
  std::vector<std::optional<MoeLayer>> layers_;  // [layers], none where dense
};

}  // namespace ferry
