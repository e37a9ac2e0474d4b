#include <algorithm>
#include <tuple>

#include "ferry/core/error.h"
#include "ferry/expert_moves.h"

namespace ferry {

namespace {

/// The old slot that `rank` takes an expert from; `sends` counts what each rank already sends.
SlotId choose_source(const Placement& before,
                     ExpertId expert,
                     Rank rank,
                     int ranks_per_node,
                     const std::vector<int>& sends) {
  SlotId best = -1;
  std::tuple<int, int> best_key;
  for (const SlotId slot : before.replicas(expert)) {
    const Rank holder = before.rank_of(slot);
    const int distance = holder == rank                                     ? 0
                         : holder / ranks_per_node == rank / ranks_per_node ? 1
                                                                            : 2;
    const std::tuple<int, int> key(distance, sends[static_cast<std::size_t>(holder)]);
    if (best < 0 || key < best_key) {
      best = slot;
      best_key = key;
    }
  }
  return best;
}

/// Fills the lists of one rank's slots, but for its sends.
void plan_rank(const Placement& before,
               const Placement& after,
               Rank rank,
               int ranks_per_node,
               std::vector<int>& sends,
               LayerMoves& moves) {
  const int old_spr = before.slots_per_rank();
  const int new_spr = after.slots_per_rank();
  RankMoves& mine = moves.ranks[static_cast<std::size_t>(rank)];
  for (int local = 0; local < new_spr; ++local) {
    const SlotId slot = rank * new_spr + local;
    const ExpertId expert = after.expert_of(slot);
    if (expert < 0) continue;
    SlotId& source = moves.source[static_cast<std::size_t>(slot)];
    const SlotId same_place = rank * old_spr + local;
    if (local < old_spr && before.expert_of(same_place) == expert) {
      source = same_place;
      continue;
    }
    const auto arrived = std::find_if(mine.receives.begin(),
                                      mine.receives.end(),
                                      [&](const Transfer& t) { return t.expert == expert; });
    if (arrived != mine.receives.end()) {
      source = moves.source[static_cast<std::size_t>(rank * new_spr + arrived->local)];
      mine.duplicates.push_back({expert, arrived->local, local});
      continue;
    }
    source = choose_source(before, expert, rank, ranks_per_node, sends);
    const Rank holder = before.rank_of(source);
    const int there = source % old_spr;
    if (holder == rank) {
      mine.copies.push_back({expert, there, local});
    } else {
      mine.receives.push_back({expert, holder, local, there});
      ++sends[static_cast<std::size_t>(holder)];
    }
  }
}

}  // namespace

int LayerMoves::num_transfers() const {
  std::size_t total = 0;
  for (const RankMoves& rank : ranks) total += rank.receives.size();
  return static_cast<int>(total);
}

LayerMoves make_moves(const Placement& before, const Placement& after, int nodes) {
  FERRY_CHECK(before.ranks() == after.ranks() && before.experts() == after.experts() &&
                  nodes >= 1 && after.ranks() % nodes == 0,
              "{} and {} ranks, {} and {} experts, {} nodes",
              before.ranks(),
              after.ranks(),
              before.experts(),
              after.experts(),
              nodes);
  LayerMoves moves;
  moves.source.assign(static_cast<std::size_t>(after.slots()), -1);
  moves.ranks.resize(static_cast<std::size_t>(after.ranks()));
  std::vector<int> sends(moves.ranks.size(), 0);
  for (Rank rank = 0; rank < after.ranks(); ++rank)
    plan_rank(before, after, rank, after.ranks() / nodes, sends, moves);

  const auto order = [](const Transfer& a, const Transfer& b) {
    return std::tie(a.peer, a.expert) < std::tie(b.peer, b.expert);
  };
  for (Rank rank = 0; rank < after.ranks(); ++rank) {
    std::vector<Transfer>& receives = moves.ranks[static_cast<std::size_t>(rank)].receives;
    std::sort(receives.begin(), receives.end(), order);
    // Ranks rise, so each sender's list comes out by peer, then expert.
    for (const Transfer& t : receives)
      moves.ranks[static_cast<std::size_t>(t.peer)].sends.push_back(
          {t.expert, rank, t.peer_local, t.local});
  }
  return moves;
}

}  // namespace ferry
