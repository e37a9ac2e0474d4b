// How even a placement makes a load. Loads are tokens (rows) per expert, of any common unit.
#pragma once

#include <span>
#include <vector>

#include "ferry/expert_placement.h"
#include "ferry/export.h"

namespace ferry {

/// [layer][expert], finite and not negative.
struct ExpertLoad {
  int layers = 0;
  int experts = 0;
  std::vector<double> counts;

  ExpertLoad() = default;

  ExpertLoad(int num_layers, int num_experts)
      : layers(num_layers),
        experts(num_experts),
        counts(static_cast<std::size_t>(num_layers) * static_cast<std::size_t>(num_experts), 0.0) {}

  std::span<const double> layer(int l) const { return {counts.data() + offset(l), width()}; }

  std::span<double> layer(int l) { return {counts.data() + offset(l), width()}; }

 private:
  std::size_t width() const { return static_cast<std::size_t>(experts); }

  std::size_t offset(int l) const { return static_cast<std::size_t>(l) * width(); }
};

/// Steps added up. Throws ConfigError for none, and for steps of different layers or experts.
FERRY_API ExpertLoad total_load(std::span<const ExpertLoad> steps);

/// What a policy has to solve in one layer.
struct LayerProblem {
  std::span<const double> load;  // [E]
  Topology topology;
  int slots_per_rank = 1;
  int replicas = 1;                     // slots to fill: experts + redundant
  bool weighted = false;                // replicas take what evens the ranks, not equal parts
  std::span<const float> samples = {};  // [S][E] load of each part of the window; risk only

  int experts() const { return static_cast<int>(load.size()); }

  int slots() const { return topology.ranks * slots_per_rank; }
};

/// Load of each rank, replicas taking equal parts. slot_experts: [P], -1 = empty.
FERRY_API std::vector<double> rank_loads(std::span<const double> load,
                                         std::span<const ExpertId> slot_experts,
                                         int ranks);

/// The same, with the parts that the problem says.
FERRY_API std::vector<double> rank_loads(const LayerProblem& problem,
                                         std::span<const ExpertId> slot_experts);

/// Mean over max of the ranks' loads: 1 = perfectly even, 1/R = all on one rank. 1 for no load.
FERRY_API double balancedness(std::span<const double> loads_of_ranks);

/// Balancedness averaged over the layers that had any load (dense layers have none), replicas
/// taking equal parts; 1 where none had. REQUIRES: the same layers and experts.
FERRY_API double mean_balancedness(const ExpertLoad& load, const ExpertPlacement& placement);

/// No placement of this problem has a higher balancedness. The most loaded rank carries at least
/// the mean, and at least the largest share of an expert under the best choice of replica counts;
/// with groups kept on nodes, also a rank's part of the most loaded node under the best packing.
FERRY_API double best_balancedness(const LayerProblem& problem);

/// No placement whose most loaded rank has at most `most` is fewer transfers away from `current`
/// [P], whichever parts replicas take. A rank that receives nothing carries no more than the
/// experts that it holds; and an expert lies on as many ranks as its load fills.
FERRY_API int fewest_transfers(const LayerProblem& problem,
                               std::span<const ExpertId> current,
                               double most);

/// Groups -> nodes, equally many each, so that the most loaded node is as light as a bounded search
/// finds (exact up to about 12 groups; deterministic).
struct GroupPacking {
  std::vector<int> node_of_group;
  double heaviest = 0;        // load of the most loaded node
  double heaviest_bound = 0;  // no packing does better
};

FERRY_API GroupPacking pack_groups(const LayerProblem& problem);

/// Replica counts that minimise the largest share load/count, each at most `most` (D'Hondt: the
/// next replica goes to the largest share). Ties: fewest replicas, then lowest id.
FERRY_API std::vector<int> replica_counts(std::span<const double> load, int replicas, int most);

/// Slots that hold an expert which a lower slot of the same rank holds already.
FERRY_API int count_duplicates(std::span<const ExpertId> slot_experts, int experts, int ranks);

}  // namespace ferry
