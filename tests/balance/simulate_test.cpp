#include "ferry/balance/simulate.h"

#include <gtest/gtest.h>

#include "ferry/core/error.h"

namespace ferry {
namespace {

Trace trace_of(TraceKind kind) {
  return make_trace({.kind = kind, .steps = 300, .layers = 2, .experts = 128, .rows = 16384});
}

SimulateOptions with(Policy policy) {
  return {.topology = {16, 4, 1}, .plan = {.policy = policy, .redundant = 16}};
}

TEST(Simulate, RiskIsMoreEvenThanGreedyWhereLoadDriftsAndWhereExpertsAreBusyTogether) {
  for (const TraceKind kind : {TraceKind::drifting, TraceKind::topics}) {
    const Trace trace = trace_of(kind);
    EXPECT_GT(simulate(trace, with(Policy::risk)).mean_balancedness,
              simulate(trace, with(Policy::greedy)).mean_balancedness + 0.01);
  }
}

TEST(Simulate, IncrementalMovesLittleAndStaysNearGreedy) {
  for (const TraceKind kind : {TraceKind::zipf, TraceKind::drifting, TraceKind::bursty}) {
    const Trace trace = trace_of(kind);
    const Simulation greedy = simulate(trace, with(Policy::greedy));
    const Simulation incremental = simulate(trace, with(Policy::incremental));
    EXPECT_LT(4 * incremental.transfers, greedy.transfers);
    EXPECT_GT(incremental.mean_balancedness, greedy.mean_balancedness - 0.05);
  }
}

TEST(Simulate, SharesThatFollowTheLoadEvenTheRanksWithoutAnyMove) {
  for (const TraceKind kind : {TraceKind::drifting, TraceKind::bursty, TraceKind::topics}) {
    const Trace trace = trace_of(kind);
    const Simulation even = simulate(trace, with(Policy::greedy));
    SimulateOptions options = with(Policy::greedy);
    options.plan.weighted = true;
    options.share_interval = 5;
    const Simulation weighted = simulate(trace, options);
    EXPECT_GT(weighted.mean_balancedness, even.mean_balancedness + 0.01);
    EXPECT_LT(weighted.transfers, 1.1 * even.transfers);
  }
}

TEST(Simulate, NearestReplicasKeepRowsAtHomeAndRanksAsEven) {
  const Trace trace = trace_of(TraceKind::zipf);
  const Simulation anywhere = simulate(trace, with(Policy::greedy));
  SimulateOptions options = with(Policy::greedy);
  options.nearest = true;
  const Simulation nearest = simulate(trace, options);
  EXPECT_NEAR(anywhere.off_rank, 15.0 / 16, 1e-6);
  EXPECT_NEAR(anywhere.off_node, 3.0 / 4, 1e-6);
  EXPECT_LT(nearest.off_rank, anywhere.off_rank - 0.02);
  EXPECT_LT(nearest.off_node, anywhere.off_node - 0.1);
  EXPECT_DOUBLE_EQ(nearest.mean_balancedness, anywhere.mean_balancedness);
}

TEST(Simulate, RefusesTracesAndIntervalsThatAreNone) {
  EXPECT_THROW(simulate({}, with(Policy::greedy)), ConfigError);
  SimulateOptions options = with(Policy::greedy);
  options.interval = 0;
  EXPECT_THROW(simulate(trace_of(TraceKind::zipf), options), ConfigError);
  options.interval = 10;
  options.share_interval = -1;
  EXPECT_THROW(simulate(trace_of(TraceKind::zipf), options), ConfigError);
}

}  // namespace
}  // namespace ferry
