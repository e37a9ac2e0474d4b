// Flow: how much of an expert's load each of its replicas carries.
#pragma once

#include <span>
#include <vector>

#include "ferry/core/types.h"

namespace ferry {

/// The level to which `total` fills vessels that are full up to `bases`. Sorts `bases`.
double water_level(std::span<double> bases, double total);

/// [P] What each slot carries when replicas take equal parts.
std::vector<double> even_loads(std::span<const double> load, std::span<const ExpertId> map);

/// [P] What each slot carries when replicas take what makes the ranks even: starting from equal
/// parts, one expert after the other spreads over its ranks like water, until that changes little.
/// The limit has the lightest most loaded rank that this placement allows.
std::vector<double> level_loads(std::span<const double> load,
                                std::span<const ExpertId> map,
                                int ranks);

/// [R] from [P].
std::vector<double> sum_by_rank(std::span<const double> slot_loads, int ranks);

}  // namespace ferry
