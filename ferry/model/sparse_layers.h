// The layers of a model that have experts, and where those lie: what Decoder hands on to the MoE
// room, and the balancer moves.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "ferry/compute/tensor_group.h"
#include "ferry/model/decoder.h"

namespace ferry {

/// One rank's. Construction is collective. Borrows config, dense weights, transport and
/// group. Threads: one at a time. Functions of the same name are described at Decoder; layers are
/// numbered as the model's.
class SparseLayers {
 public:
  SparseLayers(const ModelConfig& config,
               const DenseWeights& dense,
               ExpertWeights experts,
               const DecoderOptions& options,
               Transport& transport,
               TensorGroup& group);

  /// Collective, also without tokens: `rows` [tokens, H] of activations in, f32 [tokens, H] out.
  void forward(int layer, const RowsView& rows, int tokens, float* out);

  /// MoeLayer::input().
  std::optional<MutableRowsView> input(int layer, int tokens) const {
    return layers_[static_cast<std::size_t>(layer)]->input(tokens);
  }

  /// Throws LostTokens (moe_layer.h).
  void check_nothing_lost();

  void count_rows(std::span<std::int32_t> slot_rows);

  const ExpertWeights& experts() const { return experts_; }

  std::vector<std::byte*> spare_blocks(std::size_t count);
  Region& share_blocks(Transport& transport);
  void place_layer(int layer, const Placement& placement, std::span<std::byte* const> blocks);

  bool masks() const;
  void mask(Rank rank);
  bool is_masked(Rank rank) const;

  ExchangeStats exchange_stats() const;
  std::chrono::nanoseconds exchange_time() const;

 private:
  Placement with_choice(const Placement& placement) const;
  std::vector<float> shares_of(const Placement& placement) const;
  void check_no_expert_lost(int layer, Rank gone) const;
  std::size_t block_bytes() const;

  const ModelConfig& config_;
  const ReplicaRule rule_;
  const int tp_;
  const Rank rank_;
  const int hosts_;
  ExpertWeights experts_;
  std::unique_ptr<Region> region_;               // where they lie once they are shared
  std::optional<MoeContext> context_;            // none when no layer is sparse
  std::vector<std::optional<MoeLayer>> layers_;  // [layers], none where dense
};

}  // namespace ferry
