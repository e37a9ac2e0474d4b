#include <gtest/gtest.h>

#include <algorithm>

#include "balance/loads.h"
#include "ferry/balance/trace.h"
#include "ferry/core/error.h"
#include "ferry/planner.h"

namespace ferry {
namespace {

ExpertLoad step_of(const std::vector<double>& counts) {
  ExpertLoad load(1, static_cast<int>(counts.size()));
  load.counts = counts;
  return load;
}

/// Mean over the steps of how even the plan makes each.
double mean_balance(const Plan& plan, const Trace& steps) {
  double sum = 0;
  for (const ExpertLoad& step : steps) {
    for (int l = 0; l < step.layers; ++l)
      sum += balancedness(rank_loads(
                 step.layer(l), plan.placement.physical_to_logical(l), plan.placement.ranks())) /
             step.layers;
  }
  return sum / static_cast<double>(steps.size());
}

TEST(Risk, SeparatesExpertsThatAreBusyTogether) {
  // Over the window all experts have the same load; in each step one pair has all of it.
  const Trace steps{step_of({8, 8, 0, 0}), step_of({0, 0, 8, 8})};
  const Plan by_sum = plan_placement(steps, std::nullopt, {2, 1, 1}, {.policy = Policy::greedy});
  const Plan by_risk = plan_placement(steps, std::nullopt, {2, 1, 1}, {.policy = Policy::risk});
  EXPECT_DOUBLE_EQ(mean_balance(by_sum, steps), 0.5);
  EXPECT_DOUBLE_EQ(mean_balance(by_risk, steps), 1);
}

TEST(Risk, PutsWhatVariesBesideWhatIsSteady) {
  // 0 and 1 vary one against the other in some steps, each alone in others; 2 and 3 are steady.
  const Trace steps{step_of({9, 9, 5, 5}), step_of({1, 1, 5, 5}), step_of({9, 1, 5, 5})};
  const Plan plan = plan_placement(steps, std::nullopt, {2, 1, 1}, {.policy = Policy::risk});
  const Placement& p = plan.placement.layer(0);
  EXPECT_NE(p.rank_of(p.replicas(0)[0]), p.rank_of(p.replicas(1)[0]));
}

TEST(Risk, IsSoundOnRandomWindowsAndKeepsGroupsOnNodes) {
  std::mt19937_64 random(31);
  for (int round = 0; round < 300; ++round) {
    const Topology t{8, 2, round % 2 == 0 ? 4 : 1};
    const int experts = 4 * (2 + test::below(random, 6));
    Trace steps;
    for (int s = 0; s < 2 + test::below(random, 30); ++s)
      steps.push_back(test::random_load(2, experts, random));
    const PlanOptions options{.policy = Policy::risk, .redundant = test::below(random, experts)};
    const Plan plan = plan_placement(steps, std::nullopt, t, options);
    EXPECT_EQ(plan.duplicates, 0);
    EXPECT_EQ(plan.placement, plan_placement(steps, std::nullopt, t, options).placement);
    for (int l = 0; t.groups > 1 && l < 2; ++l) {
      for (ExpertId e = 0; e < experts; ++e) {
        const ExpertId first = e / (experts / 4) * (experts / 4);
        const Placement& p = plan.placement.layer(l);
        for (const SlotId slot : p.replicas(e))
          EXPECT_EQ(p.rank_of(slot) / 4, p.rank_of(p.replicas(first)[0]) / 4);
      }
    }
  }
}

TEST(Risk, RefusesWindowsThatAreNone) {
  EXPECT_THROW(plan_placement(Trace{}, std::nullopt, {2, 1, 1}, {.policy = Policy::risk}),
               ConfigError);
  EXPECT_THROW(plan_placement(Trace{step_of({1, 2}), step_of({1, 2, 3})},
                              std::nullopt,
                              {2, 1, 1},
                              {.policy = Policy::risk}),
               ConfigError);
}

}  // namespace
}  // namespace ferry
