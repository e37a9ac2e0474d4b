// Time charged to what an exchange moves: links, memory and arithmetic of a described cluster. The
// formulas, and what they leave out, stand in docs/simulate.md.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "ferry/sim/cluster.h"
#include "ferry/sim/traffic.h"

namespace ferry {

/// Rows that the members of a group share out and bring together (GroupGather).
struct GatherLoad {
  int members = 1;
  double gathers = 0;  ///< at least one round each
  double bytes = 0;    ///< of whole rows, over all of them
};

/// What one rank does in a layer, as numbers that can be averaged.
struct RankLoad {
  struct Phase {
    PerLevel<double> out_puts = {}, out_bytes = {}, in_puts = {}, in_bytes = {};
    PerLevel<double> to_one = {};
    PerLevel<double> read_after = {};
    double moved_before = 0, summed_before = 0;
    double written_after = 0;
  };

  /// Of experts.
  struct Work {
    double bytes = 0;       ///< weights of the slots that have rows, and the rows
    double near_bytes = 0;  ///< weights that lie in a neighbour's memory
    double operations = 0;  ///< two for each multiply-add
  };

  Phase dispatch, combine;
  double rows = 0;
  Work own;
  GatherLoad between;  ///< of slices: the experts' projections
  GatherLoad results;  ///< and their results at home

  // Of per-step balance (step_balance.h).
  Phase counts;  ///< what is told before dispatch
  Phase fetch;   ///< dispatch, and weights behind it
  Work fetched;  ///< what waits for these weights
};

/// What the experts cost.
struct ExpertWork {
  double bytes_per_slot = 0;  ///< weights, read once where a slot has a row
  double bytes_per_row = 0;
  double operations_per_row = 0;
};

RankLoad load_of(const RankTraffic& traffic, const ExpertWork& experts);
RankLoad mean_load(std::span<const RankLoad> loads);

/// What a layer's time can be of. `imbalance` is what it would be shorter if every rank had what
/// the mean rank has.
enum class Bound { latency, messages, bandwidth, memory, arithmetic, imbalance };

inline constexpr std::size_t kBounds = 6;
inline constexpr std::array<std::string_view, kBounds> kBoundNames{
    "latency", "messages", "bandwidth", "memory", "arithmetic", "imbalance"};

using Shares = std::array<double, kBounds>;

/// Microseconds of one rank, from when all begin the layer.
struct RankTime {
  double dispatch = 0;
  double experts = 0;
  double combine = 0;  ///< its wait for ranks that are still computing included

  double layer() const { return dispatch + experts + combine; }
};

struct LayerTime {
  std::vector<RankTime> ranks;
  double layer_us = 0;   ///< of the slowest rank
  Shares bound_us = {};  ///< adds up to layer_us
};

/// Of one rank's gathers, which its group of consecutive ranks makes.
double gather_us(const GatherLoad& load, const Cluster& cluster, const LinkLevels& levels);

/// tiles: results leave while experts still compute (Pipeline::tiles between hosts).
LayerTime time_layer(std::span<const RankLoad> loads,
                     const Cluster& cluster,
                     const LinkLevels& levels,
                     bool tiles);

}  // namespace ferry
