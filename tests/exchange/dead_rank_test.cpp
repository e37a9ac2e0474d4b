// What survivors get when a rank dies in the middle of an exchange and its backend masks.
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <optional>
#include <string>
#include <thread>
#include <tuple>

#include "exchange_harness.h"
#include "ferry/core/error.h"
#include "ferry/exchange/exchange_layout.h"
#include "support/counting_transport.h"
#include "support/ranks.h"

namespace ferry {
namespace {

using testing::ExchangeCase;
using testing::FakeExperts;
using testing::Routing;

constexpr Rank kVictim = 1;
constexpr int kFatal = 4;  // the exchange in which it dies
constexpr int kExchanges = 12;

enum class DiesBefore { dispatch_send, dispatch_recv, combine_send, combine_recv };

struct Setting {
  std::string name;
  MoeA2ABackend backend = MoeA2ABackend::mooncake;  ///< masking is an option of all of them
  std::optional<DispatchFormat> format = {};        ///< instead of the backend's
  WireType wire = WireType::f32;
  bool network = false;
  int tp = 1;
  int ranks = 4;
};

DispatcherOptions options_of(const Setting& setting) {
  DispatcherOptions o{.exchange = exchange_options(setting.backend),
                      .slots_per_rank = 3,
                      .hidden = 24,
                      .topk = 3,
                      .max_tokens = 9,
                      .tp = setting.tp,
                      .dispatch_wire = setting.wire,
                      .expert_type = setting.wire,
                      .combine_wire = setting.wire,
                      .timeout = std::chrono::seconds(20)};
  o.exchange.on_dead_rank = ExchangeOptions::OnDeadRank::mask;
  if (setting.format) o.exchange.format = *setting.format;
  return o;
}

struct Ended {};

/// Ends this rank as its kind allows: a process is killed, a thread gives up.
[[noreturn]] void die(const RankKind& kind, Transport& transport) {
  if (kind.processes()) kill(getpid(), SIGKILL);
  transport.abort("the test ends it");
  throw Ended();
}

/// One exchange; the sums of each token must be whole, or lack exactly what the victim computed.
void exchange_once(Dispatcher& dispatcher,
                   const ExchangeCase& exchange,
                   Transport& transport,
                   const std::function<void(DiesBefore)>& point) {
  const Rank rank = transport.rank();
  const std::vector<float> rows = exchange.rows(rank);
  const std::vector<SlotId> slots = exchange.slots(rank);
  const std::vector<float> weights = exchange.weights(rank);
  const auto stride = static_cast<std::ptrdiff_t>(sizeof(float)) * exchange.options.hidden;
  point(DiesBefore::dispatch_send);
  dispatcher.dispatch_send({.rows = {reinterpret_cast<const std::byte*>(rows.data()), stride},
                            .tokens = exchange.tokens(rank),
                            .slots = slots,
                            .weights = weights});
  point(DiesBefore::dispatch_recv);
  dispatcher.dispatch_recv([&](const ExpertRows& r) { FakeExperts::compute(exchange, rank, r); });
  point(DiesBefore::combine_send);
  dispatcher.combine_send();
  point(DiesBefore::combine_recv);
  std::vector<float> out(rows.size());
  dispatcher.combine_recv(
      {.weights = weights, .rows = {reinterpret_cast<std::byte*>(out.data()), stride}});
  std::vector<char> gone(static_cast<std::size_t>(exchange.ranks));
  gone[kVictim] = 1;
  const std::vector<float> whole = testing::expected_sums(exchange, rank);
  const std::vector<float> partial = testing::expected_sums(exchange, rank, gone);
  std::vector<char> lost(static_cast<std::size_t>(exchange.tokens(rank)));
  for (const int t : dispatcher.lost_tokens()) lost[static_cast<std::size_t>(t)] = 1;
  const auto width = static_cast<std::size_t>(exchange.options.hidden);
  for (std::size_t t = 0; t < lost.size(); ++t) {
    // Tokens that the victim itself should have sent for its group are lost altogether.
    const bool of_victim =
        exchange.options.tp > 1 && exchange.holder(rank) == exchange.holder(kVictim) &&
        static_cast<int>(t) % exchange.options.tp == kVictim % exchange.options.tp;
    const bool needs =
        of_victim || testing::needs_rank(exchange, rank, static_cast<int>(t), kVictim);
    ASSERT_TRUE(needs || !lost[t]) << "token " << t << " lacks nothing";
    if (lost[t] && of_victim) continue;
    const float* expected = (lost[t] ? partial : whole).data() + t * width;
    ASSERT_EQ(std::memcmp(out.data() + t * width, expected, width * sizeof(float)), 0)
        << "token " << t << (lost[t] ? " lost" : "");
  }
}

class DeadRank : public ::testing::TestWithParam<std::tuple<Setting, std::string, DiesBefore>> {};

TEST_P(DeadRank, IsMaskedAndWhatItHadIsReported) {
  const Setting& setting = std::get<0>(GetParam());
  const RankKind kind{.transport = std::get<1>(GetParam())};
  const DiesBefore when = std::get<2>(GetParam());
  RanksOptions on{
      .kind = kind, .ranks = setting.ranks, .killed_rank = kind.processes() ? kVictim : Rank{-1}};
  if (setting.network)
    on.faults = Faults{.max_delay = std::chrono::microseconds(50), .network = true};
  on_ranks(on, [&](Transport& transport) {
    ThreadPool pool(1);
    const DispatcherOptions options = options_of(setting);
    Dispatcher dispatcher(options, transport, pool);
    ExchangeCase exchange{.options = options, .ranks = setting.ranks};
    try {
      for (int n = 0; n < kExchanges; ++n) {
        exchange.seed = static_cast<std::uint64_t>(n) + 5;
        exchange_once(dispatcher, exchange, transport, [&](DiesBefore point) {
          if (transport.rank() == kVictim && n == kFatal && point == when) die(kind, transport);
        });
        if (n <= kFatal) continue;
        EXPECT_TRUE(dispatcher.is_masked(kVictim));
        for (int t = 0; t < exchange.tokens(transport.rank()); ++t) {
          if (!testing::needs_rank(exchange, transport.rank(), t, kVictim)) continue;
          const auto lost = dispatcher.lost_tokens();
          EXPECT_NE(std::find(lost.begin(), lost.end(), t), lost.end()) << "token " << t;
        }
      }
    } catch (const Ended&) {
    }
  });
}

const Setting kSettings[] = {
    {.name = "padded"},
    {.name = "pointers", .format = DispatchFormat::row_pointers},
    {.name = "gathered", .backend = MoeA2ABackend::none},
    {.name = "int8", .wire = WireType::int8},
    {.name = "network", .network = true},
    {.name = "networkTiles", .backend = MoeA2ABackend::ascend_fuseep, .network = true},
    {.name = "networkPerExpert", .backend = MoeA2ABackend::alltoallv, .network = true},
    {.name = "networkGathered", .backend = MoeA2ABackend::none, .network = true},
    {.name = "groups", .tp = 2},
    {.name = "groupsGathered", .backend = MoeA2ABackend::none, .tp = 2},
    {.name = "networkGroups", .network = true, .tp = 2},
    {.name = "networkGroupsPerExpert",
     .backend = MoeA2ABackend::alltoallv,
     .network = true,
     .tp = 2},
    {.name = "twoRanks", .ranks = 2},
};

std::string label(const ::testing::TestParamInfo<DeadRank::ParamType>& info) {
  constexpr const char* kPoints[] = {"dispatchSend", "dispatchRecv", "combineSend", "combineRecv"};
  const auto& [setting, transport, when] = info.param;
  return setting.name + "_" + transport + "_" + kPoints[static_cast<int>(when)];
}

INSTANTIATE_TEST_SUITE_P(All,
                         DeadRank,
                         ::testing::Combine(::testing::ValuesIn(kSettings),
                                            ::testing::Values("shm", "inproc"),
                                            ::testing::Values(DiesBefore::dispatch_send,
                                                              DiesBefore::dispatch_recv,
                                                              DiesBefore::combine_send,
                                                              DiesBefore::combine_recv)),
                         label);

class DeadRanksGroups : public ::testing::TestWithParam<Setting> {};

/// The victim ends after it has sent all it had to send: who waits longer hears of it within the
/// exchange, who does not hears later. A member of its group must take both their answers.
TEST_P(DeadRanksGroups, TakesAnswersOfRanksThatKnowAndOfRanksThatDoNot) {
  const Setting& setting = GetParam();
  constexpr Rank kKnows = 2;
  RanksOptions on{.ranks = setting.ranks};
  if (setting.network) on.faults = Faults{.network = true};
  for (std::uint64_t seed = 90; seed < 100; ++seed) {
    std::atomic<bool> has_sent_all = false;
    on_ranks(on, [&](Transport& transport) {
      const Rank rank = transport.rank();
      ThreadPool pool(1);
      const DispatcherOptions options = options_of(setting);
      Dispatcher dispatcher(options, transport, pool);
      ExchangeCase exchange{.options = options, .ranks = setting.ranks, .seed = seed};
      try {
        exchange_once(dispatcher, exchange, transport, [&](DiesBefore point) {
          if (rank == kVictim && point == DiesBefore::combine_recv) {
            has_sent_all = true;
            throw Ended();
          }
          if (rank != kKnows || point != DiesBefore::dispatch_recv) return;
          while (!has_sent_all) {  // what this rank sent still leaves
            static_cast<void>(dispatcher.poll());
            std::this_thread::yield();
          }
          dispatcher.mask(kVictim);
        });
        const bool lost = !dispatcher.lost_tokens().empty();
        EXPECT_TRUE(dispatcher.is_masked(kVictim) || !lost) << "whoever loses tokens knows by whom";
        dispatcher.mask(kVictim);
        ++exchange.seed;
        exchange_once(dispatcher, exchange, transport, [](DiesBefore) {});
      } catch (const Ended&) {
      }
    });
  }
}

INSTANTIATE_TEST_SUITE_P(All,
                         DeadRanksGroups,
                         ::testing::ValuesIn([] {
                           std::vector<Setting> groups(std::begin(kSettings), std::end(kSettings));
                           std::erase_if(groups, [](const Setting& s) { return s.tp == 1; });
                           return groups;
                         }()),
                         [](const auto& setting) { return setting.param.name; });

/// Says that the victim has died where its rows are waited for, once all of it has been sent.
class HearsBetweenMessageAndRows final : public CountingTransport {
 public:
  HearsBetweenMessageAndRows(Transport& inner, const std::atomic<bool>* victim_has_sent_all)
      : CountingTransport(inner, 1, SIZE_MAX), victim_has_sent_all_(victim_has_sent_all) {}

  WaitResult wait(Region& region, int signal, std::uint64_t count, Deadline deadline) override {
    const int rows = kVictim * kExchangeSignals + static_cast<int>(ExchangeSignal::dispatch_rows);
    if (victim_has_sent_all_ != nullptr && signal == rows) {
      while (!*victim_has_sent_all_) std::this_thread::yield();
      throw TransportError(TransportError::Kind::peer_died, kVictim, "it died");
    }
    return CountingTransport::wait(region, signal, count, deadline);
  }

 private:
  const std::atomic<bool>* victim_has_sent_all_;  // nullptr: hears nothing
};

TEST(DeadRanksGroup, GetsNoResultsOfRowsThatNeverCame) {
  const DispatcherOptions options = options_of({.name = "", .tp = 2});
  for (std::uint64_t seed = 90; seed < 100; ++seed) {
    std::atomic<bool> has_sent_all = false;
    on_ranks({.ranks = 4}, [&](Transport& inner) {
      HearsBetweenMessageAndRows transport(inner, inner.rank() == 2 ? &has_sent_all : nullptr);
      ThreadPool pool(1);
      Dispatcher dispatcher(options, transport, pool);
      const ExchangeCase exchange{.options = options, .ranks = 4, .seed = seed};
      try {
        exchange_once(dispatcher, exchange, transport, [&](DiesBefore point) {
          if (inner.rank() != kVictim || point != DiesBefore::combine_recv) return;
          has_sent_all = true;
          throw Ended();
        });
      } catch (const Ended&) {
      }
    });
  }
}

TEST(LateRank, IsMaskedAfterTheTimeoutAndToldSo) {
#ifdef __SANITIZE_THREAD__
  GTEST_SKIP() << "what a late rank reads may be overwritten meanwhile; it is told, and throws";
#endif
  DispatcherOptions options = options_of({.name = "late"});
  options.timeout = std::chrono::seconds(1);
  on_ranks({.ranks = 3}, [&](Transport& transport) {
    ThreadPool pool(1);
    Dispatcher dispatcher(options, transport, pool);
    ExchangeCase exchange{.options = options, .ranks = 3};
    const auto run = [&](int n) {
      exchange.seed = static_cast<std::uint64_t>(n) + 50;
      exchange_once(dispatcher, exchange, transport, [](DiesBefore) {});
    };
    run(0);
    if (transport.rank() == kVictim) {
      std::this_thread::sleep_for(std::chrono::milliseconds(2500));
      try {
        run(1);
        ADD_FAILURE() << "it was not told";
      } catch (const TransportError& e) {
        EXPECT_NE(std::string(e.what()).find("went on without it"), std::string::npos) << e.what();
      }
      return;
    }
    for (int n = 1; n < 5; ++n) run(n);
    EXPECT_TRUE(dispatcher.is_masked(kVictim));
  });
}

TEST(MaskedRank, NeedsNoWaitWhereTheCallerKnows) {
  const DispatcherOptions options = options_of({.name = "known"});
  on_ranks({.ranks = 3}, [&](Transport& transport) {
    ThreadPool pool(1);
    Dispatcher dispatcher(options, transport, pool);
    if (transport.rank() == kVictim) return;
    dispatcher.mask(kVictim);
    ExchangeCase exchange{.options = options, .ranks = 3};
    for (int n = 0; n < 5; ++n) {
      exchange.seed = static_cast<std::uint64_t>(n) + 70;
      exchange_once(dispatcher, exchange, transport, [](DiesBefore) {});
    }
  });
}

TEST(MaskedRank, CannotBeWhereDeathIsAnError) {
  DispatcherOptions options = options_of({.name = "strict"});
  options.exchange = exchange_options(MoeA2ABackend::pplx);
  on_ranks({.ranks = 2}, [&](Transport& transport) {
    ThreadPool pool(1);
    Dispatcher dispatcher(options, transport, pool);
    EXPECT_THROW(dispatcher.mask(1 - transport.rank()), BrokenContract);
  });
}

}  // namespace
}  // namespace ferry
