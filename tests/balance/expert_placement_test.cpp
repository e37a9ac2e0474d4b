#include "ferry/expert_placement.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "ferry/core/error.h"
#include "ferry/core/types.h"

namespace ferry {
namespace {

using Maps = std::vector<std::vector<ExpertId>>;

std::string refusal(const Maps& maps, int experts, int ranks) {
  try {
    ExpertPlacement(maps, experts, ranks);
  } catch (const ConfigError& e) {
    return e.what();
  }
  return "accepted";
}

TEST(ExpertPlacement, MapsAreEachOthersInverse) {
  const ExpertPlacement p({{0, 1, 2, 0}, {2, -1, 0, 1}}, 3, 2);
  EXPECT_EQ(p.layers(), 2);
  EXPECT_EQ(p.slots(), 4);
  EXPECT_EQ(p.replica_count(0, 0), 2);
  EXPECT_EQ(p.replica_count(1, 0), 1);
  for (int l = 0; l < p.layers(); ++l) {
    int filled = 0;
    for (ExpertId e = 0; e < p.experts(); ++e) {
      for (const SlotId s : p.logical_to_all_physical(l, e)) {
        EXPECT_EQ(p.physical_to_logical(l)[static_cast<std::size_t>(s)], e);
        ++filled;
      }
    }
    EXPECT_EQ(filled, l == 0 ? 4 : 3);
  }
}

TEST(ExpertPlacement, IsMadeAgainOfItsMapsAndOfItsLayers) {
  const Maps maps = {{0, 1, 2, 0}, {2, -1, 0, 1}};
  const ExpertPlacement p(maps, 3, 2);
  EXPECT_EQ(p.maps(), maps);
  EXPECT_EQ(ExpertPlacement(std::vector<Placement>{p.layer(0), p.layer(1)}), p);
}

TEST(ExpertPlacement, RefusesMapsThatCannotBeNamingTheLayer) {
  EXPECT_EQ(refusal({{0, 1}, {0, 0}}, 2, 2), "layer 1: placement: expert 1 has no slot");
  EXPECT_EQ(refusal({{0, 1}, {0, 2}}, 2, 2), "layer 1: placement: expert 2 is outside 0..1");
  EXPECT_EQ(refusal({{0, 1}, {0, -2}}, 2, 2), "layer 1: placement: expert -2 is outside 0..1");
  EXPECT_EQ(refusal({{0, 1, 0}}, 2, 2), "layer 0: placement: 3 slots do not divide by 2 ranks");
  EXPECT_EQ(refusal({{0, 1}, {0, 1, 0, 1}}, 2, 2), "placement: layer 1 has 4 slots, layer 0 has 2");
  EXPECT_EQ(refusal({}, 2, 2), "placement: no layers");
  EXPECT_EQ(refusal({{}}, 2, 2), "layer 0: placement: 0 slots do not divide by 2 ranks");
  EXPECT_EQ(refusal({{0}}, 0, 1), "placement: 0 experts on 1 ranks");
}

TEST(ExpertPlacement, HashTellsPlacementsApart) {
  const ExpertPlacement a({{0, 1, 2, 0}}, 3, 2);
  EXPECT_EQ(a.hash(), ExpertPlacement({{0, 1, 2, 0}}, 3, 2).hash());
  EXPECT_EQ(a, ExpertPlacement({{0, 1, 2, 0}}, 3, 2));
  EXPECT_NE(a.hash(), ExpertPlacement({{1, 0, 2, 0}}, 3, 2).hash());
  EXPECT_NE(a.hash(), ExpertPlacement({{0, 1, 2, 0}}, 3, 4).hash());
  EXPECT_NE(ExpertPlacement({{0, 1}, {1, 0}}, 2, 1).hash(),
            ExpertPlacement({{1, 0}, {0, 1}}, 2, 1).hash());
}

TEST(ExpertPlacement, RankChoicePrefersTheOwnReplicaThenTheNodesAndStaysFair) {
  // Expert 0 on ranks 0 and 4 (one on each node), expert 1 only on rank 1, expert 2 everywhere
  // else.
  const ExpertPlacement p({{0, 1, 2, 2, 0, 2, 2, 2}}, 3, 8);
  const std::vector<SlotId> table = p.logical_to_rank_dispatch_physical(0, 2);
  const auto slot = [&](int e, int r) { return table[static_cast<std::size_t>(e * 8 + r)]; };
  for (int r = 0; r < 8; ++r) {
    EXPECT_EQ(slot(0, r), r < 4 ? 0 : 4);
    EXPECT_EQ(slot(1, r), 1);
  }
  for (const int r : {2, 3, 5, 6, 7}) EXPECT_EQ(slot(2, r), r);
  EXPECT_EQ(slot(2, 0) / 4, 0);
  EXPECT_EQ(slot(2, 1) / 4, 0);
}

TEST(ExpertPlacement, RankChoiceGivesNoReplicaMoreThanItsShare) {
  for (int ranks = 1; ranks <= 12; ++ranks) {
    const ExpertPlacement p = ExpertPlacement::identity(1, 5, ranks, 3 * (ranks - 1));
    for (int nodes = 1; nodes <= ranks; ++nodes) {
      if (ranks % nodes != 0) continue;
      const std::vector<SlotId> table = p.logical_to_rank_dispatch_physical(0, nodes);
      for (ExpertId e = 0; e < p.experts(); ++e) {
        const auto row = table.begin() + e * ranks;
        for (const SlotId s : p.logical_to_all_physical(0, e)) {
          EXPECT_LE(std::count(row, row + ranks, s), ceil_div(ranks, p.replica_count(0, e)));
          EXPECT_EQ(row[p.layer(0).rank_of(s)], s);
        }
      }
    }
  }
}

TEST(ExpertPlacement, UnevenSlotsAreAllowedRefusedOrAvoided) {
  EXPECT_EQ(settle_redundant(7, 3, 1, UnevenSlots::allow_empty), 1);
  EXPECT_EQ(settle_redundant(7, 3, 2, UnevenSlots::strict), 2);
  EXPECT_THROW(settle_redundant(7, 3, 1, UnevenSlots::strict), ConfigError);
  EXPECT_EQ(settle_redundant(7, 3, 4, UnevenSlots::adjust), 2);
  EXPECT_THROW(settle_redundant(7, 3, 1, UnevenSlots::adjust), ConfigError);
  EXPECT_THROW(settle_redundant(7, 3, -1, UnevenSlots::allow_empty), ConfigError);
  EXPECT_EQ(settle_redundant(7, 3, 14, UnevenSlots::allow_empty), 14);
  EXPECT_THROW(settle_redundant(7, 3, 15, UnevenSlots::allow_empty), ConfigError);
  EXPECT_THROW(settle_redundant(7, 1, 1, UnevenSlots::allow_empty), ConfigError);
}

TEST(ExpertPlacement, SharesArePartOfWhatRanksCompare) {
  const ExpertPlacement plain = ExpertPlacement::identity(2, 3, 2, 1);
  const std::vector<std::vector<float>> shares(2, {1, 1, 1, 3});
  const ExpertPlacement weighted = plain.choosing(shares);
  EXPECT_EQ(weighted.layer(1).part(0, 1), 0.75);
  EXPECT_EQ(weighted.hash(), plain.choosing(shares).hash());
  EXPECT_NE(weighted.hash(), plain.hash());
  EXPECT_THROW(plain.choosing({{1, 1, 1, 3}}), ConfigError);
  EXPECT_THROW(plain.choosing({{1, 1, 1, 3}, {1, 1}}), ConfigError);
}

TEST(ExpertPlacement, TopologyMustDivide) {
  EXPECT_NO_THROW(check_topology({8, 2, 4}, 12));
  EXPECT_THROW(check_topology({8, 3, 1}, 12), ConfigError);
  EXPECT_THROW(check_topology({8, 2, 5}, 12), ConfigError);
  EXPECT_THROW(check_topology({0, 1, 1}, 12), ConfigError);
}

}  // namespace
}  // namespace ferry
