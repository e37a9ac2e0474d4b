// Per-step balance as forecasts have it: plans by hand, and what must hold of any of them.
#include "ferry/sim/step_balance.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <random>
#include <vector>

#include "ferry/core/error.h"
#include "ferry/sim/forecast.h"

namespace ferry {
namespace {

/// A row takes 1 us, weights 2 from own memory, 3 from a neighbour's and 10 over the network.
StepCosts costs_of(const LinkLevels& levels) {
  StepCosts costs{.weights_us = 2, .row_us = 1, .near_us = 3};
  for (std::size_t l = kHostLevel + 1; l < levels.levels(); ++l) {
    costs.far_us[l] = 10;
    costs.ranks_per_port[l] = 1;
  }
  return costs;
}

TEST(PlanFetches, MovesRowsUntilBothEndTogether) {
  const Placement two = Placement::identity(2, 2, 0);
  const int host[] = {2};
  const LinkLevels near(2, host);
  const std::vector<std::int64_t> rows{100, 20};
  // 60 rows each; weights are read while rows are computed.
  const auto fetches = plan_fetches(rows, two, near, costs_of(near), StepBalance::weights);
  ASSERT_EQ(fetches.size(), 1U);
  EXPECT_EQ(fetches[0].slot, 0);
  EXPECT_EQ(fetches[0].to, 1);
  EXPECT_EQ(fetches[0].rows, 40);
  EXPECT_EQ(fetches[0].source, 0);

  // Weights that take 50 us to come leave 20 + 50 - 20 us, so rank 1 begins with them at 50:
  // rank 0 keeps 75 rows and rank 1 computes 25 until 75.
  const int hosts[] = {1, 2};
  const LinkLevels far(2, hosts);
  StepCosts slow = costs_of(far);
  slow.far_us[kHostLevel + 1] = 50;
  const auto waits = plan_fetches(rows, two, far, slow, StepBalance::weights);
  ASSERT_EQ(waits.size(), 1U);
  EXPECT_EQ(waits[0].rows, 25);
  slow.hidden_us = 50;
  EXPECT_EQ(plan_fetches(rows, two, far, slow, StepBalance::weights)[0].rows, 40);
  slow.hidden_us = 0;
  slow.far_us[kHostLevel + 1] = 200;  // longer than the hot rank needs by itself
  EXPECT_TRUE(plan_fetches(rows, two, far, slow, StepBalance::weights).empty());
}

TEST(PlanFetches, TakesReplicasWhereWeightsDoNotTravel) {
  const Placement p({0, 1, 0, 2, 3, 4}, 5, 3);  // expert 0 lies on ranks 0 and 1
  const int hosts[] = {1, 3};
  const LinkLevels levels(3, hosts);
  const std::vector<std::int64_t> rows{90, 0, 10, 0, 0, 0};
  const auto fetches = plan_fetches(rows, p, levels, costs_of(levels), StepBalance::replicas);
  ASSERT_EQ(fetches.size(), 1U);
  EXPECT_TRUE(fetches[0].own());
  EXPECT_EQ(fetches[0].to, 1);
  EXPECT_EQ(fetches[0].rows, 40);
  const auto all = plan_fetches(rows, p, levels, costs_of(levels), StepBalance::weights);
  EXPECT_TRUE(std::ranges::any_of(all, [](const Fetch& f) { return f.to == 2 && !f.own(); }));
}

TEST(PlanFetches, BringsWeightsToAHostOnce) {
  const Placement p = Placement::identity(4, 4, 0);
  const int hosts[] = {2, 4};
  const LinkLevels levels(4, hosts);
  StepCosts costs = costs_of(levels);
  costs.ranks_per_port[kHostLevel + 1] = 2;
  const auto fetches =
      plan_fetches(std::vector<std::int64_t>{400, 1, 1, 1}, p, levels, costs, StepBalance::weights);
  int over_network = 0, from_neighbours = 0;
  for (const Fetch& f : fetches) {
    if (levels.near(f.source, f.to)) continue;
    (f.through == f.to ? over_network : from_neighbours) += 1;
  }
  EXPECT_EQ(over_network, 1);
  EXPECT_EQ(from_neighbours, 1);
}

/// Any loads: no row is lost or computed twice, no rank ends later than the last one did.
TEST(PlanFetches, KeepsEveryRowAndEndsNoLater) {
  std::mt19937 engine(5);
  const int hosts[] = {2, 8};
  const LinkLevels levels(8, hosts);
  for (int round = 0; round < 50; ++round) {
    const int redundant = round % 2 * 8;
    const Placement p = Placement::identity(16, 8, redundant);
    std::vector<std::int64_t> rows(static_cast<std::size_t>(p.slots()));
    for (std::int64_t& n : rows) n = engine() % 7 == 0 ? engine() % 200 : engine() % 10;
    const auto fetches = plan_fetches(rows, p, levels, costs_of(levels), StepBalance::weights);
    EXPECT_EQ(fetches.size(),
              plan_fetches(rows, p, levels, costs_of(levels), StepBalance::weights).size());

    FetchedSlots slots(rows, fetches, 8, p.slots_per_rank());
    std::vector<std::int64_t> work(8, 0), before(8, 0);
    std::map<SlotId, ExpertId> computes;  // one expert in each slot
    for (SlotId s = 0; s < p.slots(); ++s) {
      for (std::int64_t i = 0; i < rows[static_cast<std::size_t>(s)]; ++i) {
        const SlotId to = slots.next(s);
        ++work[static_cast<std::size_t>(to / slots.slots_per_rank())];
        ++before[static_cast<std::size_t>(p.rank_of(s))];
        EXPECT_EQ(computes.emplace(to, p.expert_of(s)).first->second, p.expert_of(s));
      }
    }
    EXPECT_EQ(std::accumulate(work.begin(), work.end(), std::int64_t{0}),
              std::accumulate(rows.begin(), rows.end(), std::int64_t{0}));
    EXPECT_LE(*std::ranges::max_element(work), *std::ranges::max_element(before));
  }
}

ForecastOptions hot() {
  return {.ranks = 8,
          .tokens = 64,
          .shape = {.hidden = 512, .inter = 256, .experts = 32, .topk = 4},
          .routing = {.routing = ForecastRouting::one_hot},
          .exchange = exchange_options(MoeA2ABackend::pplx)};
}

Cluster cluster_of(double network_gbytes_per_s, double tflops) {
  Cluster c{.name = "test", .hosts = 4, .ranks_per_host = 2};
  c.links = {{.name = "host", .latency_us = 1, .gbytes_per_s = 10, .messages_per_s = 1e7},
             {.name = "network",
              .hosts = 0,
              .latency_us = 5,
              .gbytes_per_s = network_gbytes_per_s,
              .messages_per_s = 1e7}};
  c.memory_gbytes_per_s = 10;
  c.tflops = tflops;
  return c;
}

TEST(StepBalance, IsTakenWhereALayerGainsAndLeavesTheOthers) {
  ForecastOptions o = hot();
  const double without = make_forecast(o, cluster_of(10, 0.1)).layer_us;
  o.step_balance = StepBalance::weights;
  const Forecast f = make_forecast(o, cluster_of(10, 0.1));
  ASSERT_TRUE(f.step_balance.has_value());
  EXPECT_DOUBLE_EQ(f.step_balance->layer_us_without, without);
  EXPECT_LT(f.layer_us, 0.7 * without);
  EXPECT_EQ(f.step_balance->layers, 1);
  EXPECT_GT(f.step_balance->bytes, 0);
  double shares = 0;
  for (const double share : f.shares) shares += share;
  EXPECT_NEAR(shares, 1, 1e-9);

  // Where arithmetic costs nothing and the link nothing but time, a layer stays as it is.
  Cluster apart = cluster_of(0.001, 1000);
  apart.hosts = 8;
  apart.ranks_per_host = 1;
  const Forecast slow = make_forecast(o, apart);
  EXPECT_EQ(slow.layer_us, slow.step_balance->layer_us_without);
  EXPECT_EQ(slow.step_balance->layers, 0);
  // Nobody has a replica.
  o.step_balance = StepBalance::replicas;
  EXPECT_EQ(make_forecast(o, cluster_of(10, 0.1)).step_balance->layers, 0);
}

/// By hand: two hosts of one rank, every token for expert 0 alone.
TEST(StepBalance, ChargesWeightsBehindTheRowsOfDispatch) {
  Cluster c = cluster_of(1, 1);
  c.hosts = 2;
  c.ranks_per_host = 1;
  const int spans[] = {1, 2};
  const LinkLevels levels(2, spans);
  const ExpertWork work{.bytes_per_slot = 20'000, .operations_per_row = 1e6};  // 1 us a row
  std::vector<RankLoad> loads(2);
  for (RankLoad& load : loads) {
    load.dispatch.out_puts[2] = load.dispatch.in_puts[2] = 1;
    load.dispatch.out_bytes[2] = load.dispatch.in_bytes[2] = 1'000;  // 1 us
    load.combine.out_puts[2] = load.combine.in_puts[2] = 1;
    load.own.bytes = 20'000;  // 2 us
    load.own.operations = 30e6;
  }
  const Fetch fetch{.slot = 0, .to = 1, .rows = 30, .copy = 0, .source = 0, .through = 1};
  add_fetches({&fetch, 1}, work, levels, 256, loads);
  EXPECT_EQ(loads[1].own.operations, 0);
  EXPECT_EQ(loads[1].fetched.operations, 30e6);
  const LayerTime time = time_layer(loads, c, levels, false);
  // Counts: a message of 1 KiB, 1.024 us, and 5 of latency; rows 1 + 5; weights 20 behind them.
  EXPECT_NEAR(time.ranks[0].dispatch, 6.024 + 6, 1e-9);
  EXPECT_NEAR(time.ranks[0].experts, 30, 1e-9);
  EXPECT_NEAR(time.ranks[1].experts, 20 + 30, 1e-9);
}

TEST(StepBalance, WindowsOfARecordingAreNotWhatPoliciesSaw) {
  ForecastOptions o = hot();
  o.routing.routing = ForecastRouting::recorded;
  o.draws = 8;
  for (int step = 0; step < 4; ++step) {  // another expert is hot in each
    ExpertLoad load(1, 32);
    for (int e = 0; e < 32; ++e) load.layer(0)[static_cast<std::size_t>(e)] = 1;
    load.layer(0)[static_cast<std::size_t>(8 * step)] = 1000;
    o.routing.recorded.push_back(load);
  }
  o.policy = Policy::greedy;
  o.redundant = 32;
  const double of_all = make_forecast(o, cluster_of(10, 1)).balancedness;
  o.routing.window = 1;
  EXPECT_LT(make_forecast(o, cluster_of(10, 1)).balancedness, of_all - 0.1);
  o.routing.window = -1;
  EXPECT_THROW(static_cast<void>(make_forecast(o, cluster_of(10, 1))), ConfigError);
}

}  // namespace
}  // namespace ferry
