// What is counted without ranks is what real ranks count, number by number.
#include "ferry/sim/traffic.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "ferry/backend.h"
#include "ferry/compute/tensor_group.h"
#include "ferry/core/error.h"
#include "ferry/core/threads.h"
#include "ferry/exchange/exchange_layout.h"
#include "ferry/placement.h"
#include "ferry/transport/track.h"
#include "support/counting_transport.h"
#include "support/ranks.h"

namespace ferry {
namespace {

enum class Load { uneven, none, one_expert, repeated };

struct Shape {
  int ranks = 1;
  int ranks_per_host = 1;
  int tp = 1;      // ranks of a group; with slices holders of one
  int slices = 1;  // ranks of a holder

  int holders() const { return ranks / slices; }
};

struct Backend {
  MoeA2ABackend backend;
  DeepepMode mode = DeepepMode::low_latency;
};

const std::vector<Backend> kBackends{{MoeA2ABackend::none},
                                     {MoeA2ABackend::alltoallv},
                                     {MoeA2ABackend::pplx},
                                     {MoeA2ABackend::deepep, DeepepMode::low_latency},
                                     {MoeA2ABackend::deepep, DeepepMode::normal},
                                     {MoeA2ABackend::mooncake},
                                     {MoeA2ABackend::ascend_fuseep}};
constexpr int kTopk = 3;
constexpr int kMaxTokens = 23;

/// One exchange as all ranks know it: of holders, each of `slices` ranks.
struct Exchange {
  TrafficOptions options;
  std::vector<std::vector<SlotId>> slots;  // [home][tokens, K]
  int slices = 1;
};

int tokens_of(Load load, Rank rank) {
  if (load == Load::none) return 0;
  return rank % 4 == 1 ? 0 : (rank * 7 + 5) % kMaxTokens + 1;
}

Exchange exchange_of(const Backend& backend, const Shape& shape, Load load, WireType wire) {
  const int experts = 2 * shape.holders() + 1;  // which the ranks do not divide
  const Placement all = Placement::identity(experts, shape.holders(), /*redundant=*/3);
  Exchange e;
  e.slices = shape.slices;
  e.options.dispatcher = {.exchange = exchange_options(backend.backend, backend.mode),
                          .slots_per_rank = all.slots_per_rank(),
                          .hidden = 32,
                          .topk = kTopk,
                          .max_tokens = kMaxTokens,
                          .tp = shape.tp,
                          .dispatch_wire = wire,
                          .expert_type = wire,
                          .combine_wire = wire};
  for (Rank home = 0; home < shape.holders(); ++home) {
    const Rank group = home / shape.tp;
    const int tokens = tokens_of(load, group);
    e.options.tokens.push_back(tokens);
    std::mt19937 engine(static_cast<unsigned>(group) + 1);
    std::vector<ExpertId> ids(static_cast<std::size_t>(tokens * kTopk));
    for (ExpertId& id : ids) {
      id = static_cast<ExpertId>(engine() % static_cast<unsigned>(experts + 1)) - 1;
      if (load == Load::one_expert) id = experts / 2;
      if (load == Load::repeated) id = std::max(id / 3, 0);
    }
    const Placement mine = all.choosing({.source = home, .tp = shape.tp});
    e.slots.emplace_back(ids.size());
    mine.place(ids, kTopk, e.slots.back());
  }
  return e;
}

void check_rank(const Exchange& e,
                const LinkLevels& levels,
                const RankTraffic& expected,
                const CountingTransport& transport,
                const Dispatcher& dispatcher) {
  PerLevel<LinkCount> dispatch = {};
  PerLevel<LinkCount> combine = {};
  for (const auto& [key, count] : transport.counts()) {
    const auto signal = static_cast<ExchangeSignal>(key.second % kExchangeSignals);
    const bool out =
        signal == ExchangeSignal::dispatch_message || signal == ExchangeSignal::dispatch_rows;
    LinkCount& sum = (out ? dispatch : combine)[levels.between(transport.rank(), key.first)];
    sum = {sum.puts + count.puts, sum.bytes + count.bytes};
  }
  for (std::size_t level = 0; level < levels.levels(); ++level) {
    EXPECT_EQ(expected.dispatch.out[level].puts, dispatch[level].puts) << "level " << level;
    EXPECT_EQ(expected.dispatch.out[level].bytes, dispatch[level].bytes) << "level " << level;
    EXPECT_EQ(expected.combine.out[level].puts, combine[level].puts) << "level " << level;
    EXPECT_EQ(expected.combine.out[level].bytes, combine[level].bytes) << "level " << level;
  }
  const ExchangeStats& stats = dispatcher.stats();
  EXPECT_EQ(expected.stats.bytes_logical, stats.bytes_logical);
  EXPECT_EQ(expected.stats.bytes_wire, stats.bytes_wire);
  EXPECT_EQ(expected.stats.bytes_network, stats.bytes_network);
  EXPECT_EQ(expected.stats.exchanges, stats.exchanges);
  std::uint64_t rows = 0;
  for (const SourceStats& source : dispatcher.source_stats()) rows += source.rows_received;
  EXPECT_EQ(expected.rows, rows);
  EXPECT_EQ(expected.tokens,
            e.options.tokens[static_cast<std::size_t>(transport.rank() / e.slices)]);
}

/// Runs the exchange on this rank of its track, whose experts write zeros. Returns the rows that
/// each computed.
std::vector<std::int32_t> run_exchange(const Exchange& e, Rank rank, Dispatcher& dispatcher) {
  const DispatcherOptions& d = dispatcher.options();
  const std::vector<SlotId>& slots = e.slots[static_cast<std::size_t>(rank)];
  const std::vector<float> weights(slots.size(), 0.5F);
  const int tokens = e.options.tokens[static_cast<std::size_t>(rank)];
  std::vector<float> rows(static_cast<std::size_t>(tokens * d.hidden));
  std::iota(rows.begin(), rows.end(), 1.0F);
  const auto stride =
      static_cast<std::ptrdiff_t>(static_cast<std::size_t>(d.hidden) * sizeof(float));
  dispatcher.dispatch_send({.rows = {reinterpret_cast<const std::byte*>(rows.data()), stride},
                            .tokens = tokens,
                            .slots = slots,
                            .weights = weights});
  std::vector<std::int32_t> computed(static_cast<std::size_t>(d.slots_per_rank));
  dispatcher.dispatch_recv([&](const ExpertRows& in) {
    for (std::size_t s = 0; s < computed.size(); ++s) {
      computed[s] += in.counts[s];
      for (std::int64_t i = in.offsets[s]; i < in.offsets[s] + in.counts[s]; ++i)
        std::fill_n(in.out.row(i),
                    static_cast<std::size_t>(d.columns_of_results()) * dtype_bytes(in.out_type),
                    std::byte{0});
    }
  });
  dispatcher.combine_send();
  dispatcher.combine_recv(
      {.weights = weights, .rows = {reinterpret_cast<std::byte*>(rows.data()), stride}});
  return computed;
}

std::vector<RankTraffic> counted(const Exchange& e, const LinkLevels& levels) {
  return count_tracks(e.options, e.slices, levels, [&](Rank home, std::span<SlotId> slots) {
    std::ranges::copy(e.slots[static_cast<std::size_t>(home)], slots.begin());
  });
}

void run_rank(const Exchange& e,
              const LinkLevels& levels,
              const std::vector<RankTraffic>& expected,
              Transport& inner) {
  const auto rank = static_cast<std::size_t>(inner.rank());
  CountingTransport transport(inner, levels.ranks_per_host(), e.options.max_put_bytes);
  TrackTransport track(transport, e.slices);
  DispatcherOptions options = e.options.dispatcher;
  if (e.slices > 1) {
    const GroupMember slice{inner.rank() % e.slices, e.slices};
    options.result_columns = static_cast<int>(slice.columns(options.hidden).size());
  }
  ThreadPool pool(e.options.threads);
  Dispatcher dispatcher(options, track, pool);
  transport.forget();
  EXPECT_EQ(run_exchange(e, track.rank(), dispatcher), expected[rank].slot_rows);
  check_rank(e, levels, expected[rank], transport, dispatcher);
  ASSERT_EQ(transport.barrier(deadline_in(std::chrono::seconds(30))), WaitResult::reached);
}

void compare(const Exchange& e, const Shape& shape) {
  const int spans[] = {shape.ranks_per_host, std::max(shape.ranks, shape.ranks_per_host)};
  const LinkLevels levels(shape.ranks, spans);
  const std::vector<RankTraffic> expected = counted(e, levels);
  on_ranks({.ranks = shape.ranks},
           [&](Transport& transport) { run_rank(e, levels, expected, transport); });
  // What leaves one rank arrives at another.
  for (std::size_t level = 0; level < levels.levels(); ++level) {
    LinkCount out, in;
    for (const RankTraffic& rank : expected) {
      for (const PhaseTraffic* phase : {&rank.dispatch, &rank.combine}) {
        out = {out.puts + phase->out[level].puts, out.bytes + phase->out[level].bytes};
        in = {in.puts + phase->in[level].puts, in.bytes + phase->in[level].bytes};
      }
    }
    EXPECT_EQ(out, in);
  }
}

class Traffic : public ::testing::TestWithParam<Backend> {};

TEST_P(Traffic, EqualsTheCountersOfRealRanks) {
  for (const Shape& shape :
       {Shape{1, 1}, Shape{2, 2}, Shape{3, 1}, Shape{4, 2}, Shape{6, 2}, Shape{16, 8}}) {
    for (const Load load : {Load::uneven, Load::none, Load::one_expert, Load::repeated}) {
      SCOPED_TRACE(::testing::Message() << shape.ranks << " by " << shape.ranks_per_host
                                        << ", load " << static_cast<int>(load));
      compare(exchange_of(GetParam(), shape, load, WireType::bf16), shape);
    }
  }
}

TEST_P(Traffic, EqualsThemOnOneHostOfMoreRanksThanCores) {
  constexpr Shape kShape{16, 16};
  compare(exchange_of(GetParam(), kShape, Load::uneven, WireType::bf16), kShape);
}

TEST_P(Traffic, EqualsThemWithQuantisedWiresThreadsAndSmallPuts) {
  for (const Shape& shape : {Shape{3, 1}, Shape{4, 2}, Shape{2, 2}}) {
    SCOPED_TRACE(::testing::Message() << shape.ranks << " by " << shape.ranks_per_host);
    Exchange e = exchange_of(GetParam(), shape, Load::uneven, WireType::fp8);
    e.options.dispatcher.combine_wire = WireType::int8;
    e.options.threads = 2;
    e.options.max_put_bytes = 400;
    compare(e, shape);
  }
}

TEST_P(Traffic, EqualsThemWhereGroupsHoldTheSameTokens) {
  for (const Shape& shape : {Shape{2, 2, 2},
                             Shape{4, 2, 2},
                             Shape{6, 3, 3},
                             Shape{6, 2, 3},  // groups over two hosts
                             Shape{8, 4, 2},
                             Shape{4, 1, 2}}) {
    for (const Load load : {Load::uneven, Load::none, Load::repeated}) {
      for (const WireType wire : {WireType::bf16, WireType::fp8}) {
        SCOPED_TRACE(::testing::Message()
                     << shape.ranks << " by " << shape.ranks_per_host << " in groups of "
                     << shape.tp << ", load " << static_cast<int>(load));
        compare(exchange_of(GetParam(), shape, load, wire), shape);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, Traffic, ::testing::ValuesIn(kBackends), [](const auto& of) {
  std::string name(backend_name(of.param.backend));
  std::erase(name, '_');
  return name + (of.param.mode == DeepepMode::normal ? "Normal" : "");
});

/// Slices of uneven width, and holders that are groups themselves.
TEST(TrafficOfSlices, EqualsTheCountersOfRealTracks) {
  for (const Backend& backend : {Backend{MoeA2ABackend::pplx},
                                 Backend{MoeA2ABackend::alltoallv},
                                 Backend{MoeA2ABackend::ascend_fuseep}}) {
    for (const Shape& shape : {Shape{4, 4, 1, 2},
                               Shape{4, 2, 1, 2},
                               Shape{6, 3, 1, 3},
                               Shape{8, 4, 2, 2},
                               Shape{8, 8, 4, 2},
                               Shape{12, 6, 2, 3}}) {
      SCOPED_TRACE(::testing::Message() << backend_name(backend.backend) << ", " << shape.ranks
                                        << " by " << shape.ranks_per_host << " in groups of "
                                        << shape.tp * shape.slices << ", slices " << shape.slices);
      Exchange e = exchange_of(backend, shape, Load::uneven, WireType::bf16);
      e.options.dispatcher.hidden = 80;  // five panels
      compare(e, shape);
    }
  }
}

/// Blocks in which sums leave cut runs of tokens: only long rows and many tokens show it.
TEST(TrafficOfSums, LeaveInTheBlocksOfRealRanks) {
  constexpr Shape kShape{2, 1};
  Exchange e =
      exchange_of({MoeA2ABackend::deepep, DeepepMode::normal}, kShape, Load::uneven, WireType::f32);
  e.options.dispatcher.hidden = 2048;  // 8 KiB: 16 tokens a block
  e.options.dispatcher.topk = 1;
  e.options.dispatcher.max_tokens = 100;
  e.options.tokens = {100, 37};
  for (std::size_t home = 0; home < 2; ++home) {
    e.slots[home].assign(static_cast<std::size_t>(e.options.tokens[home]), 0);
    for (std::size_t t = 0; t < e.slots[home].size(); ++t)
      e.slots[home][t] = t % 11 == 3 ? 0 : e.options.dispatcher.slots_per_rank;
  }
  compare(e, kShape);
}

/// Real processes, and real hosts as far as one machine has them.
TEST(TrafficOfTransports, EqualsTheStatsOfEveryBackend) {
  for (const RankKind& kind : bare_rank_kinds()) {
    if (!kind.started_here() || kind.namespaces) continue;
    SCOPED_TRACE(kind.label());
    const Shape shape{4, kind.between_hosts() ? kind.ranks_per_host : 4};
    const int spans[] = {shape.ranks_per_host, shape.ranks};
    const LinkLevels levels(shape.ranks, spans);
    std::vector<Exchange> exchanges;
    for (const Backend& backend : kBackends)
      exchanges.push_back(exchange_of(backend, shape, Load::uneven, WireType::bf16));
    on_ranks({.kind = kind, .ranks = shape.ranks}, [&](Transport& transport) {
      for (const Exchange& e : exchanges) {
        ThreadPool pool(1);
        Dispatcher dispatcher(e.options.dispatcher, transport, pool);
        const auto rank = static_cast<std::size_t>(transport.rank());
        const RankTraffic expected = counted(e, levels)[rank];
        EXPECT_EQ(run_exchange(e, transport.rank(), dispatcher), expected.slot_rows);
        EXPECT_EQ(dispatcher.stats(), expected.stats);
        ASSERT_EQ(transport.barrier(deadline_in(std::chrono::seconds(30))), WaitResult::reached);
      }
    });
  }
}

TEST(TrafficErrors, NameWhatDoesNotGoTogether) {
  const auto message = [](auto call) -> std::string {
    try {
      call();
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "";
  };
  const int host[] = {4, 6};
  EXPECT_EQ(message([&] { LinkLevels(6, std::span(host).first(1)); }),
            "6 ranks are not a multiple of 4 ranks a host");
  EXPECT_EQ(message([&] { LinkLevels(8, host); }),
            "links that join 6 ranks do not join whole runs of 4");
  EXPECT_EQ(message([&] { LinkLevels(8, std::span(host).first(1)); }),
            "the last level of links joins 4 of 8 ranks");
  Exchange e = exchange_of({MoeA2ABackend::pplx}, {2, 2}, Load::none, WireType::bf16);
  const int two[] = {2};
  e.options.dispatcher.exchange.hidden_partition = true;
  EXPECT_EQ(message([&] { count_exchange(e.options, LinkLevels(2, two), {}); }),
            "exchanges of parts of rows are not forecast");
  EXPECT_EQ(message([&] { count_tracks(e.options, 3, LinkLevels(2, two), {}); }),
            "3 slices of experts on hosts of 2 ranks: no memory is shared");
}

}  // namespace
}  // namespace ferry
