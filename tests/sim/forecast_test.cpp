// Times of forecasts against arithmetic by hand, and what must hold of any of them.
#include "ferry/sim/forecast.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <set>
#include <string>

#include "ferry/core/error.h"
#include "ferry/sim/popularity.h"
#include "support/long_tests.h"

namespace ferry {
namespace {

Cluster cluster_of(int hosts, int ranks_per_host) {
  Cluster c{.name = "test", .hosts = hosts, .ranks_per_host = ranks_per_host};
  c.links = {
      {.name = "host", .latency_us = 1, .gbytes_per_s = 10, .messages_per_s = 1e6},
      {.name = "network", .hosts = 0, .latency_us = 5, .gbytes_per_s = 1, .messages_per_s = 1e6}};
  c.memory_gbytes_per_s = 10;
  c.tflops = 1;
  return c;
}

ForecastOptions options_of(int ranks, int tokens) {
  return {.ranks = ranks,
          .tokens = tokens,
          .shape = {.hidden = 512, .inter = 256, .experts = 32, .topk = 4},
          .exchange = exchange_options(MoeA2ABackend::alltoallv)};
}

/// Two ranks on two hosts, each with one token for the other: sums that can be done by hand.
TEST(TimeLayer, IsTheSumOfWhatTheSlowestRankWaitsFor) {
  const Cluster c = cluster_of(2, 1);
  const int spans[] = {1, 2};
  const LinkLevels levels(2, spans);
  RankLoad load;
  load.dispatch.moved_before = 10'000;  // 1 us
  load.dispatch.out_puts[2] = 2;        // 2 us
  load.dispatch.out_bytes[2] = 3'000;   // 3 us: longer, so it counts
  load.dispatch.in_puts[2] = 2;
  load.dispatch.in_bytes[2] = 3'000;
  load.dispatch.read_after[kOwnLevel] = 15'000;  // with what is written 2 us
  load.dispatch.written_after = 5'000;
  load.own.bytes = 40'000;       // 4 us
  load.own.operations = 7e6;     // 7 us: longer
  load.combine.out_puts[2] = 6;  // 6 us
  load.combine.out_bytes[2] = 1'000;
  load.combine.in_puts[2] = 6;
  load.combine.in_bytes[2] = 1'000;
  load.combine.written_after = 10'000;  // 1 us
  const RankLoad loads[] = {load, load};
  const LayerTime time = time_layer(loads, c, levels, false);
  EXPECT_DOUBLE_EQ(time.ranks[0].dispatch, 1 + 3 + 5 + 2);
  EXPECT_DOUBLE_EQ(time.ranks[0].experts, 7);
  EXPECT_DOUBLE_EQ(time.ranks[0].combine, 6 + 5 + 1);
  EXPECT_DOUBLE_EQ(time.layer_us, 30);
  const Shares expected{10, 6, 3, 4, 7, 0};
  for (std::size_t b = 0; b < kBounds; ++b)
    EXPECT_DOUBLE_EQ(time.bound_us[b], expected[b]) << kBoundNames[b];

  RankLoad slow = load;
  slow.own.operations = 17e6;
  const RankLoad uneven[] = {load, slow};
  const LayerTime waits = time_layer(uneven, c, levels, false);
  EXPECT_DOUBLE_EQ(waits.ranks[0].combine, 6 + 5 + 1 + 10);  // for the slow one
  EXPECT_DOUBLE_EQ(waits.layer_us, 40);
  EXPECT_DOUBLE_EQ(waits.bound_us[5], 5);  // of 12 us of arithmetic each nobody would wait

  Cluster half = c;
  half.links[1].full_duplex = false;
  EXPECT_DOUBLE_EQ(time_layer(loads, half, levels, false).ranks[0].dispatch, 1 + 6 + 5 + 2);
  Cluster overlaps = c;
  overlaps.copies_overlap = true;
  EXPECT_DOUBLE_EQ(time_layer(loads, overlaps, levels, false).ranks[0].dispatch, 1 + 3 + 5);
  EXPECT_DOUBLE_EQ(time_layer(loads, overlaps, levels, false).bound_us[3], 1);
  Cluster adds = c;
  adds.sum_gbytes_per_s = 4;
  RankLoad sums = load;
  sums.combine.summed_before = 8'000;          // 2 us
  sums.combine.read_after[kOwnLevel] = 4'000;  // 1 us
  const RankLoad both[] = {sums, sums};
  EXPECT_DOUBLE_EQ(time_layer(both, adds, levels, false).ranks[0].combine, 2 + 6 + 5 + 1 + 1);
  Cluster strict = c;
  strict.links[1].peer_messages_per_s = 1e5;
  RankLoad one = load;
  one.dispatch.to_one[2] = 2;  // 20 us
  const RankLoad ones[] = {one, one};
  EXPECT_DOUBLE_EQ(time_layer(ones, strict, levels, false).ranks[0].dispatch, 1 + 20 + 5 + 2);
}

TEST(TimeLayer, CountsAPortForAllRanksThatShareIt) {
  Cluster c = cluster_of(2, 2);
  c.links[1].ranks_per_port = 2;
  const int spans[] = {2, 4};
  RankLoad load;
  load.dispatch.out_puts[2] = load.dispatch.in_puts[2] = 1;
  load.dispatch.out_bytes[2] = load.dispatch.in_bytes[2] = 4'000;
  const std::vector<RankLoad> loads(4, load);
  EXPECT_DOUBLE_EQ(time_layer(loads, c, LinkLevels(4, spans), false).ranks[0].dispatch, 8 + 5);
}

TEST(Forecast, IsTheSameForTheSameSeedAndAnotherForAnother) {
  const Cluster c = cluster_of(4, 2);
  ForecastOptions o = options_of(8, 16);
  o.routing.routing = ForecastRouting::zipf;
  const Forecast a = make_forecast(o, c);
  const Forecast b = make_forecast(o, c);
  EXPECT_EQ(a.layer_us, b.layer_us);
  EXPECT_EQ(a.dispatch[2].bytes, b.dispatch[2].bytes);
  o.routing.seed = 2;
  EXPECT_NE(make_forecast(o, c).dispatch[2].bytes, a.dispatch[2].bytes);
  EXPECT_NEAR(std::accumulate(a.shares.begin(), a.shares.end(), 0.0), 1, 1e-9);
  EXPECT_LE(a.combine_us.p50, a.combine_us.p99);
  EXPECT_LE(a.combine_us.p99, a.combine_us.max);
}

TEST(Forecast, SaysWhatBinds) {
  ForecastOptions o = options_of(8, 64);
  const auto bound = [&](auto change) {
    Cluster c = cluster_of(4, 2);
    change(c);
    return make_forecast(o, c).bound();
  };
  EXPECT_EQ(bound([](Cluster& c) { c.links[1].latency_us = 1e5; }), Bound::latency);
  EXPECT_EQ(bound([](Cluster& c) { c.links[1].messages_per_s = 100; }), Bound::messages);
  EXPECT_EQ(bound([](Cluster& c) { c.links[1].gbytes_per_s = 1e-3; }), Bound::bandwidth);
  EXPECT_EQ(bound([](Cluster& c) { c.memory_gbytes_per_s = 1e-3; }), Bound::memory);
  EXPECT_EQ(bound([](Cluster& c) { c.tflops = 1e-6; }), Bound::arithmetic);
  o.routing.routing = ForecastRouting::one_hot;
  o.shape.topk = 1;
  EXPECT_EQ(bound([](Cluster& c) { c.tflops = 1e-6; }), Bound::imbalance);
}

TEST(Forecast, ReplicasEvenOutAHotExpert) {
  const Cluster c = cluster_of(4, 2);
  ForecastOptions o = options_of(8, 64);
  o.routing.routing = ForecastRouting::zipf;
  o.routing.exponent = 1.2;
  const double plain = make_forecast(o, c).balancedness;
  o.policy = Policy::greedy;
  o.redundant = 16;
  for (const ReplicaRule rule : {ReplicaRule::hash, ReplicaRule::nearest, ReplicaRule::weighted}) {
    o.replicas = rule;
    EXPECT_GT(make_forecast(o, c).balancedness, plain + 0.1) << replica_rule_name(rule);
  }
}

TEST(Forecast, TakesRecordedLoadAndRefusesThatOfOtherExperts) {
  const Cluster c = cluster_of(4, 2);
  ForecastOptions o = options_of(8, 32);
  o.routing.routing = ForecastRouting::recorded;
  ExpertLoad load(1, 32);
  for (int e = 0; e < 4; ++e) load.layer(0)[static_cast<std::size_t>(e)] = 5;
  o.routing.recorded = {load};
  // All four experts that were ever used lie on rank 0.
  EXPECT_NEAR(make_forecast(o, c).balancedness, 1.0 / 8, 1e-9);
  o.routing.recorded = {ExpertLoad(1, 31)};
  EXPECT_THROW(static_cast<void>(make_forecast(o, c)), ConfigError);
}

TEST(Forecast, HasNoTimeForNothingButWaits) {
  Cluster c = cluster_of(4, 2);
  c.links[1].messages_per_s = 1e7;
  const Forecast f = make_forecast(options_of(8, 0), c);
  EXPECT_EQ(f.experts_us.max, 0);
  EXPECT_EQ(f.tokens_per_s, 0);
  EXPECT_GE(f.layer_us, 10);  // two messages over the network
  EXPECT_EQ(f.bound(), Bound::latency);
}

/// By hand: 1 MiB of f32 rows of which each of 4 members has a quarter.
TEST(GatherTime, IsThatOfSlabsAndOfWhatOthersHave) {
  const Cluster c = cluster_of(2, 4);
  const int spans[] = {4, 8};
  const LinkLevels levels(8, spans);
  const double part = 256 * 1024;
  const GatherLoad load{.members = 4, .gathers = 1, .bytes = 4 * part};
  EXPECT_NEAR(gather_us(load, c, levels), 1 + part / 10e3 + 3 * part / 10e3, 1e-9);
  // Eight slabs of 1 MiB: so many rounds.
  EXPECT_NEAR(gather_us({.members = 4, .gathers = 1, .bytes = 32 * 1024 * 1024.0}, c, levels),
              8 + 8 * 1024 * 1024 * 4 / 10e3,
              1e-6);
  // Over two hosts: three near members, four beyond the network at 1 GB/s.
  EXPECT_NEAR(gather_us({.members = 8, .gathers = 1, .bytes = 8 * part}, c, levels),
              5 + part / 10e3 + 3 * part / 10e3 + 4 * part / 1e3 + 4 * part / 10e3,
              1e-9);
  EXPECT_EQ(gather_us({.members = 1, .gathers = 9, .bytes = 1e9}, c, levels), 0);
}

TEST(Forecast, SlicesShareOutEveryExpertsWeights) {
  Cluster c = cluster_of(1, 2);
  c.links.front().latency_us = 0;
  c.memory_gbytes_per_s = 1;
  ForecastOptions o = options_of(2, 1);
  o.exchange = exchange_options(MoeA2ABackend::pplx);
  o.tp = 2;
  const Forecast whole = make_forecast(o, c);
  o.slices = 2;
  const Forecast sliced = make_forecast(o, c);
  EXPECT_EQ(sliced.balancedness, 1);
  EXPECT_EQ(sliced.slots_per_rank, 32);
  // Each reads half of the weights of all four experts; before, the busier rank those of two to
  // four.
  const double half = 4 * 3.0 * 512 * 256 * 2 / 2 / 1e3;
  EXPECT_GE(sliced.experts_us.max, half);
  EXPECT_LT(sliced.experts_us.max, 1.02 * half);
  EXPECT_GT(whole.experts_us.max, 1.2 * half);
  EXPECT_GT(sliced.tokens_per_s, whole.tokens_per_s);
  // One token of the group in a layer.
  EXPECT_NEAR(sliced.tokens_per_s, 1e6 / sliced.step_us, 1e-9);
}

TEST(Forecast, RefusesGroupsThatCannotBe) {
  const Cluster c = cluster_of(2, 4);
  const auto refuses = [&](auto change) {
    ForecastOptions o = options_of(8, 1);
    o.exchange = exchange_options(MoeA2ABackend::pplx);
    o.tp = 4;
    o.slices = 2;
    static_cast<void>(make_forecast(o, c));
    change(o);
    EXPECT_THROW(static_cast<void>(make_forecast(o, c)), ConfigError);
  };
  refuses([](ForecastOptions& o) { o.tp = 3; });
  refuses([](ForecastOptions& o) { o.slices = 3; });
  refuses([](ForecastOptions& o) { o.tp = o.slices = 8; });  // over two hosts
  refuses([](ForecastOptions& o) { o.combine_wire = WireType::fp8; });
  refuses([](ForecastOptions& o) { o.step_balance = StepBalance::weights; });
  refuses([](ForecastOptions& o) {
    o.exchange = exchange_options(MoeA2ABackend::deepep, DeepepMode::normal);
  });
}

TEST(Forecast, RefusesWhatCannotBe) {
  const Cluster c = cluster_of(4, 2);
  EXPECT_THROW(static_cast<void>(make_forecast(options_of(3, 1), c)), ConfigError);
  EXPECT_THROW(static_cast<void>(make_forecast(options_of(16, 1), c)), ConfigError);
  ForecastOptions o = options_of(8, 1);
  o.shape.topk = 33;
  EXPECT_THROW(static_cast<void>(make_forecast(o, c)), ConfigError);
}

/// Thousands of ranks fit into one process.
TEST(Forecast, GoesToThousandsOfRanks) {
  const Cluster c = cluster_of(256, 8);
  const int ranks = slow_run() ? 256 : 2048;
  ForecastOptions o{.ranks = ranks,
                    .tokens = 2,
                    .shape = {.hidden = 3584, .inter = 1, .experts = 896, .topk = 16},
                    .exchange = exchange_options(MoeA2ABackend::pplx),
                    .draws = 1};
  const Forecast f = make_forecast(o, c);
  EXPECT_EQ(f.hosts, ranks / 8);
  EXPECT_EQ(f.slots_per_rank, (896 + ranks - 1) / ranks);
  EXPECT_GE(f.dispatch[2].puts, ranks - 8);  // a message for everybody elsewhere
}

TEST(Popularity, DrawsDistinctExpertsAsOftenAsTheyArePopular) {
  const double weights[] = {0, 1, 2, 4, 0, 1};
  const Popularity popularity(weights);
  Popularity::Stream stream(7);
  constexpr std::size_t kDraws = 40000;
  std::vector<ExpertId> chosen(kDraws);
  popularity.draw(stream, 1, chosen);
  for (std::size_t e = 0; e < std::size(weights); ++e) {
    const auto times = std::ranges::count(chosen, static_cast<ExpertId>(e));
    EXPECT_NEAR(static_cast<double>(times) / kDraws, weights[e] / 8, 0.01) << e;
  }
  // More than are popular: the others are taken rather than one twice.
  chosen.resize(6 * 50);
  popularity.draw(stream, 6, chosen);
  for (std::size_t t = 0; t < 50; ++t) {
    const auto first = chosen.begin() + static_cast<std::ptrdiff_t>(6 * t);
    EXPECT_EQ(std::set<ExpertId>(first, first + 6).size(), 6U);
  }
}

}  // namespace
}  // namespace ferry
