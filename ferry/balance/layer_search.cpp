#include "ferry/balance/layer_search.h"

#include <algorithm>
#include <numeric>

#include "ferry/balance/flow.h"

namespace ferry {

namespace {

constexpr std::size_t kRanksTried = 16;   // that load may go to
constexpr std::size_t kMoversTried = 2;   // experts of the hot rank to replicate
constexpr std::size_t kDetoursTried = 2;  // ranks at the end of a detour
constexpr int kRoundsAtFirst = 50;        // of leveling
constexpr int kRoundsAfterAStep = 4;

}  // namespace

LayerSearch::LayerSearch(const LayerProblem& p,
                         std::span<const ExpertId> current,
                         const Options& options)
    : p_(p),
      pair_limit_(options.pair_limit),
      ranks_(static_cast<Index>(p.topology.ranks)),
      map_(current.begin(), current.end()),
      carried_(even_loads(p.load, current)),
      load_(sum_by_rank(carried_, p.topology.ranks)),
      rank_of_(map_.size()),
      holds_(ranks_ * p.load.size(), 0),
      slots_of_(p.load.size()),
      pairs_(pair_limit_ > 0 ? ranks_ * ranks_ : 0, 0),
      delta_(ranks_, 0.0),
      potential_(ranks_, 0.0) {
  for (SlotId slot = 0; slot < static_cast<SlotId>(map_.size()); ++slot) {
    rank_of_[static_cast<Index>(slot)] = static_cast<Index>(slot / p.slots_per_rank);
    const ExpertId e = expert_at(slot);
    if (e < 0) continue;
    ++holds(rank_of(slot), e);
    slots_of_[static_cast<Index>(e)].push_back(slot);
    ++filled_;
  }
  held_at_first_ = holds_;
  mean_ = std::accumulate(load_.begin(), load_.end(), 0.0) / static_cast<double>(ranks_);
  inverse_mean_ = mean_ > 0 ? 1 / mean_ : 0;
  good_enough_ = mean_ / std::max(best_balancedness(p) - options.tolerance, 1e-9);
  if (p_.weighted) level(kRoundsAtFirst);
}

Step LayerSearch::best_step() {
  Step best;
  const auto hot = static_cast<Index>(std::max_element(load_.begin(), load_.end()) - load_.begin());
  if (load_[hot] <= good_enough_) return best;
  for (const Index width : {1, 4}) {
    search(hot, width, best);
    if (best.found()) break;
  }
  return best;
}

/// The wider, the more ways are looked at.
void LayerSearch::search(Index hot, Index width, Step& best) {
  survey(hot, width * kRanksTried);
  std::vector<SlotId> movers;
  for (SlotId slot = first_slot(hot); slot < first_slot(hot + 1); ++slot)
    if (expert_at(slot) >= 0) movers.push_back(slot);
  std::stable_sort(
      movers.begin(), movers.end(), [&](SlotId a, SlotId b) { return carried(a) > carried(b); });
  for (const Index cool : cool_)
    for (const SlotId from : movers) consider_exchanges(from, cool, best);
  movers.resize(std::min(width * kMoversTried, movers.size()));
  for (const SlotId from : movers) {
    for (const SlotId spare : spares_) consider_replicating(from, spare, best);
    consider_detours(from, width * kDetoursTried, best);
  }
}

Step LayerSearch::saving_step() {
  Step best;
  const double limit = std::max(good_enough_, *std::max_element(load_.begin(), load_.end()));
  for (SlotId from = 0; from < static_cast<SlotId>(map_.size()); ++from) {
    const ExpertId mover = expert_at(from);
    const Index rank = rank_of(from);
    if (mover < 0 || held_at_first(rank, mover)) continue;  // it has not travelled
    for (SlotId to = 0; to < static_cast<SlotId>(map_.size()); ++to) {
      const ExpertId other = expert_at(to);
      const int cost = transfers(to, mover) + transfers(from, other) - transfers(from, mover) -
                       transfers(to, other);
      if (cost >= best.transfers || !same_domain(rank, rank_of(to))) continue;
      const double difference = carried(from) - carried(to);
      if (load_[rank] - difference > limit || load_[rank_of(to)] + difference > limit ||
          !can_take(rank_of(to), mover) || (other >= 0 && !can_take(rank, other)))
        continue;
      best = {from, to, -1, true, cost};
    }
  }
  return best;
}

/// Where load of the hot rank may go.
void LayerSearch::survey(Index hot, Index most) {
  for (Index r = 0; r < ranks_; ++r) potential_[r] = potential(load_[r]);
  cool_.clear();
  for (Index r = 0; r < ranks_; ++r) {
    if (r != hot && same_domain(r, hot)) cool_.push_back(r);
  }
  std::stable_sort(
      cool_.begin(), cool_.end(), [&](Index a, Index b) { return load_[a] < load_[b]; });
  spares_.clear();
  for (const Index rank : cool_) {
    SlotId cheapest = -1;
    for (SlotId slot = first_slot(rank); slot < first_slot(rank + 1); ++slot) {
      if (can_give_up(slot) && (cheapest < 0 || carried(slot) < carried(cheapest))) cheapest = slot;
    }
    if (cheapest >= 0) spares_.push_back(cheapest);
    if (spares_.size() == most) break;
  }
  cool_.resize(std::min(most, cool_.size()));
}

void LayerSearch::apply(const Step& step) {
  const ExpertId given_up = step.via >= 0 ? expert_at(step.via) : -1;
  const ExpertId mover = expert_at(step.from);
  const ExpertId other = expert_at(step.to);
  if (given_up >= 0) drop(step.via);
  if (other >= 0) drop(step.to);
  if (step.exchange) drop(step.from);
  const SlotId for_other = step.exchange ? step.from : step.via;
  if (other >= 0 && for_other >= 0) place(for_other, other);
  place(step.to, mover);
  load_ = sum_by_rank(carried_, p_.topology.ranks);
  for (const ExpertId e : {given_up, other, mover})
    if (e >= 0) settle(e);
  if (p_.weighted) level(kRoundsAfterAStep);
}

/// Any rank that held the expert at first may come to send it, so all of them count.
bool LayerSearch::allowed(Index rank, ExpertId e) const {
  if (pair_limit_ == 0 || held_at_first(rank, e)) return true;
  for (Index source = 0; source < ranks_; ++source) {
    if (held_at_first(source, e) && pairs_[source * ranks_ + rank] >= pair_limit_) return false;
  }
  return true;
}

void LayerSearch::charge(Index rank, ExpertId e) {
  if (pair_limit_ == 0 || held_at_first(rank, e)) return;
  for (Index source = 0; source < ranks_; ++source)
    if (held_at_first(source, e)) ++pairs_[source * ranks_ + rank];
}

bool LayerSearch::can_give_up(SlotId slot) const {
  const ExpertId e = expert_at(slot);
  return e < 0 ? filled_ < p_.replicas : slots_of_[static_cast<Index>(e)].size() > 1;
}

void LayerSearch::consider_exchanges(SlotId from, Index cool, Step& best) {
  const ExpertId mover = expert_at(from);
  if (!can_take(cool, mover)) return;
  const Index hot = rank_of(from);
  const double before = potential_[hot] + potential_[cool];
  for (SlotId to = first_slot(cool); to < first_slot(cool + 1); ++to) {
    const ExpertId other = expert_at(to);
    const double difference = carried(from) - carried(to);
    if (difference <= 0 || (other >= 0 && !can_take(hot, other))) continue;
    const double gain =
        before - potential(load_[hot] - difference) - potential(load_[cool] + difference);
    if (gain <= kLeastGain) continue;
    const int cost = transfers(to, mover) + transfers(from, other) - transfers(from, mover) -
                     transfers(to, other);
    keep_better({from, to, -1, true, cost, gain}, best);
  }
}

void LayerSearch::consider_replicating(SlotId from, SlotId to, Step& best) {
  const ExpertId mover = expert_at(from);
  const ExpertId given_up = expert_at(to);
  if (!can_take(rank_of(to), mover)) return;
  if (given_up >= 0) spread(given_up, to, -1);
  spread(mover, -1, to);
  keep_better({from, to, -1, false, transfers(to, mover) - transfers(to, given_up), take_gain()},
              best);
}

/// The coolest ranks often have no slot to give up: one of their experts moves to a slot elsewhere
/// that can be given up, and a replica of the hot expert takes its place.
void LayerSearch::consider_detours(SlotId from, Index most, Step& best) {
  const ExpertId mover = expert_at(from);
  Index tried = 0;
  for (const Index rank : cool_) {
    if (!can_take(rank, mover)) continue;
    if (++tried > most) return;
    for (SlotId to = first_slot(rank); to < first_slot(rank + 1); ++to) {
      if (expert_at(to) < 0) continue;
      for (const SlotId via : spares_) consider_detour(from, to, via, best);
    }
  }
}

void LayerSearch::consider_detour(SlotId from, SlotId to, SlotId via, Step& best) {
  const ExpertId mover = expert_at(from);
  const ExpertId displaced = expert_at(to);
  const ExpertId given_up = expert_at(via);
  if (rank_of(via) == rank_of(to) || given_up == mover || given_up == displaced ||
      load_[rank_of(via)] - carried(via) + carried(to) >= load_[rank_of(from)] ||
      !can_take(rank_of(via), displaced))
    return;
  if (given_up >= 0) spread(given_up, via, -1);
  add(rank_of(to), -carried(to));
  add(rank_of(via), carried(to));
  spread(mover, -1, to);
  const int cost = transfers(to, mover) + transfers(via, displaced) - transfers(to, displaced) -
                   transfers(via, given_up);
  keep_better({from, to, via, false, cost, take_gain()}, best);
}

/// Adds what changes when the replicas of `e` are those now, without one slot, with another.
void LayerSearch::spread(ExpertId e, SlotId without, SlotId with) {
  sites_.clear();
  const auto consider = [&](SlotId slot) {
    const Index rank = rank_of(slot);
    // A second copy on a rank takes its part of equal parts, but nothing where ranks are leveled.
    const bool second =
        p_.weighted &&
        std::any_of(sites_.begin(), sites_.end(), [&](const Site& s) { return s.rank == rank; });
    if (!second) sites_.push_back({slot, rank, 0});
  };
  for (const SlotId slot : slots_of_[static_cast<Index>(e)]) {
    add(rank_of(slot), -carried(slot));
    if (slot != without) consider(slot);
  }
  if (with >= 0) consider(with);
  const double total = p_.load[static_cast<Index>(e)];
  if (p_.weighted) {
    bases_.clear();
    for (const Site& site : sites_) bases_.push_back(load_[site.rank] + delta_[site.rank]);
    const double level = water_level(bases_, total);
    for (Site& site : sites_)
      site.carries = std::max(0.0, level - load_[site.rank] - delta_[site.rank]);
  } else {
    for (Site& site : sites_) site.carries = total / static_cast<double>(sites_.size());
  }
  for (const Site& site : sites_) add(site.rank, site.carries);
}

/// The potential gained by all that was added; clears it.
double LayerSearch::take_gain() {
  double gain = 0;
  for (const Index rank : touched_) {  // a rank listed twice has no delta the second time
    if (delta_[rank] == 0) continue;
    gain += potential_[rank] - potential(load_[rank] + delta_[rank]);
    delta_[rank] = 0;
  }
  touched_.clear();
  return gain;
}

/// Replicas of `e` carry what spread() finds.
void LayerSearch::settle(ExpertId e) {
  spread(e, -1, -1);
  for (const SlotId slot : slots_of_[static_cast<Index>(e)]) carried_[static_cast<Index>(slot)] = 0;
  for (const Site& site : sites_) carried_[static_cast<Index>(site.slot)] = site.carries;
  for (const Index rank : touched_) {
    load_[rank] += delta_[rank];
    delta_[rank] = 0;
  }
  touched_.clear();
}

void LayerSearch::level(int rounds) {
  for (int round = 0; round < rounds; ++round) {
    for (ExpertId e = 0; e < p_.experts(); ++e)
      if (slots_of_[static_cast<Index>(e)].size() > 1) settle(e);
  }
}

void LayerSearch::drop(SlotId slot) {
  const ExpertId e = expert_at(slot);
  --holds(rank_of(slot), e);
  std::erase(slots_of_[static_cast<Index>(e)], slot);
  map_[static_cast<Index>(slot)] = -1;
  carried_[static_cast<Index>(slot)] = 0;
  --filled_;
}

void LayerSearch::place(SlotId slot, ExpertId e) {
  charge(rank_of(slot), e);
  ++holds(rank_of(slot), e);
  slots_of_[static_cast<Index>(e)].push_back(slot);
  map_[static_cast<Index>(slot)] = e;
  ++filled_;
}

}  // namespace ferry
