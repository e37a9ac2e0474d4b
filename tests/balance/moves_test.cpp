#include <gtest/gtest.h>

#include <algorithm>

#include "balance/loads.h"
#include "ferry/core/types.h"
#include "ferry/expert_moves.h"

namespace ferry {
namespace {

/// What the slots hold once the per-rank lists have been carried out as a transport would: all
/// reads from the old slots first, then the duplicates.
std::vector<ExpertId> carried_out(const Placement& before,
                                  const Placement& after,
                                  const LayerMoves& moves) {
  const int old_spr = before.slots_per_rank();
  const int spr = after.slots_per_rank();
  std::vector<ExpertId> held(static_cast<std::size_t>(after.slots()), -1);
  const auto slot = [&](Rank r, int local) -> ExpertId& {
    return held[static_cast<std::size_t>(r * spr + local)];
  };
  for (Rank r = 0; r < after.ranks(); ++r) {
    for (int local = 0; local < spr; ++local)
      if (local < old_spr &&
          moves.source[static_cast<std::size_t>(r * spr + local)] == r * old_spr + local)
        slot(r, local) = before.expert_of(r * old_spr + local);
  }
  for (Rank r = 0; r < after.ranks(); ++r) {
    const RankMoves& mine = moves.ranks[static_cast<std::size_t>(r)];
    for (const Transfer& t : mine.sends)
      slot(t.peer, t.peer_local) = before.expert_of(r * old_spr + t.local);
    for (const LocalCopy& c : mine.copies) slot(r, c.to) = before.expert_of(r * old_spr + c.from);
  }
  for (Rank r = 0; r < after.ranks(); ++r)
    for (const LocalCopy& c : moves.ranks[static_cast<std::size_t>(r)].duplicates)
      slot(r, c.to) = slot(r, c.from);
  return held;
}

std::vector<ExpertId> random_map(int experts, int slots, std::mt19937_64& random) {
  std::vector<ExpertId> map(static_cast<std::size_t>(slots));
  for (int s = 0; s < slots; ++s)
    map[static_cast<std::size_t>(s)] = s < experts ? s : test::below(random, experts + 1) - 1;
  for (int s = slots - 1; s > 0; --s)
    std::swap(map[static_cast<std::size_t>(s)],
              map[static_cast<std::size_t>(test::below(random, s + 1))]);
  return map;
}

TEST(Moves, CarriedOutGiveTheNewPlacement) {
  std::mt19937_64 random(2);
  for (int round = 0; round < 3000; ++round) {
    const int nodes = 1 + test::below(random, 3);
    const int ranks = nodes * (1 + test::below(random, 4));
    const int experts = 1 + test::below(random, 20);
    const auto shape = [&] {
      const int spr = static_cast<int>(ceil_div(experts, ranks)) + test::below(random, 3);
      return Placement(random_map(experts, spr * ranks, random), experts, ranks);
    };
    const Placement before = shape();
    const Placement after = shape();
    const LayerMoves moves = make_moves(before, after, nodes);
    const auto wanted = after.expert_of_slots();
    EXPECT_EQ(carried_out(before, after, moves),
              std::vector<ExpertId>(wanted.begin(), wanted.end()));
    std::size_t sends = 0;
    for (Rank r = 0; r < ranks; ++r) {
      const RankMoves& mine = moves.ranks[static_cast<std::size_t>(r)];
      sends += mine.sends.size();
      std::vector<ExpertId> received;
      for (const Transfer& t : mine.receives) {
        received.push_back(t.expert);
        const auto& theirs = moves.ranks[static_cast<std::size_t>(t.peer)].sends;
        EXPECT_EQ(std::count_if(theirs.begin(),
                                theirs.end(),
                                [&](const Transfer& s) {
                                  return s.peer == r && s.expert == t.expert &&
                                         s.local == t.peer_local && s.peer_local == t.local;
                                }),
                  1);
        for (const SlotId s : before.replicas(t.expert))
          EXPECT_NE(before.rank_of(s), r) << "travelled to a rank that has it";
      }
      std::sort(received.begin(), received.end());
      EXPECT_EQ(std::adjacent_find(received.begin(), received.end()), received.end())
          << "an expert travelled twice to one rank";
    }
    EXPECT_EQ(sends, static_cast<std::size_t>(moves.num_transfers()));
    for (SlotId s = 0; s < after.slots(); ++s) {
      const SlotId source = moves.source[static_cast<std::size_t>(s)];
      EXPECT_EQ(source < 0 ? -1 : before.expert_of(source), after.expert_of(s));
    }
  }
}

/// All layers' slots with what is in them, while they pass from one placement to another. A layer's
/// new content is staged first; the layer switches at once when all of it is there.
class Slots {
 public:
  Slots(int layers, int experts, int ranks, std::mt19937_64& random)
      : experts_(experts), ranks_(ranks), spr_(2 + test::below(random, 3)) {
    spr_ += static_cast<int>(ceil_div(experts, ranks));
    maps_ = random_placement(layers, random);
    for (int l = 0; l < layers; ++l) {
      content_.emplace_back();
      for (const ExpertId e : maps_[static_cast<std::size_t>(l)])
        content_.back().push_back(weights_of(l, e));
    }
  }

  std::vector<std::vector<ExpertId>> random_placement(int layers, std::mt19937_64& random) const {
    std::vector<std::vector<ExpertId>> maps;
    for (int l = 0; l < layers; ++l) maps.push_back(random_map(experts_, spr_ * ranks_, random));
    return maps;
  }

  ExpertPlacement placement() const { return {maps_, experts_, ranks_}; }

  /// Carries out the moves of one layer; with `staged_only`, drops them again before the switch.
  void move(int layer, const Placement& after, const LayerMoves& moves, bool staged_only) {
    std::vector<std::vector<int>>& now = content_[static_cast<std::size_t>(layer)];
    std::vector<std::vector<int>> next(now.size(), weights_of(layer, -1));
    for (SlotId slot = 0; slot < after.slots(); ++slot)
      if (moves.source[static_cast<std::size_t>(slot)] == slot) at(next, slot) = at(now, slot);
    for (Rank r = 0; r < ranks_; ++r) {
      const RankMoves& mine = moves.ranks[static_cast<std::size_t>(r)];
      for (const Transfer& t : mine.sends)
        at(next, t.peer * spr_ + t.peer_local) = at(now, r * spr_ + t.local);
      for (const LocalCopy& c : mine.copies) at(next, r * spr_ + c.to) = at(now, r * spr_ + c.from);
    }
    if (staged_only) return;
    for (Rank r = 0; r < ranks_; ++r)
      for (const LocalCopy& c : moves.ranks[static_cast<std::size_t>(r)].duplicates)
        at(next, r * spr_ + c.to) = at(next, r * spr_ + c.from);
    now = std::move(next);
    const auto map = after.expert_of_slots();
    maps_[static_cast<std::size_t>(layer)].assign(map.begin(), map.end());
  }

  void expect_every_slot_holds_what_the_map_says() const {
    for (std::size_t l = 0; l < maps_.size(); ++l) {
      for (std::size_t slot = 0; slot < maps_[l].size(); ++slot)
        ASSERT_EQ(content_[l][slot], weights_of(static_cast<int>(l), maps_[l][slot]))
            << "layer " << l << " slot " << slot;
    }
  }

 private:
  static std::vector<int> weights_of(int layer, ExpertId e) {
    if (e < 0) return {};
    return {layer, e, 1000 * layer + e, -e};
  }

  static std::vector<int>& at(std::vector<std::vector<int>>& slots, SlotId slot) {
    return slots[static_cast<std::size_t>(slot)];
  }

  int experts_;
  int ranks_;
  int spr_;
  std::vector<std::vector<ExpertId>> maps_;             // [layer][P]
  std::vector<std::vector<std::vector<int>>> content_;  // [layer][P]
};

TEST(Moves, TransitionsEndWithEveryExpertInItsSlotAlsoWhenANewerPlanInterruptsThem) {
  std::mt19937_64 random(9);
  constexpr int kLayers = 3;
  for (int transitions = 0; transitions < 10000;) {
    const int nodes = 1 + test::below(random, 2);
    const int ranks = nodes * (1 + test::below(random, 4));
    const int experts = 1 + test::below(random, 16);
    Slots slots(kLayers, experts, ranks, random);
    for (int plan = 0; plan < 20; ++plan, ++transitions) {
      // From where the slots are, which after an interruption is neither the old nor the new plan.
      const ExpertPlacement before = slots.placement();
      const ExpertPlacement after(slots.random_placement(kLayers, random), experts, ranks);
      const int interrupted = test::below(random, 2 * kLayers);  // kLayers and more: not at all
      for (int l = 0; l < std::min(kLayers, interrupted + 1); ++l) {
        slots.move(l,
                   after.layer(l),
                   make_moves(before.layer(l), after.layer(l), nodes),
                   l == interrupted);
        slots.expect_every_slot_holds_what_the_map_says();
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST(Moves, NothingToDoMovesNothing) {
  const Placement p = Placement::identity(7, 3, 4);
  const LayerMoves moves = make_moves(p, p);
  EXPECT_EQ(moves.num_transfers(), 0);
  for (const RankMoves& rank : moves.ranks) EXPECT_TRUE(rank.copies.empty());
}

TEST(Moves, TakeTheNodesOwnReplicaAndSpreadOverSenders) {
  // Expert 0 lies on ranks 0 and 1 of node 0 and on rank 4 of node 1.
  const Placement before({0, 0, 1, 2, 0, 3, 4, 5}, 6, 8);
  const Placement after({1, 2, 0, 0, 3, 4, 5, 0}, 6, 8);
  const LayerMoves moves = make_moves(before, after, 2);
  EXPECT_EQ(moves.source[2], 0);
  EXPECT_EQ(moves.source[3], 1);
  EXPECT_EQ(moves.source[7], 4);
}

TEST(Moves, AnExpertNeededTwiceOnARankTravelsOnce) {
  const Placement before({0, 1, 2, 2}, 3, 2);
  const Placement after({0, 1, 0, 2}, 3, 2);
  const Placement twice({2, 1, 0, 0}, 3, 2);
  EXPECT_EQ(make_moves(before, after).num_transfers(), 1);
  const LayerMoves moves = make_moves(before, twice);
  EXPECT_EQ(moves.ranks[1].receives.size(), 1U);
  EXPECT_EQ(moves.ranks[1].duplicates.size(), 1U);
  EXPECT_EQ(moves.source[2], 0);
  EXPECT_EQ(moves.source[3], 0);
}

}  // namespace
}  // namespace ferry
