// Placement: logical expert <-> physical slot, for one layer, and which replica a token goes to.
// Immutable; swapped whole.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "ferry/export.h"
#include "ferry/types.h"

namespace ferry {

/// How a run's ranks choose among replicas, as options name it: by hash, each its nearest, or by
/// the shares that plans say.
enum class ReplicaRule : std::uint8_t { hash, nearest, weighted };

/// Throws ConfigError that lists the names for an unknown one.
FERRY_API ReplicaRule parse_replica_rule(std::string_view name);
FERRY_API std::string_view replica_rule_name(ReplicaRule rule);
inline constexpr std::string_view kReplicaRuleNames = "hash, nearest, weighted";

/// How a rank chooses among the replicas of an expert. Each (token, k) has a hash, and each replica
/// an interval of hashes as wide as its part of the tokens, so a stream spreads as it should also
/// where the number of replicas divides K. Which replica computes a row never changes its bits.
struct ReplicaChoice {
  /// [P] The part of its expert's tokens that each slot takes, over all ranks together; the planner
  /// computes it. Only the ratios within an expert matter; where all of its slots have 0 they take
  /// equal parts, else one with 0 takes none. Empty: equal parts. Read at construction.
  std::span<const float> shares = {};
  /// The rank whose tokens are placed. -1: all ranks choose the same slot for the same (token, k),
  /// as ranks that hold the same tokens must. Else the hash differs between ranks, so that ranks
  /// with a few tokens each do not all meet at one replica.
  Rank source = -1;
  /// Tokens of `source` go to its own replica, then to those of its node, then to any, as far as
  /// each replica still ends with its part when all ranks have equally many. Needs a source.
  bool nearest = false;
  int nodes = 1;  ///< equal runs of consecutive ranks
  /// Ranks [g * tp, (g + 1) * tp) hold the same tokens, so they choose alike: `source`
  /// stands for the first of its group.
  int tp = 1;
};

/// slots_per_rank = ceil((E + redundant) / R), P = R * slots_per_rank, rank = slot /
/// slots_per_rank; a slot may be empty. Every (E, R, redundant) is legal.
class FERRY_API Placement {
 public:
  /// Experts in order over the slots, replicas of the first experts behind them: slot p holds
  /// expert p for p < E. REQUIRES: experts >= 1, ranks >= 1, redundant >= 0.
  static Placement identity(int experts, int ranks, int redundant = 0);

  /// From an explicit map slot -> expert (-1 = empty). Throws ConfigError when an expert is missing
  /// or out of bounds, or when the slots do not divide by the ranks.
  Placement(std::vector<ExpertId> expert_of_slot, int experts, int ranks);

  /// The same maps with another choice of replicas; equal parts without a source is what the
  /// constructor and identity() give. Throws ConfigError for shares that are not [P], finite and at
  /// least 0, for a source that is no rank, for `nearest` without one, and for nodes or groups that
  /// do not divide the ranks.
  Placement choosing(const ReplicaChoice& choice) const;

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

  /// The part of the tokens of `expert` that place() gives to replicas(expert)[replica].
  double part(ExpertId expert, std::size_t replica) const;

  /// [P] The part of its expert's tokens that place() gives to each slot: what another choice of
  /// the same maps is made from.
  std::vector<float> shares() const;

  /// Whether every rank's place() gives the same slots for the same experts.
  bool same_on_all_ranks() const { return salt_ == 0; }

  /// Whether those of ranks that hold the same tokens, `tp` to a group, do.
  bool same_in_groups_of(int tp) const { return salt_ == 0 || tp_ % tp == 0; }

  /// The slots that tokens go to, as the ReplicaChoice says. -1 stays -1. Allocates nothing.
  ///   experts, slots: [tokens, K]
  /// `turn`: counts calls, on all ranks alike; the same rows choose anew in each, so that a few
  /// sequences that decode in the same rows spread over the replicas in time.
  void place(std::span<const ExpertId> experts,
             int topk,
             std::span<SlotId> slots,
             std::uint32_t turn = 0) const;

 private:
  void divide(const ReplicaChoice& choice);

  int experts_;
  int ranks_;
  std::vector<ExpertId> expert_of_slot_;
  std::vector<SlotId> slots_of_expert_;     // replicas of expert 0, then of 1, ...
  std::vector<std::size_t> first_replica_;  // [E + 1] into slots_of_expert_
  std::vector<std::uint32_t> until_;        // of each replica: the first hash beyond its interval
  std::uint32_t salt_ = 0;                  // source + 1
  int tp_ = 1;                              // ranks that have this salt
};

}  // namespace ferry
