#include "ferry/balance/incremental.h"

#include <algorithm>
#include <numeric>
#include <queue>
#include <tuple>

#include "ferry/balance/policies.h"

namespace ferry {

namespace {

using Index = std::size_t;

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

/// One layer on its way from the current placement. What steps lower is a potential, the sum of the
/// eighth powers of the ranks' loads over the mean: nearly the largest load, but it also sees one
/// of several equally loaded ranks improve.
class LayerSearch {
 public:
  LayerSearch(const LayerProblem& p, std::span<const ExpertId> current, const PlanOptions& options)
      : p_(p),
        pair_limit_(options.max_transfers_per_pair),
        ranks_(static_cast<Index>(p.topology.ranks)),
        map_(current.begin(), current.end()),
        load_(rank_loads(p.load, current, p.topology.ranks)),
        rank_of_(map_.size()),
        holds_(ranks_ * p.load.size(), 0),
        slots_of_(p.load.size()),
        share_(p.load.size(), 0.0),
        delta_(ranks_, 0.0),
        pairs_(pair_limit_ > 0 ? ranks_ * ranks_ : 0, 0) {
    for (SlotId slot = 0; slot < static_cast<SlotId>(map_.size()); ++slot) {
      rank_of_[static_cast<Index>(slot)] = static_cast<Index>(slot / p.slots_per_rank);
      const ExpertId e = expert_at(slot);
      if (e < 0) continue;
      ++holds(rank_of(slot), e);
      slots_of_[static_cast<Index>(e)].push_back(slot);
      ++filled_;
    }
    for (ExpertId e = 0; e < p.experts(); ++e) update_share(e);
    held_at_first_ = holds_;
    mean_ = std::accumulate(load_.begin(), load_.end(), 0.0) / static_cast<double>(ranks_);
    inverse_mean_ = mean_ > 0 ? 1 / mean_ : 0;
    good_enough_ = mean_ / std::max(best_balancedness(p) - options.tolerance, 1e-9);
  }

  /// The step with the largest gain per transfer that takes load off the most loaded rank. Not
  /// found where the layer is good enough or none helps.
  Step best_step() {
    Step best;
    const auto hot =
        static_cast<Index>(std::max_element(load_.begin(), load_.end()) - load_.begin());
    if (load_[hot] <= good_enough_) return best;
    for (int local = 0; local < p_.slots_per_rank; ++local) {
      const SlotId from = static_cast<SlotId>(hot) * p_.slots_per_rank + local;
      if (expert_at(from) < 0) continue;
      for (SlotId to = 0; to < static_cast<SlotId>(map_.size()); ++to) {
        if (rank_of(to) == hot || !same_domain(rank_of(to), hot) ||
            holds(rank_of(to), expert_at(from)) > 0 || !allowed(rank_of(to), expert_at(from)))
          continue;
        consider_exchange(from, to, best);
        consider_replicating(from, to, best);
      }
    }
    if (!best.found()) consider_detours(hot, best);
    return best;
  }

  void apply(const Step& step) {
    if (step.via >= 0) {
      const ExpertId displaced = expert_at(step.to);
      charge(rank_of(step.via), displaced);
      drop(step.via);
      drop(step.to);
      place(step.via, displaced);
    }
    const ExpertId mover = expert_at(step.from);
    const ExpertId other = expert_at(step.to);
    charge(rank_of(step.to), mover);
    if (other >= 0) drop(step.to);
    if (step.exchange) {
      drop(step.from);
      if (other >= 0) {
        charge(rank_of(step.from), other);
        place(step.from, other);
      }
    }
    place(step.to, mover);
    load_ = rank_loads(p_.load, map_, p_.topology.ranks);
  }

  /// How much work a unit of potential stands for, to compare layers.
  double weight() const { return mean_; }

  const std::vector<ExpertId>& map() const { return map_; }

 private:
  static constexpr double kLeastGain = 1e-6;

  ExpertId expert_at(SlotId slot) const { return map_[static_cast<Index>(slot)]; }

  Index rank_of(SlotId slot) const { return rank_of_[static_cast<Index>(slot)]; }

  std::uint8_t& holds(Index rank, ExpertId e) {
    return holds_[rank * p_.load.size() + static_cast<Index>(e)];
  }

  bool held_at_first(Index rank, ExpertId e) const {
    return held_at_first_[rank * p_.load.size() + static_cast<Index>(e)] > 0;
  }

  bool same_domain(Index a, Index b) const {
    const auto per_node = static_cast<Index>(p_.topology.ranks_per_node());
    return !p_.topology.hierarchical() || a / per_node == b / per_node;
  }

  double share(ExpertId e) const { return share_[static_cast<Index>(e)]; }

  void update_share(ExpertId e) {
    const auto i = static_cast<Index>(e);
    share_[i] = slots_of_[i].empty() ? 0 : p_.load[i] / static_cast<double>(slots_of_[i].size());
  }

  double potential(double load) const {
    const double x = load * inverse_mean_;
    const double x2 = x * x;
    return x2 * x2 * x2 * x2;
  }

  /// Any rank that held the expert at first may come to send it, so all of them count.
  bool allowed(Index rank, ExpertId e) const {
    if (pair_limit_ == 0 || held_at_first(rank, e)) return true;
    for (Index source = 0; source < ranks_; ++source) {
      if (held_at_first(source, e) && pairs_[source * ranks_ + rank] >= pair_limit_) return false;
    }
    return true;
  }

  void charge(Index rank, ExpertId e) {
    if (pair_limit_ == 0 || held_at_first(rank, e)) return;
    for (Index source = 0; source < ranks_; ++source)
      if (held_at_first(source, e)) ++pairs_[source * ranks_ + rank];
  }

  int transfers(SlotId slot, ExpertId e) const {
    return e < 0 || held_at_first(rank_of(slot), e) ? 0 : 1;
  }

  void keep_better(Step step, Step& best) const {
    if (step.gain <= kLeastGain) return;
    step.gain_rate = step.gain / std::max(0.5, static_cast<double>(step.transfers));
    if (step.gain_rate > best.gain_rate) best = step;
  }

  void consider_exchange(SlotId from, SlotId to, Step& best) {
    const ExpertId mover = expert_at(from);
    const ExpertId other = expert_at(to);
    const Index hot = rank_of(from);
    const Index cool = rank_of(to);
    const double difference = share(mover) - (other < 0 ? 0 : share(other));
    if (difference <= 0 || (other >= 0 && (holds(hot, other) > 0 || !allowed(hot, other)))) return;
    const double gain = potential(load_[hot]) + potential(load_[cool]) -
                        potential(load_[hot] - difference) - potential(load_[cool] + difference);
    if (gain <= kLeastGain) return;
    const int cost = transfers(to, mover) + transfers(from, other) - transfers(from, mover) -
                     transfers(to, other);
    keep_better({from, to, -1, true, cost, gain}, best);
  }

  void consider_replicating(SlotId from, SlotId to, Step& best) {
    const ExpertId mover = expert_at(from);
    const ExpertId given_up = expert_at(to);
    if (!can_give_up(to)) return;
    touched_.clear();
    add_replica(mover, rank_of(to));
    if (given_up >= 0) remove_replica(given_up, to);
    keep_better({from, to, -1, false, transfers(to, mover) - transfers(to, given_up), take_gain()},
                best);
  }

  /// For a most loaded rank whose largest share could be split, but only onto ranks that have no
  /// slot to give up: one of their experts moves to a slot elsewhere that can be given up.
  void consider_detours(Index hot, Step& best) {
    SlotId from = -1;
    for (int local = 0; local < p_.slots_per_rank; ++local) {
      const SlotId slot = static_cast<SlotId>(hot) * p_.slots_per_rank + local;
      if (expert_at(slot) >= 0 && (from < 0 || share(expert_at(slot)) > share(expert_at(from))))
        from = slot;
    }
    if (from < 0) return;
    const ExpertId mover = expert_at(from);
    for (const Index cool : coolest_without(mover, hot)) {
      for (int local = 0; local < p_.slots_per_rank; ++local) {
        const SlotId to = static_cast<SlotId>(cool) * p_.slots_per_rank + local;
        if (expert_at(to) < 0) continue;
        for (SlotId via = 0; via < static_cast<SlotId>(map_.size()); ++via)
          if (can_give_up(via)) consider_detour(from, to, via, best);
      }
    }
  }

  void consider_detour(SlotId from, SlotId to, SlotId via, Step& best) {
    const ExpertId mover = expert_at(from);
    const ExpertId displaced = expert_at(to);
    const ExpertId given_up = expert_at(via);
    if (rank_of(via) == rank_of(to) || !same_domain(rank_of(via), rank_of(to)) ||
        given_up == mover || given_up == displaced || holds(rank_of(via), displaced) > 0 ||
        !allowed(rank_of(via), displaced))
      return;
    touched_.clear();
    add_replica(mover, rank_of(to));
    if (given_up >= 0) remove_replica(given_up, via);
    add(rank_of(to), -share(displaced));
    add(rank_of(via), share(displaced));
    const int cost = transfers(to, mover) + transfers(via, displaced) - transfers(to, displaced) -
                     transfers(via, given_up);
    keep_better({from, to, via, false, cost, take_gain()}, best);
  }

  /// A few ranks with the least load that could take a replica of `mover`.
  std::vector<Index> coolest_without(ExpertId mover, Index hot) {
    constexpr Index kTried = 4;
    std::vector<Index> ranks;
    for (Index r = 0; r < ranks_; ++r)
      if (same_domain(r, hot) && holds(r, mover) == 0 && allowed(r, mover)) ranks.push_back(r);
    std::stable_sort(
        ranks.begin(), ranks.end(), [&](Index a, Index b) { return load_[a] < load_[b]; });
    ranks.resize(std::min(ranks.size(), kTried));
    return ranks;
  }

  bool can_give_up(SlotId slot) const {
    const ExpertId e = expert_at(slot);
    return e < 0 ? filled_ < p_.replicas : slots_of_[static_cast<Index>(e)].size() > 1;
  }

  /// What one more replica of `e` on `rank` does to the loads.
  void add_replica(ExpertId e, Index rank) {
    const std::vector<SlotId>& slots = slots_of_[static_cast<Index>(e)];
    const double after = p_.load[static_cast<Index>(e)] / static_cast<double>(slots.size() + 1);
    for (const SlotId slot : slots) add(rank_of(slot), after - share(e));
    add(rank, after);
  }

  void remove_replica(ExpertId e, SlotId gone) {
    const std::vector<SlotId>& slots = slots_of_[static_cast<Index>(e)];
    const double after = p_.load[static_cast<Index>(e)] / static_cast<double>(slots.size() - 1);
    for (const SlotId slot : slots) add(rank_of(slot), slot == gone ? -share(e) : after - share(e));
  }

  /// The potential gained by all that was added; clears it.
  double take_gain() {
    double gain = 0;
    for (const Index rank : touched_) {  // a rank listed twice has no delta the second time
      gain += potential(load_[rank]) - potential(load_[rank] + delta_[rank]);
      delta_[rank] = 0;
    }
    return gain;
  }

  void add(Index rank, double change) {
    delta_[rank] += change;
    touched_.push_back(rank);
  }

  void drop(SlotId slot) {
    const ExpertId e = expert_at(slot);
    --holds(rank_of(slot), e);
    std::erase(slots_of_[static_cast<Index>(e)], slot);
    map_[static_cast<Index>(slot)] = -1;
    update_share(e);
    --filled_;
  }

  void place(SlotId slot, ExpertId e) {
    ++holds(rank_of(slot), e);
    slots_of_[static_cast<Index>(e)].push_back(slot);
    map_[static_cast<Index>(slot)] = e;
    update_share(e);
    ++filled_;
  }

  const LayerProblem& p_;
  int pair_limit_;
  Index ranks_;
  std::vector<ExpertId> map_;
  std::vector<double> load_;    // [R]
  std::vector<Index> rank_of_;  // each slot
  std::vector<std::uint8_t> holds_;
  std::vector<std::uint8_t> held_at_first_;  // [rank][expert], copies
  std::vector<std::vector<SlotId>> slots_of_;
  std::vector<double> share_;  // load of each replica of an expert
  int filled_ = 0;
  std::vector<double> delta_;  // changes under consideration, zero between steps
  std::vector<Index> touched_;
  std::vector<int> pairs_;  // [source][destination], transfers that may use this pair
  double mean_ = 0;
  double inverse_mean_ = 0;
  double good_enough_ = 0;
};

}  // namespace

void polish_layer(const LayerProblem& p, std::vector<ExpertId>& map) {
  constexpr double kTolerance = 0.002;
  if (balancedness(rank_loads(p.load, map, p.topology.ranks)) >= best_balancedness(p) - kTolerance)
    return;
  LayerSearch search(p, map, {.tolerance = kTolerance});
  for (int step = 0; step < p.slots(); ++step) {
    const Step next = search.best_step();
    if (!next.found()) break;
    search.apply(next);
  }
  map = search.map();
}

std::vector<std::vector<ExpertId>> incremental_maps(const std::vector<LayerProblem>& layers,
                                                    const ExpertPlacement& current,
                                                    const PlanOptions& options) {
  std::vector<LayerSearch> searches;
  searches.reserve(layers.size());
  std::vector<Step> next(layers.size());
  std::priority_queue<std::tuple<double, int>> queue;  // gain rate, -layer
  const auto look = [&](Index l) {
    next[l] = searches[l].best_step();
    if (next[l].found())
      queue.emplace(next[l].gain_rate * searches[l].weight(), -static_cast<int>(l));
  };
  for (Index l = 0; l < layers.size(); ++l) {
    searches.emplace_back(layers[l], current.physical_to_logical(static_cast<int>(l)), options);
    look(l);
  }
  // The potential falls with every step, so this ends; the limit is for loads that fall by crumbs.
  const Index limit = 4 * layers.size() * static_cast<Index>(layers.front().slots());
  int transfers = 0;
  for (Index step = 0; step < limit && !queue.empty(); ++step) {
    const auto l = static_cast<Index>(-std::get<1>(queue.top()));
    queue.pop();
    if (options.max_transfers > 0 && transfers + next[l].transfers > options.max_transfers)
      continue;
    transfers += next[l].transfers;
    searches[l].apply(next[l]);
    look(l);
  }
  std::vector<std::vector<ExpertId>> maps;
  maps.reserve(layers.size());
  for (const LayerSearch& search : searches) {
    maps.push_back(search.map());
    keep_slots(maps.back(),
               current.physical_to_logical(static_cast<int>(maps.size()) - 1),
               layers.front().topology.ranks);
  }
  return maps;
}

}  // namespace ferry
