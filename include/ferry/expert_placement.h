// ExpertPlacement: where every expert of every MoE layer lies. Immutable; the planner makes it, the
// layers run by its per-layer Placement, ranks compare its hash.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "ferry/export.h"
#include "ferry/placement.h"
#include "ferry/types.h"

namespace ferry {

/// The ranks and how they are grouped. Nodes are equal runs of consecutive ranks; groups are equal
/// runs of consecutive experts that routing picks together (DeepSeek's group-limited top-k).
struct Topology {
  int ranks = 1;
  int nodes = 1;
  int groups = 1;

  int ranks_per_node() const { return ranks / nodes; }

  /// Groups of experts are kept on one node each.
  bool hierarchical() const { return nodes > 1 && groups % nodes == 0; }
};

/// Throws ConfigError unless ranks divide by nodes and experts by groups.
FERRY_API void check_topology(const Topology& topology, int experts);

/// What to do where experts + redundant do not divide by the ranks.
enum class UnevenSlots {
  allow_empty,  // some slots stay empty
  strict,       // ConfigError
  adjust        // fewer redundant ones, until it divides
};

/// The number of redundant replicas to plan with. Throws ConfigError for a negative number, for
/// more replicas than ranks (a rank holds an expert once at most), and for what `uneven` refuses.
FERRY_API int settle_redundant(int experts, int ranks, int redundant, UnevenSlots uneven);

class FERRY_API ExpertPlacement {
 public:
  /// Placement::identity in every layer.
  static ExpertPlacement identity(int layers, int experts, int ranks, int redundant = 0);

  /// From physical_to_logical_map[layer][P], -1 = empty slot. Throws ConfigError, naming the layer,
  /// when layers differ in length, slots do not divide by the ranks, an expert is out of bounds or
  /// has no slot.
  ExpertPlacement(const std::vector<std::vector<ExpertId>>& physical_to_logical_map,
                  int experts,
                  int ranks);

  /// The maps of layers that are in force, without their shares. REQUIRES: at least one; all of the
  /// same experts, ranks and slots.
  explicit ExpertPlacement(std::span<const Placement> layers);

  /// The same maps, replicas taking parts as shares [layer][P] say (ReplicaChoice). Throws
  /// ConfigError for another number of layers and as Placement::choosing does.
  ExpertPlacement choosing(const std::vector<std::vector<float>>& shares) const;

  int layers() const { return static_cast<int>(layers_.size()); }

  int experts() const { return layers_.front().experts(); }

  int ranks() const { return layers_.front().ranks(); }

  int slots() const { return layers_.front().slots(); }

  int slots_per_rank() const { return layers_.front().slots_per_rank(); }

  /// The layer's runtime map. Lives as long as this.
  const Placement& layer(int l) const { return layers_[static_cast<std::size_t>(l)]; }

  /// [P], slot -> expert, -1 = empty.
  std::span<const ExpertId> physical_to_logical(int l) const { return layer(l).expert_of_slots(); }

  /// Those of all layers: physical_to_logical_map[layer][P].
  std::vector<std::vector<ExpertId>> maps() const;

  /// The slots of an expert, rising; never none. Their number is the replica count.
  std::span<const SlotId> logical_to_all_physical(int l, ExpertId e) const {
    return layer(l).replicas(e);
  }

  int replica_count(int l, ExpertId e) const {
    return static_cast<int>(logical_to_all_physical(l, e).size());
  }

  /// [E][R], the slot that a source rank sends an expert's tokens to when the choice is fixed by
  /// rank: its own replica, else one of its node (nodes = equal runs of ranks) while that has not
  /// its fair share of ranks yet, else the one with the fewest ranks so far. The same on all ranks.
  std::vector<SlotId> logical_to_rank_dispatch_physical(int l, int nodes = 1) const;

  /// Over shapes, maps and given shares; ranks that agree on the placement have the same.
  std::uint64_t hash() const { return hash_; }

  friend bool operator==(const ExpertPlacement& a, const ExpertPlacement& b);

 private:
  std::vector<Placement> layers_;
  std::uint64_t hash_ = 0;
};

}  // namespace ferry
