// LayerSearch: one layer on its way from the current placement by single steps, each the best gain
// per expert that travels.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "ferry/expert_load.h"

namespace ferry {

/// Slot `to` takes the expert of slot `from`; what `to` held goes to `from` (exchange), or is given
/// up because it has other replicas (replicate). With `via`, what `to` held goes there first, and
/// what `via` held is given up.
struct Step {
  SlotId from = -1;
  SlotId to = -1;
  SlotId via = -1;
  bool exchange = true;
  int transfers = 0;     // more experts that must travel than without it; can be negative
  double gain = 0;       // of the potential
  double gain_rate = 0;  // per transfer: what steps compete by

  bool found() const { return from >= 0; }
};

/// What steps lower is a potential, the sum of the fourth powers of the ranks' loads over the mean:
/// it looks at the largest loads, but also sees one of several equally loaded ranks improve.
/// Replicas take equal parts, or what evens the ranks where the problem says weighted.
class LayerSearch {
 public:
  struct Options {
    double tolerance = 0;  // a layer is good enough this far below the best balancedness
    int pair_limit = 0;    // experts from one rank to another; 0 = any number
  };

  /// Borrows what `p` borrows. current: [P].
  LayerSearch(const LayerProblem& p, std::span<const ExpertId> current, const Options& options);

  /// The step with the largest gain per transfer that takes load off the most loaded rank. Not
  /// found where the layer is good enough or none helps.
  Step best_step();

  void apply(const Step& step);

  /// An exchange after which fewer experts travel while the layer stays good enough.
  Step saving_step();

  /// How much work a unit of potential stands for, to compare layers.
  double weight() const { return mean_; }

  const std::vector<ExpertId>& map() const { return map_; }

 private:
  using Index = std::size_t;

  static constexpr double kLeastGain = 1e-6;

  /// A replica in question: its rank, and what it would carry.
  struct Site {
    SlotId slot = -1;
    Index rank = 0;
    double carries = 0;
  };

  ExpertId expert_at(SlotId slot) const { return map_[static_cast<Index>(slot)]; }

  Index rank_of(SlotId slot) const { return rank_of_[static_cast<Index>(slot)]; }

  double carried(SlotId slot) const { return carried_[static_cast<Index>(slot)]; }

  SlotId first_slot(Index rank) const { return static_cast<SlotId>(rank) * p_.slots_per_rank; }

  std::uint8_t& holds(Index rank, ExpertId e) {
    return holds_[rank * p_.load.size() + static_cast<Index>(e)];
  }

  bool held_at_first(Index rank, ExpertId e) const {
    return held_at_first_[rank * p_.load.size() + static_cast<Index>(e)] > 0;
  }

  /// Whether experts may go from one to the other: groups stay on their nodes.
  bool same_domain(Index a, Index b) const {
    const auto per_node = static_cast<Index>(p_.topology.ranks_per_node());
    return !p_.topology.hierarchical() || a / per_node == b / per_node;
  }

  bool can_take(Index rank, ExpertId e) { return holds(rank, e) == 0 && allowed(rank, e); }

  double potential(double load) const {
    const double x = load * inverse_mean_;
    const double x2 = x * x;
    return x2 * x2;
  }

  bool allowed(Index rank, ExpertId e) const;
  void charge(Index rank, ExpertId e);

  int transfers(SlotId slot, ExpertId e) const {
    return e < 0 || held_at_first(rank_of(slot), e) ? 0 : 1;
  }

  bool can_give_up(SlotId slot) const;

  void search(Index hot, Index width, Step& best);
  void survey(Index hot, Index most);

  void keep_better(Step step, Step& best) const {
    if (step.gain <= kLeastGain) return;
    step.gain_rate = step.gain / std::max(0.5, static_cast<double>(step.transfers));
    if (step.gain_rate > best.gain_rate) best = step;
  }

  void consider_exchanges(SlotId from, Index cool, Step& best);
  void consider_replicating(SlotId from, SlotId to, Step& best);
  void consider_detours(SlotId from, Index most, Step& best);
  void consider_detour(SlotId from, SlotId to, SlotId via, Step& best);

  void spread(ExpertId e, SlotId without, SlotId with);

  void add(Index rank, double change) {
    if (delta_[rank] == 0) touched_.push_back(rank);
    delta_[rank] += change;
  }

  double take_gain();
  void settle(ExpertId e);
  void level(int rounds);

  void drop(SlotId slot);
  void place(SlotId slot, ExpertId e);

  LayerProblem p_;
  int pair_limit_;
  Index ranks_;
  std::vector<ExpertId> map_;
  std::vector<double> carried_;  // [P]
  std::vector<double> load_;     // [R]
  std::vector<Index> rank_of_;   // each slot
  std::vector<std::uint8_t> holds_;
  std::vector<std::uint8_t> held_at_first_;  // [rank][expert], copies
  std::vector<std::vector<SlotId>> slots_of_;
  int filled_ = 0;
  std::vector<int> pairs_;  // [source][destination], transfers that may use this pair
  double mean_ = 0;
  double inverse_mean_ = 0;
  double good_enough_ = 0;

  // Scratch of a search; deltas are zero between steps.
  std::vector<double> delta_;      // [R] changes under consideration
  std::vector<Index> touched_;     // their ranks
  std::vector<double> potential_;  // [R] of the ranks' loads
  std::vector<Site> sites_;
  std::vector<double> bases_;
  std::vector<Index> cool_;  // ranks that load may go to, coolest first
  std::vector<SlotId>
      spares_;  // the slot of each rank that is given up most cheaply, coolest first
};

}  // namespace ferry
