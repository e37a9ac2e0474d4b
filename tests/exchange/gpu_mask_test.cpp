// What survivors get when a rank that exchanges on a GPU dies, or is late, and its backend masks:
// as dead_rank_test.cpp has it for the CPU, with the same sums. Run by the emulator; memory of a
// rank that died stays, as CUDA keeps an ended process's until the others have closed it.
#include <fmt/core.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <latch>
#include <string>
#include <tuple>
#include <vector>

#include "ferry/core/error.h"
#include "gpu_harness.h"
#include "support/emulated_queue.h"
#include "support/long_tests.h"
#include "support/ranks.h"

namespace ferry {
namespace {

using testing::EmulatedQueue;
using testing::ExchangeCase;
using testing::FakeExperts;
using testing::GpuEmulator;
using testing::GpuLane;

constexpr int kRanks = 4;
constexpr Rank kVictim = 1;
constexpr int kFatal = 1;  // the exchange in which it dies
constexpr int kExchanges = 4;

DispatcherOptions options_of(int tp, WireType wire, std::chrono::milliseconds timeout) {
  return {.exchange = exchange_options(MoeA2ABackend::mooncake),
          .slots_per_rank = 3,
          .hidden = 24,
          .topk = 3,
          .max_tokens = 9,
          .tp = tp,
          .dispatch_wire = wire,
          .expert_type = wire,
          .combine_wire = wire,
          .timeout = timeout};
}

/// At the end of a rank, however it comes: waits for the others, which may still reach its memory.
class MeetsAtEnd {
 public:
  explicit MeetsAtEnd(std::latch& all) : all_(all) {}

  ~MeetsAtEnd() { all_.arrive_and_wait(); }

  MeetsAtEnd(const MeetsAtEnd&) = delete;
  MeetsAtEnd& operator=(const MeetsAtEnd&) = delete;

 private:
  std::latch& all_;
};

/// Long enough for ranks that live, on a busy machine.
std::chrono::milliseconds timeout_of_deaths() {
  return std::chrono::milliseconds(slow_run() ? 15000 : 1500);
}

ExchangeCase exchange_number(const DispatcherOptions& options, int n) {
  return {.options = options, .ranks = kRanks, .seed = static_cast<std::uint64_t>(n) + 5};
}

/// Each sum must be whole, or lack exactly what the victim computed.
void check_sums(const ExchangeCase& exchange, Rank rank, GpuLane& lane, bool is_gone) {
  std::vector<char> gone(kRanks);
  gone[kVictim] = 1;
  const std::vector<float> whole = testing::expected_sums(exchange, rank);
  const std::vector<float> partial = testing::expected_sums(exchange, rank, gone);
  const std::vector<float> got = lane.sums(whole.size());
  std::vector<char> lost(static_cast<std::size_t>(exchange.tokens(rank)));
  for (const int t : lane.exchange().lost_tokens()) lost.at(static_cast<std::size_t>(t)) = 1;
  const auto width = static_cast<std::size_t>(exchange.options.hidden);
  const int tp = exchange.options.tp;
  for (std::size_t t = 0; t < lost.size(); ++t) {
    // Tokens that the victim itself should have sent for its group are lost altogether.
    const bool of_victim = tp > 1 && exchange.holder(rank) == exchange.holder(kVictim) &&
                           static_cast<int>(t) % tp == kVictim % tp;
    const bool needs =
        of_victim || testing::needs_rank(exchange, rank, static_cast<int>(t), kVictim);
    EXPECT_TRUE(needs || !lost[t]) << "token " << t << " lacks nothing";
    EXPECT_TRUE(!needs || !is_gone || lost[t]) << "token " << t << " is lost and not told";
    if (lost[t] && of_victim) continue;
    const auto first = static_cast<std::ptrdiff_t>(t * width);
    const std::vector<float>& expected = lost[t] ? partial : whole;
    EXPECT_TRUE(std::equal(got.begin() + first,
                           got.begin() + first + static_cast<std::ptrdiff_t>(width),
                           expected.begin() + first))
        << "token " << t << (lost[t] ? " lost" : "");
  }
}

enum class DiesBefore { dispatch_send, dispatch_recv, combine_send, combine_recv };

/// In which kind of exchange, of how many ranks on each host.
struct Kind {
  const char* name;
  int tp = 1;
  bool sums = false;
  int ranks_per_host = kRanks;
};

using Death = std::tuple<DiesBefore, Kind>;

class GpuDeadRank : public ::testing::TestWithParam<Death> {};

TEST_P(GpuDeadRank, IsMaskedAndWhatItHadIsReported) {
  const auto [when, kind] = GetParam();
  if (slow_run() && (when != DiesBefore::combine_send || (kind.tp != 1 && !kind.sums)))
    GTEST_SKIP() << "long waits";
  DispatcherOptions options =
      options_of(kind.tp, kind.tp == 1 ? WireType::f32 : WireType::fp8, timeout_of_deaths());
  if (kind.sums) options.exchange.reduce_at = ExchangeOptions::ReduceAt::rank_then_home;
  GpuEmulator device({.seed = 3});
  std::latch all_done(kRanks);
  on_ranks({.ranks = kRanks}, [&, when = when, hosts = kind.ranks_per_host](Transport& transport) {
    EmulatedQueue queue(device, 2);
    GpuLane lane(options, transport, queue, hosts);
    const MeetsAtEnd meets(all_done);
    const Rank rank = transport.rank();
    for (int n = 0; n < kExchanges; ++n) {
      const ExchangeCase exchange = exchange_number(options, n);
      const auto dies = [&](DiesBefore point) {
        return rank == kVictim && n == kFatal && point == when;
      };
      // What has ended has ended, also on the rank that died: nothing else says so.
      const auto know_of_the_dead = [&] {
        if (n >= kFatal) device.synchronize();
      };
      know_of_the_dead();
      lane.bring(exchange, false);
      if (dies(DiesBefore::dispatch_send)) break;
      lane.dispatch_send();
      if (dies(DiesBefore::dispatch_recv)) break;
      lane.dispatch_recv();
      know_of_the_dead();
      lane.compute([&](const ExpertRows& rows) { FakeExperts::compute(exchange, rank, rows); });
      if (dies(DiesBefore::combine_send)) break;
      lane.combine_send();
      if (dies(DiesBefore::combine_recv)) break;
      lane.combine_recv(false);
      check_sums(exchange, rank, lane, n > kFatal);
      EXPECT_TRUE(n <= kFatal || lane.exchange().is_masked(kVictim));
      for (const Rank other : {0, 2, 3}) EXPECT_FALSE(lane.exchange().is_masked(other)) << other;
    }
  });
}

std::string name_of(const ::testing::TestParamInfo<Death>& info) {
  const auto [when, kind] = info.param;
  constexpr std::array kNames = {"dispatch_send", "dispatch_recv", "combine_send", "combine_recv"};
  return fmt::format("{}_{}", kNames[static_cast<std::size_t>(when)], kind.name);
}

INSTANTIATE_TEST_SUITE_P(
    Phases,
    GpuDeadRank,
    ::testing::Combine(
        ::testing::Values(DiesBefore::dispatch_send,
                          DiesBefore::dispatch_recv,
                          DiesBefore::combine_send,
                          DiesBefore::combine_recv),
        ::testing::Values(Kind{.name = "plain"},
                          Kind{.name = "groups", .tp = 2},
                          Kind{.name = "sums", .tp = 2, .sums = true},
                          Kind{.name = "hosts", .ranks_per_host = 1},
                          Kind{.name = "hosts_of_groups", .tp = 2, .ranks_per_host = 2})),
    name_of);

/// Of another host, as a process with a device of its own.
TEST(GpuMask, AProcessThatDiesIsMaskedOverANetwork) {
  if (slow_run()) GTEST_SKIP() << "long waits";
  const DispatcherOptions options = options_of(1, WireType::bf16, timeout_of_deaths());
  for (const RankKind& kind : testing::kinds_that_die()) {
    on_ranks({.kind = kind, .ranks = kRanks, .killed_rank = kVictim}, [&](Transport& transport) {
      GpuEmulator device({.seed = 6});
      EmulatedQueue queue(device, 2);
      GpuLane lane(options, transport, queue, /*ranks_per_host=*/1);
      const Rank rank = transport.rank();
      for (int n = 0; n < kExchanges; ++n) {
        const ExchangeCase exchange = exchange_number(options, n);
        lane.bring(exchange, false);
        lane.dispatch_send();
        lane.dispatch_recv();
        lane.compute([&](const ExpertRows& rows) { FakeExperts::compute(exchange, rank, rows); });
        if (rank == kVictim && n == kFatal) raise(SIGKILL);
        lane.combine_send();
        lane.combine_recv(false);
        check_sums(exchange, rank, lane, n > kFatal);
      }
      EXPECT_TRUE(lane.exchange().is_masked(kVictim));
      lane.exchange().leave();
    });
  }
}

TEST(GpuMask, AGraphGoesOnWithoutARankThatItsCallerHasMasked) {
  const DispatcherOptions options = options_of(1, WireType::bf16, std::chrono::seconds(60));
  GpuEmulator device({.seed = 4});
  std::latch all_done(kRanks), victim_left(1);
  on_ranks({.ranks = kRanks}, [&](Transport& transport) {
    EmulatedQueue queue(device, 2);
    GpuLane lane(options, transport, queue);
    const MeetsAtEnd meets(all_done);
    const Rank rank = transport.rank();
    const auto dispatch = queue.capture([&] {
      lane.dispatch_send();
      lane.dispatch_recv();
    });
    const auto combine = queue.capture([&] {
      lane.combine_send();
      lane.combine_recv(false);
    });
    for (int n = 0; n < (slow_run() ? 2 : 4); ++n) {
      const ExchangeCase exchange = exchange_number(options, n);
      if (n == kFatal && rank == kVictim) victim_left.count_down();
      if (n >= kFatal && rank == kVictim) break;
      if (n == kFatal) {
        victim_left.wait();
        device.synchronize();
        lane.exchange().mask(kVictim);
      }
      lane.bring(exchange, false);
      dispatch->launch();
      lane.compute([&](const ExpertRows& rows) { FakeExperts::compute(exchange, rank, rows); });
      combine->launch();
      check_sums(exchange, rank, lane, n >= kFatal);
    }
  });
}

void expect_late_rank_is_told(int ranks_per_host) {
  const DispatcherOptions options = options_of(1, WireType::f32, timeout_of_deaths());
  GpuEmulator device({.seed = 5});
  std::latch others_done(2), all_done(3);
  on_ranks({.ranks = 3}, [&](Transport& transport) {
    EmulatedQueue queue(device, 1);
    GpuLane lane(options, transport, queue, ranks_per_host);
    const MeetsAtEnd meets(all_done);
    const bool is_late = transport.rank() == kVictim;
    if (is_late) others_done.wait();
    for (int n = 0; n < (is_late ? 1 : 2); ++n) {
      lane.bring({.options = options, .ranks = 3, .seed = 7}, false);
      lane.dispatch_send();
      lane.dispatch_recv();
      lane.combine_send();
      lane.combine_recv(false);
    }
    if (!is_late) {
      lane.exchange().synchronise();
      EXPECT_TRUE(lane.exchange().is_masked(kVictim));
      others_done.count_down();
    } else {
      try {
        lane.exchange().synchronise();
        ADD_FAILURE() << "no error";
      } catch (const TransportError& e) {
        EXPECT_EQ(e.kind(), TransportError::Kind::aborted);
        EXPECT_NE(std::string(e.what()).find("went on without it"), std::string::npos) << e.what();
      }
    }
  });
}

TEST(GpuMask, ALateRankIsToldThatTheOthersWentOn) { expect_late_rank_is_told(3); }

TEST(GpuMask, ALateRankOfAnotherHostIsToldToo) {
  if (slow_run()) GTEST_SKIP() << "long waits";
  expect_late_rank_is_told(1);
}

TEST(GpuMask, RefusesWhatCannotBeMasked) {
  GpuEmulator device;
  on_ranks({.ranks = 1}, [&](Transport& transport) {
    EmulatedQueue queue(device, 1);
    DispatcherOptions options = options_of(1, WireType::f32, std::chrono::seconds(60));
    GpuExchange exchange(options, transport, queue);
    EXPECT_THROW(exchange.mask(0), BrokenContract) << "itself";
    EXPECT_THROW(exchange.mask(1), BrokenContract);
    options.exchange.on_dead_rank = ExchangeOptions::OnDeadRank::fail;
    GpuExchange failing(options, transport, queue);
    EXPECT_THROW(failing.mask(0), BrokenContract);
  });
}

}  // namespace
}  // namespace ferry
