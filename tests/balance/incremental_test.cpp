#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <utility>

#include "balance/loads.h"
#include "ferry/planner.h"

namespace ferry {
namespace {

constexpr Topology kRanks{32, 1, 1};
constexpr int kRedundant = 32;

Plan greedy(const ExpertLoad& load, const std::optional<ExpertPlacement>& current = {}) {
  return plan_placement(load, current, kRanks, {.redundant = kRedundant});
}

PlanOptions incremental() { return {.policy = Policy::incremental, .redundant = kRedundant}; }

/// A load that has drifted: some experts have traded their popularity.
ExpertLoad drifted(ExpertLoad load, int trades, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  for (int l = 0; l < load.layers; ++l) {
    for (int i = 0; i < trades; ++i)
      std::swap(load.layer(l)[static_cast<std::size_t>(test::below(random, load.experts))],
                load.layer(l)[static_cast<std::size_t>(test::below(random, load.experts))]);
  }
  return load;
}

TEST(Incremental, ComesNearAFreshPlanWithAQuarterOfTheMovesOfOneFromNothing) {
  const ExpertLoad old_load = test::zipf_load(8, 256, 1.0, 11);
  const ExpertPlacement current = greedy(old_load).placement;
  for (const int trades : {5, 20, 60}) {
    const ExpertLoad load = drifted(old_load, trades, 12);
    const Plan fresh = greedy(load, current);  // keeps what it can in place
    const Plan from_nothing = plan_placement(
        load, current, kRanks, {.policy = Policy::deepseek, .redundant = kRedundant});
    const Plan plan = plan_placement(load, current, kRanks, incremental());
    EXPECT_GE(plan.balance.after, fresh.balance.after - 0.02) << trades;
    EXPECT_LT(plan.transfers, fresh.transfers) << trades;
    EXPECT_LE(4 * plan.transfers, from_nothing.transfers) << trades;
  }
}

TEST(Incremental, ComesNearAFreshPlanWithAQuarterOfItsMovesAlsoFromTheIdentity) {
  const ExpertLoad load = test::zipf_load(16, 256, 1.0, 13);
  const Plan fresh = greedy(load);
  PlanOptions options = incremental();
  for (const bool weighted : {false, true}) {
    options.weighted = weighted;
    const Plan plan = plan_placement(load, std::nullopt, kRanks, options);
    EXPECT_GE(plan.balance.after, fresh.balance.after - 0.02);
    EXPECT_LE((weighted ? 5 : 4) * plan.transfers, fresh.transfers) << weighted;
    EXPECT_EQ(plan.duplicates, 0);
  }
}

TEST(Incremental, LeavesAGoodPlacementAlone) {
  const ExpertLoad load = test::zipf_load(4, 256, 1.0, 14);
  const ExpertPlacement current = greedy(load).placement;
  const Plan plan = plan_placement(load, current, kRanks, incremental());
  EXPECT_EQ(plan.transfers, 0);
  EXPECT_EQ(plan.placement, current);
}

TEST(Incremental, StaysWithinItsBudgetAndGainsWithIt) {
  const ExpertLoad load = test::zipf_load(4, 256, 1.0, 15);
  double before = plan_placement(load, std::nullopt, kRanks, incremental()).balance.before;
  for (const int budget : {4, 20, 60, 150}) {
    PlanOptions options = incremental();
    options.max_transfers = budget;
    const Plan plan = plan_placement(load, std::nullopt, kRanks, options);
    EXPECT_LE(plan.transfers, budget);
    EXPECT_GT(plan.balance.after, before);
    before = plan.balance.after;
  }
}

TEST(Incremental, StaysWithinItsBudgetOfEachPairOfRanks) {
  std::mt19937_64 random(16);
  for (int round = 0; round < 200; ++round) {
    const ExpertLoad load = test::random_load(2, 24, random);
    const PlanOptions options{
        .policy = Policy::incremental, .redundant = 6, .max_transfers_per_pair = 1};
    const Plan plan = plan_placement(load, std::nullopt, {6, 1, 1}, options);
    for (const LayerMoves& layer : plan.moves) {
      for (const RankMoves& rank : layer.ranks) {
        std::map<Rank, int> from;
        for (const Transfer& t : rank.receives) EXPECT_LE(++from[t.peer], 1);
      }
    }
  }
}

TEST(Incremental, SlotsThatKeepTheirExpertStayInPlace) {
  const ExpertLoad load = test::zipf_load(4, 256, 1.0, 17);
  const ExpertPlacement current = greedy(load).placement;
  const Plan plan = plan_placement(drifted(load, 20, 18), current, kRanks, incremental());
  for (const LayerMoves& layer : plan.moves)
    for (const RankMoves& rank : layer.ranks) EXPECT_TRUE(rank.copies.empty());
}

TEST(Incremental, WithGroupsOnNodesNothingLeavesItsNode) {
  const Topology t{32, 4, 8};
  const ExpertLoad load = test::zipf_load(4, 256, 1.0, 19);
  const ExpertPlacement kept =
      plan_placement(load, std::nullopt, t, {.redundant = kRedundant}).placement;
  const ExpertPlacement scattered = ExpertPlacement::identity(4, 256, 32, kRedundant);
  for (const ExpertPlacement& current : {kept, scattered}) {
    const Plan plan = plan_placement(drifted(load, 20, 20), current, t, incremental());
    EXPECT_GT(plan.transfers, 0);
    EXPECT_GT(plan.balance.after, plan.balance.before);
    for (int l = 0; l < 4; ++l) {
      for (ExpertId e = 0; e < 256; ++e) {
        for (const SlotId slot : plan.placement.logical_to_all_physical(l, e)) {
          const auto before = current.logical_to_all_physical(l, e);
          const int node = plan.placement.layer(l).rank_of(slot) / 8;
          EXPECT_TRUE(
              std::any_of(before.begin(),
                          before.end(),
                          [&](SlotId s) { return current.layer(l).rank_of(s) / 8 == node; }))
              << "expert " << e << " came to node " << node;
        }
      }
    }
  }
}

}  // namespace
}  // namespace ferry
