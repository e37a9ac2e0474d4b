// Whom a rank waits for, and how many rows come from whom.
#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <chrono>
#include <set>
#include <string>
#include <thread>
#include <tuple>

#include "exchange_harness.h"
#include "support/ranks.h"

namespace ferry {
namespace {

using testing::ExchangeCase;
using testing::FakeExperts;
using testing::Routing;

using namespace std::chrono_literals;

constexpr auto kDelay = 40ms;
constexpr int kDelays = 3;

enum class Before { nothing, dispatch_send, combine_send };

DispatcherOptions options_of(MoeA2ABackend backend) {
  return {.exchange = exchange_options(backend),
          .slots_per_rank = 3,
          .hidden = 24,
          .topk = 3,
          .max_tokens = 9};
}

/// Distinct slots on `rank` that the tokens of `source` name.
std::uint64_t rows_between(const ExchangeCase& exchange, Rank source, Rank rank) {
  const std::vector<SlotId> slots = exchange.slots(source);
  const auto topk = static_cast<std::size_t>(exchange.options.topk);
  const int tp = exchange.options.tp;
  std::uint64_t rows = 0;
  for (std::size_t t = 0; t * topk < slots.size(); ++t) {
    if (static_cast<int>(t) % tp != source % tp) continue;
    std::set<SlotId> here;
    for (std::size_t k = 0; k < topk; ++k) {
      const SlotId slot = slots[t * topk + k];
      if (slot >= 0 && slot / exchange.options.slots_per_rank == rank) here.insert(slot);
    }
    rows += here.size();
  }
  return rows;
}

struct Delay {
  Before before = Before::nothing;
  Rank rank = -1;
};

/// Returns the routing, for a repetition.
std::unique_ptr<CachedRouting> exchange_once(Dispatcher& dispatcher,
                                             const ExchangeCase& exchange,
                                             Rank rank,
                                             const CachedRouting* cached = nullptr,
                                             Delay delay = {}) {
  const auto sleep_before = [&](Before point) {
    if (delay.rank == rank && delay.before == point) std::this_thread::sleep_for(kDelay);
  };
  const std::vector<float> rows = exchange.rows(rank);
  const std::vector<SlotId> slots = exchange.slots(rank);
  const std::vector<float> weights = exchange.weights(rank);
  const auto* first = reinterpret_cast<const std::byte*>(rows.data()) +
                      static_cast<std::size_t>(exchange.first_column(rank)) * sizeof(float);
  sleep_before(Before::dispatch_send);
  dispatcher.dispatch_send(
      {.rows = {first, static_cast<std::ptrdiff_t>(sizeof(float)) * exchange.options.hidden},
       .tokens = exchange.tokens(rank),
       .slots = slots,
       .weights = weights,
       .cached = cached});
  FakeExperts::compute(exchange, rank, dispatcher.dispatch_recv());
  std::unique_ptr<CachedRouting> kept = dispatcher.keep_routing();
  sleep_before(Before::combine_send);
  dispatcher.combine_send();
  std::vector<float> out(rows.size());
  dispatcher.combine_recv(
      {.weights = weights,
       .rows = {reinterpret_cast<std::byte*>(out.data()),
                static_cast<std::ptrdiff_t>(sizeof(float)) * exchange.columns()}});
  return kept;
}

class SourceStatsOf : public ::testing::TestWithParam<std::tuple<MoeA2ABackend, std::string>> {
 protected:
  MoeA2ABackend backend() const { return std::get<0>(GetParam()); }

  RankKind kind() const { return {.transport = std::get<1>(GetParam())}; }
};

TEST_P(SourceStatsOf, RowsAreThoseThatWereRouted) {
  constexpr int kRanks = 4;
  on_ranks({.kind = kind(), .ranks = kRanks}, [&](Transport& transport) {
    ThreadPool pool(1);
    const Rank rank = transport.rank();
    for (const int tp : {1, 2}) {
      DispatcherOptions options = options_of(backend());
      if (tp > 1 && options.exchange.hidden_partition) continue;
      options.tp = tp;
      Dispatcher dispatcher(options, transport, pool);
      std::vector<std::uint64_t> expected(kRanks);
      bool some_rank_had_none = false;
      std::uint64_t seed = 1;
      for (const Routing routing :
           {Routing::random, Routing::masked, Routing::duplicates, Routing::one_expert}) {
        for (int n = 0; n < 6; ++n) {
          ExchangeCase exchange{
              .options = options, .ranks = kRanks, .routing = routing, .seed = seed++};
          const auto kept = exchange_once(dispatcher, exchange, rank);
          exchange_once(dispatcher, exchange, rank, kept.get());
          for (Rank source = 0; source < kRanks; ++source) {
            expected[static_cast<std::size_t>(source)] += 2 * rows_between(exchange, source, rank);
            some_rank_had_none |= exchange.tokens(source) == 0;
          }
        }
      }
      EXPECT_TRUE(some_rank_had_none) << "the test needs a rank without tokens";
      ASSERT_EQ(dispatcher.source_stats().size(), expected.size());
      for (std::size_t source = 0; source < expected.size(); ++source)
        EXPECT_EQ(dispatcher.source_stats()[source].rows_received, expected[source])
            << "on rank " << rank << " from " << source << ", tp " << tp;
    }
  });
}

TEST_P(SourceStatsOf, TheLateRankIsTheOneWaitedFor) {
  constexpr int kRanks = 3;
  constexpr Rank kLate = 1;
  on_ranks({.kind = kind(), .ranks = kRanks}, [&](Transport& transport) {
    ThreadPool pool(1);
    const Rank rank = transport.rank();
    for (const Before before : {Before::dispatch_send, Before::combine_send}) {
      const DispatcherOptions options = options_of(backend());
      Dispatcher dispatcher(options, transport, pool);
      for (int n = 0; n < kDelays; ++n) {
        const ExchangeCase exchange{
            .options = options, .ranks = kRanks, .seed = static_cast<std::uint64_t>(n)};
        exchange_once(dispatcher, exchange, rank, nullptr, {before, kLate});
      }
      const std::span<const SourceStats> sources = dispatcher.source_stats();
      EXPECT_EQ(sources[static_cast<std::size_t>(rank)].wait_ns(), 0U);
      if (rank == kLate) continue;
      const auto late =
          static_cast<std::uint64_t>(std::chrono::nanoseconds(kDelay).count() * kDelays / 2);
      const SourceStats& of_late = sources[kLate];
      const SourceStats& of_other = sources[static_cast<std::size_t>(kRanks - kLate - rank)];
      EXPECT_GT(
          before == Before::dispatch_send ? of_late.dispatch_wait_ns : of_late.combine_wait_ns,
          late);
      EXPECT_GT(of_late.wait_ns(), of_other.wait_ns());
    }
  });
}

TEST_P(SourceStatsOf, AMaskedRankBringsNothingMore) {
  constexpr int kRanks = 3;
  constexpr Rank kGone = 2;
  on_ranks({.kind = kind(), .ranks = kRanks}, [&](Transport& transport) {
    ThreadPool pool(1);
    const Rank rank = transport.rank();
    DispatcherOptions options = options_of(backend());
    options.exchange.on_dead_rank = ExchangeOptions::OnDeadRank::mask;
    Dispatcher dispatcher(options, transport, pool);
    ExchangeCase exchange{.options = options, .ranks = kRanks, .seed = 3};
    exchange_once(dispatcher, exchange, rank);
    // Who is masked has to be gone: until its sums are done it reads what the others overwrite.
    ASSERT_EQ(transport.barrier(deadline_in(std::chrono::seconds(60))), WaitResult::reached);
    if (rank == kGone) return;
    dispatcher.mask(kGone);
    exchange_once(dispatcher, exchange, rank);
    exchange_once(dispatcher, exchange, rank);
    for (Rank source = 0; source < kRanks; ++source) {
      const std::uint64_t times = source == kGone ? 1 : 3;
      EXPECT_EQ(dispatcher.source_stats()[static_cast<std::size_t>(source)].rows_received,
                times * rows_between(exchange, source, rank))
          << "on rank " << rank << " from " << source;
    }
  });
}

/// All but the one that stands for another.
std::vector<MoeA2ABackend> named_backends() {
  std::vector<MoeA2ABackend> backends(all_backends().begin(), all_backends().end());
  std::erase(backends, MoeA2ABackend::automatic);
  return backends;
}

std::string name_of(const ::testing::TestParamInfo<SourceStatsOf::ParamType>& info) {
  std::string name(backend_name(std::get<0>(info.param)));
  std::ranges::replace_if(
      name, [](unsigned char c) { return std::isalnum(c) == 0; }, '_');
  return name + "_" + std::get<1>(info.param);
}

INSTANTIATE_TEST_SUITE_P(All,
                         SourceStatsOf,
                         ::testing::Combine(::testing::ValuesIn(named_backends()),
                                            ::testing::Values("inproc", "shm")),
                         name_of);

}  // namespace
}  // namespace ferry
