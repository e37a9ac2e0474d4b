// The planner's policies, each for one layer: problem -> slot map [P], -1 = empty slot. Pure
// functions; the same input gives the same map on every rank and machine.
#pragma once

#include <span>
#include <vector>

#include "ferry/expert_load.h"

namespace ferry {

/// DeepSeek's published algorithm (eplb.py, rebalance_experts), float32 arithmetic included. Fills
/// all slots; may put an expert twice on a rank. Hierarchical where groups divide by nodes.
std::vector<ExpertId> deepseek_layer(const LayerProblem& problem);

/// Replicas by the largest share; replicas to ranks, heaviest first, each to the lightest rank that
/// has a free slot and not yet this expert; then exchanges with the most loaded rank while they
/// help. Keeps groups on nodes where groups divide by nodes.
std::vector<ExpertId> greedy_layer(const LayerProblem& problem);

/// From a map that another policy made: replica counts stay, exchanges lower the load of the most
/// loaded ranks over the samples of the problem instead of over their sum, so experts that are busy
/// at the same times (covariance) come apart and those that vary meet steady ones.
void spread_risk(const LayerProblem& problem, std::vector<ExpertId>& map);

/// Renames the ranks within each node and the slots within each rank, so that experts stay where
/// `current` has them as far as possible. Changes no rank's set of experts but by renaming ranks.
/// current: [P] of the same shape.
void keep_places(std::vector<ExpertId>& map, std::span<const ExpertId> current, const Topology& t);

/// Only the second half of keep_places: ranks keep their sets, slots stay in place.
void keep_slots(std::vector<ExpertId>& map, std::span<const ExpertId> current, int ranks);

}  // namespace ferry
