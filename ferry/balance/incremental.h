// The incremental policy: from the current placement by single steps, best gain per transfer first.
#pragma once

#include <vector>

#include "ferry/planner.h"

namespace ferry {

/// Maps [layer][P]. Layers compete for options.max_transfers. Each step exchanges two slots, fills
/// an empty one, or turns a replica that is not the last of its expert into one of a hot expert; no
/// step puts an expert twice on a rank; with groups on nodes none leaves its node. A layer ends
/// where it is good enough or no step helps; then exchanges go back that were not needed in the
/// end. Slots that keep their expert stay in place.
std::vector<std::vector<ExpertId>> incremental_maps(const std::vector<LayerProblem>& layers,
                                                    const ExpertPlacement& current,
                                                    const PlanOptions& options);

/// The same steps, without a limit, on a map that a policy has just made.
void polish_layer(const LayerProblem& problem, std::vector<ExpertId>& map);

}  // namespace ferry
