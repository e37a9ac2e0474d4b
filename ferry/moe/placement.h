// Placement: logical expert <-> physical slot, for one layer. Immutable; swapped whole.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "ferry/core/types.h"

namespace ferry {

/// slots_per_rank = ceil((E + redundant) / R), P = R * slots_per_rank, rank = slot /
/// slots_per_rank; a slot may be empty. Every (E, R, redundant) is legal.
class Placement {
 public:
  /// Experts in order over the slots, replicas of the first experts behind them: slot p holds
  /// expert p for p < E. REQUIRES: experts >= 1, ranks >= 1, redundant >= 0.
  static Placement identity(int experts, int ranks, int redundant = 0);

  /// From an explicit map slot -> expert (-1 = empty). Throws ConfigError when an expert is missing
  /// or out of bounds, or when the slots do not divide by the ranks.
  Placement(std::vector<ExpertId> expert_of_slot, int experts, int ranks);

  int experts() const { return experts_; }

  int ranks() const { return ranks_; }

  int slots() const { return static_cast<int>(expert_of_slot_.size()); }

  int slots_per_rank() const { return slots() / ranks_; }

  Rank rank_of(SlotId slot) const { return slot / slots_per_rank(); }

  ExpertId expert_of(SlotId slot) const { return expert_of_slot_[static_cast<std::size_t>(slot)]; }

  /// Slot -> expert, -1 = empty. [slots()]
  std::span<const ExpertId> expert_of_slots() const { return expert_of_slot_; }

  std::span<const SlotId> replicas(ExpertId expert) const {
    const auto e = static_cast<std::size_t>(expert);
    return {slots_of_expert_.data() + first_replica_[e], first_replica_[e + 1] - first_replica_[e]};
  }

  /// The slots that tokens go to: a hash of (token, k) over the replicas, so that a stream spreads
  /// evenly also where the replica count divides K. Which replica computes a row never changes its
  /// bits. -1 stays -1.
  ///   experts, slots: [tokens, K]
  void place(std::span<const ExpertId> experts, int topk, std::span<SlotId> slots) const;

 private:
  int experts_;
  int ranks_;
  std::vector<ExpertId> expert_of_slot_;
  std::vector<SlotId> slots_of_expert_;     // replicas of expert 0, then of 1, ...
  std::vector<std::size_t> first_replica_;  // [E + 1] into slots_of_expert_
};

}  // namespace ferry
