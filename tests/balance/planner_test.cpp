#include "ferry/planner.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

#include "balance/loads.h"
#include "ferry/core/error.h"

namespace ferry {
namespace {

using Map = std::vector<ExpertId>;

Map map_of(const Plan& plan, int layer) {
  const auto map = plan.placement.physical_to_logical(layer);
  return {map.begin(), map.end()};
}

ExpertLoad readme_load() {
  ExpertLoad load(2, 12);
  load.counts = {90, 132, 40,  61, 104, 165, 39,  4,   73,  56, 183, 86,
                 20, 107, 104, 64, 19,  197, 187, 157, 172, 86, 16,  27};
  return load;
}

Plan plan_with(Policy policy, const ExpertLoad& load, const Topology& t, int redundant) {
  return plan_placement(load, std::nullopt, t, {.policy = policy, .redundant = redundant});
}

TEST(Deepseek, GivesTheMapsOfItsReadme) {
  const Plan plan = plan_with(Policy::deepseek, readme_load(), {8, 2, 4}, 4);
  EXPECT_EQ(map_of(plan, 0), (Map{5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1}));
  EXPECT_EQ(map_of(plan, 1), (Map{7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1}));
  EXPECT_NEAR(plan.layers[0].after, 0.828, 5e-4);
  EXPECT_NEAR(plan.layers[1].after, 0.805, 5e-4);
  EXPECT_EQ(plan.duplicates, 0);
}

TEST(Deepseek, GlobalGivesTheKnownMapsAndReportsItsDuplicates) {
  const Plan plan = plan_with(Policy::deepseek, readme_load(), {8, 1, 1}, 4);
  EXPECT_EQ(map_of(plan, 0), (Map{10, 6, 10, 7, 0, 2, 11, 4, 5, 9, 5, 4, 8, 3, 1, 1}));
  EXPECT_EQ(map_of(plan, 1), (Map{1, 10, 2, 4, 5, 11, 5, 0, 6, 7, 6, 3, 8, 8, 9, 7}));
  EXPECT_NEAR(plan.layers[0].after, 0.932, 5e-4);
  EXPECT_NEAR(plan.layers[1].after, 0.840, 5e-4);
  EXPECT_EQ(plan.duplicates, 2);
}

TEST(Deepseek, IsGlobalWhereGroupsDoNotDivideByNodes) {
  EXPECT_EQ(plan_with(Policy::deepseek, readme_load(), {8, 2, 3}, 4).placement,
            plan_with(Policy::deepseek, readme_load(), {8, 1, 1}, 4).placement);
}

TEST(Deepseek, GivesReplicasToTheLargestSharesOnRandomLoads) {
  std::mt19937_64 random(8);
  for (int round = 0; round < 3000; ++round) {
    const int ranks = 1 + test::below(random, 8);
    const int experts = ranks * (1 + test::below(random, 8));
    const int redundant = ranks * test::below(random, 4);
    const ExpertLoad load = test::random_load(1, experts, random);
    if (redundant > experts * (ranks - 1)) continue;
    const Plan plan = plan_with(Policy::deepseek, load, {ranks, 1, 1}, redundant);
    const Map map = map_of(plan, 0);
    EXPECT_EQ(std::count(map.begin(), map.end(), -1), 0);
    const std::vector<int> best = replica_counts(load.layer(0), experts + redundant, 1000);
    double theirs = 0;
    double lowest = 0;
    for (ExpertId e = 0; e < experts; ++e) {
      const double count = load.layer(0)[static_cast<std::size_t>(e)];
      theirs = std::max(theirs, count / plan.placement.replica_count(0, e));
      lowest = std::max(lowest, count / best[static_cast<std::size_t>(e)]);
    }
    EXPECT_NEAR(theirs, lowest, 1e-5 * lowest) << "round " << round;
  }
}

TEST(Greedy, ComesNearDeepseekOnItsExampleWithoutAnExpertTwiceOnARank) {
  const Plan plan = plan_with(Policy::greedy, readme_load(), {8, 1, 1}, 4);
  EXPECT_GE(plan.layers[0].after, 0.92);
  EXPECT_GE(plan.layers[1].after, 0.84);
  EXPECT_EQ(plan.duplicates, 0);
}

TEST(Greedy, BalancesZipfLoadTo995Thousandths) {
  const Plan plan = plan_with(Policy::greedy, test::zipf_load(24, 256, 1.0, 3), {32, 1, 1}, 32);
  EXPECT_GE(plan.balance.after, 0.995);
  EXPECT_EQ(plan.duplicates, 0);
}

TEST(Greedy, ComesNearTheBoundWithGroupsOnNodesAndBeatsDeepseek) {
  const ExpertLoad load = test::zipf_load(24, 256, 1.0, 3);
  const Topology t{32, 4, 8};
  const Plan ours = plan_with(Policy::greedy, load, t, 32);
  const Plan theirs = plan_with(Policy::deepseek, load, t, 32);
  EXPECT_GT(ours.balance.after, theirs.balance.after);
  EXPECT_GE(ours.balance.after, 0.95 * ours.balance.bound);
}

TEST(Greedy, RearrangesWithoutRedundancy) {
  const ExpertLoad load = test::zipf_load(4, 64, 0.4, 5);
  const Plan plan = plan_with(Policy::greedy, load, {8, 1, 1}, 0);
  EXPECT_GT(plan.balance.after, plan.balance.before + 0.05);
  EXPECT_GE(plan.balance.after, 0.99);
}

TEST(Greedy, KeepsExpertsWhereTheyAreWhenNothingHasChanged) {
  const ExpertLoad load = test::zipf_load(3, 64, 1.0, 5);
  const PlanOptions options{.redundant = 8};
  const Plan first = plan_placement(load, std::nullopt, {8, 1, 1}, options);
  const Plan second = plan_placement(load, first.placement, {8, 1, 1}, options);
  EXPECT_EQ(second.transfers, 0);
  EXPECT_EQ(second.placement, first.placement);
}

/// What holds for every plan.
void expect_sound(const Plan& plan, const ExpertLoad& load, const Topology& t, Policy policy) {
  EXPECT_EQ(plan.placement.slots() % t.ranks, 0);  // the constructor has checked onto and bounds
  if (policy != Policy::deepseek) {
    EXPECT_EQ(plan.duplicates, 0);
  }
  EXPECT_LE(plan.balance.after, plan.balance.bound + 1e-9);
  EXPECT_LE(plan.transfers_bound, plan.transfers);
  for (int l = 0; l < load.layers; ++l) {
    const LayerMoves& moves = plan.moves[static_cast<std::size_t>(l)];
    EXPECT_EQ(moves.source.size(), static_cast<std::size_t>(plan.placement.slots()));
    const auto& balance = plan.layers[static_cast<std::size_t>(l)];
    EXPECT_GT(balance.after, 0);
    EXPECT_LE(balance.after, 1);
  }
}

TEST(Planner, EveryPolicyIsSoundOnRandomLoads) {
  std::mt19937_64 random(4);
  for (int round = 0; round < 2000; ++round) {
    Topology t;
    t.nodes = 1 + test::below(random, 3);
    t.ranks = t.nodes * (1 + test::below(random, 4));
    t.groups = test::below(random, 2) == 0 ? 1 : t.nodes * (1 + test::below(random, 2));
    const int experts = t.groups * (1 + test::below(random, 8));
    const ExpertLoad load = test::random_load(2, experts, random);
    const int redundant = test::below(random, std::min(experts * (t.ranks - 1), 2 * experts) + 1);
    for (const Policy policy :
         {Policy::identity, Policy::deepseek, Policy::greedy, Policy::incremental, Policy::risk}) {
      const Plan plan = plan_with(policy, load, t, redundant);
      expect_sound(plan, load, t, policy);
      EXPECT_EQ(plan.placement.hash(), plan_with(policy, load, t, redundant).placement.hash());
      PlanOptions weighted{.policy = policy, .redundant = redundant, .weighted = true};
      const Plan leveled = plan_placement(load, std::nullopt, t, weighted);
      expect_sound(leveled, load, t, policy);
      ASSERT_EQ(leveled.shares.size(), 2U);
      EXPECT_EQ(leveled.shares[1].size(), static_cast<std::size_t>(leveled.placement.slots()));
      const bool rearranges_freely = policy == Policy::incremental || !t.hierarchical();
      if (policy != Policy::deepseek && rearranges_freely) {
        EXPECT_GE(plan.balance.after, plan.balance.before - 1e-9)
            << policy_name(policy) << " round " << round;
      }
    }
  }
}

TEST(Planner, GreedyWithGroupsOnNodesKeepsThemThere) {
  const Topology t{8, 2, 4};
  const ExpertLoad load = test::zipf_load(5, 32, 1.0, 6);
  const Plan plan = plan_with(Policy::greedy, load, t, 8);
  for (int l = 0; l < load.layers; ++l) {
    std::vector<int> node_of_group(4, -1);
    const Map map = map_of(plan, l);
    for (std::size_t s = 0; s < map.size(); ++s) {
      const int node = static_cast<int>(s / (map.size() / 2));
      int& known = node_of_group[static_cast<std::size_t>(map[s] / 8)];
      EXPECT_TRUE(known < 0 || known == node);
      known = node;
    }
  }
}

TEST(Planner, RefusesWhatCannotBe) {
  ExpertLoad load = test::zipf_load(2, 8, 1.0, 7);
  EXPECT_THROW(plan_with(Policy::greedy, load, {3, 2, 1}, 0), ConfigError);
  EXPECT_THROW(plan_with(Policy::greedy, load, {4, 1, 3}, 0), ConfigError);
  EXPECT_THROW(plan_with(Policy::greedy, load, {2, 1, 1}, 9), ConfigError);
  EXPECT_THROW(plan_placement(load, ExpertPlacement::identity(2, 8, 4), {2, 1, 1}, {}),
               ConfigError);
  EXPECT_THROW(plan_placement(load, ExpertPlacement::identity(3, 8, 2), {2, 1, 1}, {}),
               ConfigError);
  EXPECT_THROW(plan_placement(load,
                              ExpertPlacement::identity(2, 8, 2),
                              {2, 1, 1},
                              {.policy = Policy::incremental, .redundant = 4}),
               ConfigError);
  load.counts[3] = -1;
  EXPECT_THROW(plan_with(Policy::greedy, load, {2, 1, 1}, 0), ConfigError);
  load.counts[3] = std::numeric_limits<double>::quiet_NaN();
  EXPECT_THROW(plan_with(Policy::greedy, load, {2, 1, 1}, 0), ConfigError);
  EXPECT_THROW(plan_with(Policy::greedy, ExpertLoad(), {2, 1, 1}, 0), ConfigError);
  EXPECT_THROW(parse_policy("luck"), ConfigError);
}

}  // namespace
}  // namespace ferry
