// The planner: how the experts should lie, given what they have had to do. A pure function: no
// clock, no threads, no randomness, so that ranks which plan from the same load agree.
#pragma once

#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "ferry/expert_load.h"
#include "ferry/expert_moves.h"
#include "ferry/export.h"

namespace ferry {

enum class Policy { identity, deepseek, greedy, incremental, risk };

/// Throws ConfigError that lists the names for an unknown one.
FERRY_API Policy parse_policy(std::string_view name);
FERRY_API std::string_view policy_name(Policy policy);
inline constexpr std::string_view kPolicyNames = "identity, deepseek, greedy, incremental, risk";

struct PlanOptions {
  Policy policy = Policy::greedy;
  int redundant = 0;  // replicas beyond one of each expert, all layers alike
  UnevenSlots uneven = UnevenSlots::allow_empty;
  bool weighted = false;  // plan for the weighted replica choice, and say the shares

  // For incremental only.
  int max_transfers = 0;           // experts that may travel, over all layers; 0 = any number
  int max_transfers_per_pair = 0;  // per layer from one rank to another; 0 = any number
  double tolerance = 0.0205;       // a layer is good enough this far below the best balancedness
};

/// Per layer and over all (the mean over the layers that had any load, as SGLang reports it).
struct Balance {
  double before = 1;  // balancedness of the current placement
  double after = 1;
  double bound = 1;  // best that any placement with these slots could have
};

struct Plan {
  ExpertPlacement placement;
  std::vector<LayerMoves> moves;  // [layer], from the current placement
  /// [layer][P] What each slot should take of its expert, for ReplicaChoice; empty unless weighted.
  std::vector<std::vector<float>> shares;
  std::vector<Balance> layers;
  Balance balance;
  int transfers = 0;        // experts that travel between ranks
  int transfers_bound = 0;  // no placement with layers as even as this one's needs fewer
  int duplicates = 0;       // slots wasted on an expert that their rank already holds (deepseek)
};

/// Plans from `load` and `current` (none: the identity placement). Throws ConfigError for
/// impossible sizes, for a current placement of other experts, layers or ranks, and for an
/// incremental policy whose current placement has another number of slots.
FERRY_API Plan plan_placement(const ExpertLoad& load,
                              const std::optional<ExpertPlacement>& current,
                              const Topology& topology,
                              const PlanOptions& options);

/// [layer][P] The shares that make this placement as even as it can be under `load`, as a weighted
/// plan has them. New ones need no moves, so they can follow the load more often than plans do.
/// REQUIRES: the same layers and experts.
FERRY_API std::vector<std::vector<float>> level_shares(const ExpertLoad& load,
                                                       const ExpertPlacement& placement);

/// From a window of steps: all policies plan for their sum; `risk`, which is `greedy` where there
/// is one step, also for how it came about. ConfigError also for no steps, or steps of different
/// layers or experts.
FERRY_API Plan plan_placement(std::span<const ExpertLoad> window,
                              const std::optional<ExpertPlacement>& current,
                              const Topology& topology,
                              const PlanOptions& options);

}  // namespace ferry
