#include "ferry/exchange/relay_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <numeric>
#include <set>

#include "ferry/dispatcher.h"
#include "support/ranks.h"

namespace ferry {
namespace {

using Ranks = std::vector<Rank>;

Ranks list(std::span<const Rank> ranks) { return {ranks.begin(), ranks.end()}; }

TEST(RelayPlan, OneRankOfEachOtherHostTakesWhatAHomeSends) {
  const std::array hosts{0, 0, 1, 1, 2};
  const RelayPlan plan(hosts, 3, true);
  EXPECT_EQ(list(plan.takers(0)), (Ranks{0, 1, 2, 2, 4}));
  EXPECT_EQ(list(plan.takers(1)), (Ranks{0, 1, 3, 3, 4}));  // its host's second: shares the work
  EXPECT_EQ(list(plan.takers(4)), (Ranks{0, 0, 2, 2, 4}));
  EXPECT_EQ(list(plan.neighbours()), (Ranks{2}));
  EXPECT_TRUE(plan.relays(1));
  EXPECT_FALSE(plan.relays(0));
  EXPECT_FALSE(plan.relays(2));
}

TEST(RelayPlan, SendsAcrossFirstAndReceivesNearFirst) {
  const std::array hosts{0, 0, 1, 1, 2};
  const RelayPlan plan(hosts, 3, true);
  EXPECT_EQ(list(plan.send_order()), (Ranks{4, 0, 1, 2, 3}));
  EXPECT_EQ(list(plan.receive_order()), (Ranks{3, 2, 1, 4, 0}));  // those it relays before 4 and 0
}

TEST(RelayPlan, WithoutRelayingEachRankTakesItsOwn) {
  const std::array hosts{0, 1, 0, 1};
  const RelayPlan plan(hosts, 0, false);
  for (Rank home = 0; home < 4; ++home) {
    EXPECT_EQ(list(plan.takers(home)), (Ranks{0, 1, 2, 3}));
    EXPECT_FALSE(plan.relays(home));
  }
}

/// Every token of rank 0 has one expert on each rank: distinct ranks and hosts are all there are.
class NetworkBytes : public testing::TestWithParam<MoeA2ABackend> {
 protected:
  void SetUp() override {
    const std::vector<TransportInfo> all = list_transports();
    if (std::ranges::none_of(
            all, [](const TransportInfo& t) { return t.name == "fabric" && t.available; }))
      GTEST_SKIP() << "this build or machine has no fabric";
  }
};

TEST_P(NetworkBytes, ATokenCrossesOncePerHost) {
  constexpr int kRanks = 4, kHidden = 32, kTokens = 5;
  on_ranks(
      {.kind = {.transport = "fabric", .provider = "tcp", .ranks_per_host = 2}, .ranks = kRanks},
      [](Transport& transport) {
        ThreadPool pool(1);
        Dispatcher dispatcher({.exchange = exchange_options(GetParam(), DeepepMode::normal),
                               .slots_per_rank = 1,
                               .hidden = kHidden,
                               .topk = kRanks,
                               .max_tokens = kTokens},
                              transport,
                              pool);
        const std::vector<float> rows(kTokens * kHidden, 1.0F);
        const std::vector<float> weights(kTokens * kRanks, 0.25F);
        std::vector<SlotId> slots;
        for (int t = 0; t < kTokens; ++t)
          for (SlotId slot = 0; slot < kRanks; ++slot) slots.push_back(slot);
        const auto* bytes = reinterpret_cast<const std::byte*>(rows.data());
        constexpr std::size_t kRowBytes = kHidden * sizeof(float);
        dispatcher.dispatch_send(
            {.rows = {bytes, kRowBytes}, .tokens = kTokens, .slots = slots, .weights = weights});
        EXPECT_EQ(dispatcher.stats().bytes_network, kTokens * kRowBytes);
        const ExpertRows received = dispatcher.dispatch_recv();
        for (std::int64_t i = 0; i < received.counts[0]; ++i)
          std::fill_n(
              reinterpret_cast<float*>(received.out.row(received.offsets[0] + i)), kHidden, 2.0F);
        dispatcher.combine_send();
        std::vector<float> out(rows.size());
        dispatcher.combine_recv({.weights = weights,
                                 .rows = {reinterpret_cast<std::byte*>(out.data()),
                                          static_cast<std::ptrdiff_t>(kRowBytes)}});
        for (const float value : out) EXPECT_EQ(value, 2.0F);
        // Back: a row for each expert, or where hosts sum first one for each token of the
        // other host's homes that this rank takes, one of two.
        const bool sums = GetParam() == MoeA2ABackend::deepep;
        EXPECT_EQ(dispatcher.stats().bytes_network,
                  (kTokens + (sums ? 1 : 2) * kTokens) * kRowBytes);
      });
}

INSTANTIATE_TEST_SUITE_P(Backends,
                         NetworkBytes,
                         testing::Values(MoeA2ABackend::pplx, MoeA2ABackend::deepep),
                         [](const auto& test) { return std::string(backend_name(test.param)); });

}  // namespace
}  // namespace ferry
