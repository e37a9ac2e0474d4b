#include "ferry/balance/flow.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "balance/loads.h"
#include "ferry/planner.h"

namespace ferry {
namespace {

using Loads = std::vector<double>;

double max_of(const Loads& loads) { return *std::max_element(loads.begin(), loads.end()); }

TEST(Flow, WaterFillsTheLowestFirst) {
  Loads bases{5, 1, 2};
  EXPECT_DOUBLE_EQ(water_level(bases, 1), 2);
  bases = {5, 1, 2};
  EXPECT_DOUBLE_EQ(water_level(bases, 3), 3);
  bases = {5, 1, 2};
  EXPECT_DOUBLE_EQ(water_level(bases, 10), 6);
}

TEST(Flow, LevelsRanksThatEqualPartsLeaveUneven) {
  // Expert 0 on ranks 0 and 1, expert 1 on ranks 1 and 2: only together do they even out.
  const std::vector<ExpertId> map{0, 2, 0, 1, 1, 3};
  const Loads load{6, 6, 3, 0};
  EXPECT_EQ(sum_by_rank(even_loads(load, map), 3), (Loads{6, 6, 3}));
  for (const double rank : sum_by_rank(level_loads(load, map, 3), 3)) EXPECT_NEAR(rank, 5, 1e-3);
}

TEST(Flow, ASecondCopyOnARankCarriesNothing) {
  const std::vector<ExpertId> map{0, 0, 0, 1};
  const Loads carried = level_loads(Loads{4, 2}, map, 2);
  EXPECT_NEAR(carried[0] + carried[2], 4, 1e-9);
  EXPECT_EQ(carried[1], 0);
  EXPECT_NEAR(carried[0], 3, 1e-3);
}

TEST(Flow, NoReplicaOfALeveledExpertCouldHandLoadToAnother) {
  std::mt19937_64 random(21);
  for (int round = 0; round < 1000; ++round) {
    const int ranks = 2 + test::below(random, 8);
    const int experts = 1 + test::below(random, 30);
    const ExpertLoad load = test::random_load(1, experts, random);
    const int redundant = test::below(random, std::min(experts * (ranks - 1), 20) + 1);
    const Plan plan = plan_placement(load, std::nullopt, {ranks, 1, 1}, {.redundant = redundant});
    const auto map = plan.placement.physical_to_logical(0);
    const Loads carried = level_loads(load.layer(0), map, ranks);
    const Loads loads = sum_by_rank(carried, ranks);
    const double mean = std::accumulate(loads.begin(), loads.end(), 0.0) / ranks;
    EXPECT_LE(max_of(loads), max_of(sum_by_rank(even_loads(load.layer(0), map), ranks)) + 1e-9);
    for (ExpertId e = 0; e < experts; ++e) {
      double sum = 0;
      double most = 0;  // load of the fullest rank where a replica carries something
      double least = 1e300;
      for (const SlotId slot : plan.placement.logical_to_all_physical(0, e)) {
        const double mine = carried[static_cast<std::size_t>(slot)];
        const double rank = loads[static_cast<std::size_t>(plan.placement.layer(0).rank_of(slot))];
        EXPECT_GE(mine, 0);
        sum += mine;
        least = std::min(least, rank);
        if (mine > 1e-9 * mean) most = std::max(most, rank);
      }
      EXPECT_NEAR(sum, load.layer(0)[static_cast<std::size_t>(e)], 1e-9 * (1 + sum));
      EXPECT_LE(most - least, 0.002 * mean) << "round " << round << " expert " << e;
    }
  }
}

TEST(Flow, WeightedPlansReachTheBoundWithGroupsOnNodes) {
  const ExpertLoad load = test::zipf_load(12, 256, 1.0, 22);
  PlanOptions options{.redundant = 32};
  const Plan even = plan_placement(load, std::nullopt, {32, 4, 8}, options);
  options.weighted = true;
  const Plan weighted = plan_placement(load, std::nullopt, {32, 4, 8}, options);
  EXPECT_GT(weighted.balance.after, even.balance.after + 0.01);
  EXPECT_GE(weighted.balance.after, weighted.balance.bound - 0.001);
}

TEST(Flow, TokensPlacedByLeveledSharesLoadTheRanksAsPredicted) {
  constexpr int kTokens = 10000;  // for a load of 1
  const Placement maps({0, 2, 0, 1, 1, 3}, 4, 3);
  const Loads load{6, 6, 3, 0};
  const Loads carried = level_loads(load, maps.expert_of_slots(), 3);
  const std::vector<float> shares(carried.begin(), carried.end());
  std::vector<ExpertId> experts;
  for (ExpertId e = 0; e < 4; ++e)
    experts.insert(
        experts.end(), static_cast<std::size_t>(kTokens * load[static_cast<std::size_t>(e)]), e);
  const auto placed = [&](const Placement& by) {
    std::vector<SlotId> slots(experts.size());
    by.place(experts, 8, slots);
    Loads rows(3, 0.0);
    for (const SlotId slot : slots) rows[static_cast<std::size_t>(by.rank_of(slot))] += 1;
    return rows;
  };
  for (const double rows : placed(maps.choosing({.shares = shares})))
    EXPECT_NEAR(rows, 5 * kTokens, 500);
  EXPECT_NEAR(placed(maps)[2], 3 * kTokens, 500);
}

}  // namespace
}  // namespace ferry
