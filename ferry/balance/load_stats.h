// What recorded load looks like under a placement: for people who want to know whether balancing
// would pay.
#pragma once

#include <vector>

#include "ferry/balance/trace.h"

namespace ferry {

struct HotExpert {
  int layer = 0;
  ExpertId expert = 0;
  double part = 0;       // of its layer's rows
  double of_a_rank = 0;  // its rows over what a rank has when all have equally many
  int replicas = 1;
};

struct LoadStats {
  /// Balancedness of a step: mean over max of the ranks' rows in a layer, averaged over the layers
  /// that had any. Means of the last steps' balancedness; of fewer where there are not so many.
  double current = 1;  // the last step's
  double last_10 = 1;
  double last_100 = 1;
  double last_1000 = 1;
  double sum = 1;                  // of all steps added up, as a planner sees them
  std::vector<double> rank_load;   // [R] rows, all steps and layers together
  std::vector<HotExpert> hottest;  // largest part first
};

/// Replicas take equal parts. Throws ConfigError for no steps, steps of different layers or
/// experts, and a placement of others.
LoadStats load_stats(const Trace& steps, const ExpertPlacement& placement, int num_hottest);

}  // namespace ferry
