#include "ferry/balance/moves.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "balance/loads.h"

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
