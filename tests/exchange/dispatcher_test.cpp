// The exchange engine: every backend and row format over every transport, against sums worked out
// from the routing alone.
#include "ferry/dispatcher.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <string>

#include "exchange_harness.h"
#include "ferry/core/error.h"
#include "ferry/launch.h"
#include "ferry/transport/track.h"
#include "support/long_tests.h"
#include "support/ranks.h"

namespace ferry {
namespace {

using testing::HarnessOptions;
using testing::Routing;

HarnessOptions harness(MoeA2ABackend backend, Routing routing, WireType wire) {
  HarnessOptions options{.routing = routing, .seed = 17};
  options.dispatcher = {.exchange = exchange_options(backend),
                        .slots_per_rank = 3,
                        .hidden = 24,
                        .topk = 4,
                        .max_tokens = 9,
                        .dispatch_wire = wire,
                        .expert_type = wire,
                        .combine_wire = wire};
  return options;
}

void run(const HarnessOptions& options, const RanksOptions& on, int threads = 1) {
  on_ranks(on, [&](Transport& transport) {
    ThreadPool pool(threads);
    run_exchanges(options, transport, pool);
  });
}

TEST(Dispatcher, SurvivesThousandsOfExchanges) {
  HarnessOptions options = harness(MoeA2ABackend::pplx, Routing::masked, WireType::bf16);
  options.count = long_tests() ? 100'000 : 2000;
  options.lanes = 2;
  run(options, {.ranks = 3});
}

TEST(Dispatcher, SurvivesAThousandExchangesOverABadNetwork) {
  HarnessOptions options = harness(MoeA2ABackend::pplx, Routing::masked, WireType::bf16);
  options.count = long_tests() ? 100'000 : 1000;
  const Faults faults{
      .seed = 5, .max_delay = std::chrono::microseconds(50), .reorder = true, .network = true};
  run(options, {.ranks = 3, .faults = faults});
}

/// The messages of one exchange on 3 ranks are 6 puts of a rank, and some rows.
class RankKilled : public ::testing::TestWithParam<int> {};

TEST_P(RankKilled, IsNamedByTheSurvivors) {
  HarnessOptions options = harness(MoeA2ABackend::pplx, Routing::random, WireType::f32);
  options.count = 100;
  options.dispatcher.timeout = std::chrono::seconds(10);
  const RanksOptions on{.kind = {.transport = "shm"},
                        .ranks = 3,
                        .faults = Faults{.ends_at_put = GetParam(), .ends_by_signal = true},
                        .faulty_rank = 1,
                        .killed_rank = 1};
  on_ranks(on, [&](Transport& transport) {
    ThreadPool pool(1);
    try {
      run_exchanges(options, transport, pool);
      FAIL() << "nobody noticed";
    } catch (const TransportError& e) {
      EXPECT_EQ(e.kind(), TransportError::Kind::peer_died) << e.what();
      EXPECT_EQ(e.peer(), 1) << e.what();
    }
  });
}

INSTANTIATE_TEST_SUITE_P(AtEachPut, RankKilled, ::testing::Range(60, 68));

TEST(Dispatcher, ReportsALostPutInsteadOfHanging) {
  HarnessOptions options = harness(MoeA2ABackend::pplx, Routing::random, WireType::f32);
  options.count = 200;
  options.dispatcher.timeout = std::chrono::milliseconds(200);
  on_ranks({.ranks = 2, .faults = Faults{.seed = 3, .drop = 0.02}}, [&](Transport& transport) {
    ThreadPool pool(1);
    EXPECT_THROW(run_exchanges(options, transport, pool), TransportError);
    transport.abort("lost");
  });
}

TEST(Dispatcher, ServesOneLocalSlotAndMoreRanksThanExperts) {
  HarnessOptions options = harness(MoeA2ABackend::pplx, Routing::random, WireType::f32);
  options.dispatcher.slots_per_rank = 1;
  options.dispatcher.topk = 1;
  options.count = 50;
  run(options, {.ranks = 7});
}

TEST(Dispatcher, ConvertsAnF32WireForBf16Experts) {
  HarnessOptions options = harness(MoeA2ABackend::pplx, Routing::random, WireType::f32);
  options.dispatcher.expert_type = WireType::bf16;  // the harness' rows are exact in bf16
  options.count = 5;
  run(options, {.ranks = 2});
}

TEST(Dispatcher, CarriesManyExpertsATokenAndWideRows) {
  HarnessOptions options = harness(MoeA2ABackend::pplx, Routing::random, WireType::bf16);
  options.dispatcher.topk = 32;
  options.dispatcher.slots_per_rank = 40;
  options.dispatcher.hidden = 16384;
  options.count = 3;
  run(options, {.ranks = 2});
}

TEST(Dispatcher, RefusesAWireThatRowPointersCannotRead) {
  HarnessOptions options = harness(MoeA2ABackend::ascend_fuseep, Routing::random, WireType::f32);
  options.dispatcher.expert_type = WireType::bf16;
  on_ranks({.ranks = 1}, [&](Transport& transport) {
    ThreadPool pool(1);
    EXPECT_THROW(Dispatcher(options.dispatcher, transport, pool), ConfigError);
  });
}

TEST(Dispatcher, RefusesPhasesOutOfTurn) {
  run_ranks({.ranks = 1}, [](Transport& t) {
    ThreadPool pool(1);
    Dispatcher dispatcher(
        harness(MoeA2ABackend::pplx, Routing::random, WireType::f32).dispatcher, t, pool);
    EXPECT_THROW(dispatcher.dispatch_recv(), BrokenContract);
    EXPECT_THROW(dispatcher.combine_send(), BrokenContract);
    return 0;
  });
}

/// Address space of this process, in bytes.
std::size_t address_space() {
  std::ifstream statm("/proc/self/statm");
  std::size_t pages = 0;
  statm >> pages;
  return pages * static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
}

TEST(Dispatcher, KnowsItsMemoryBeforeItTakesIt) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "sanitizers take memory of their own";
#endif
  for (const MoeA2ABackend backend :
       {MoeA2ABackend::pplx, MoeA2ABackend::none, MoeA2ABackend::ascend_fuseep}) {
    for (const bool network : {false, true}) {
      for (const WireType wire : {WireType::bf16, WireType::fp8}) {
        HarnessOptions options = harness(backend, Routing::random, wire);
        options.dispatcher.slots_per_rank = 16;
        options.dispatcher.hidden = 4096;
        options.dispatcher.max_tokens = 512;
        const std::size_t told =
            Dispatcher::mem_size(options.dispatcher, 1, {.load_store = !network});
        on_ranks({.ranks = 1, .faults = Faults{.network = network}}, [&](Transport& transport) {
          ThreadPool pool(1);
          const std::size_t before = address_space();
          const Dispatcher dispatcher(options.dispatcher, transport, pool);
          const auto taken = static_cast<double>(address_space() - before);
          EXPECT_NEAR(
              taken, static_cast<double>(told), 0.02 * static_cast<double>(told) + (1 << 20))
              << backend_name(backend) << (network ? " pushing " : " pulling ")
              << wire_type_name(wire);
        });
      }
    }
  }
}

TEST(Dispatcher, NamesPhaseAndRankWhenAPeerHangs) {
  std::string message;
  try {
    run_ranks({.ranks = 2}, [&](Transport& t) {
      ThreadPool pool(1);
      DispatcherOptions options =
          harness(MoeA2ABackend::pplx, Routing::random, WireType::f32).dispatcher;
      options.timeout = std::chrono::milliseconds(100);
      Dispatcher dispatcher(options, t, pool);
      if (t.rank() == 1) {
        std::this_thread::sleep_for(std::chrono::milliseconds(600));
        return 0;
      }
      dispatcher.dispatch_send({.layer = 5});
      dispatcher.dispatch_recv();
      return 0;
    });
  } catch (const TransportError& e) {
    message = e.what();
  }
  EXPECT_NE(message.find("dispatch_recv"), std::string::npos) << message;
  EXPECT_NE(message.find("layer 5"), std::string::npos) << message;
  EXPECT_NE(message.find("waited 0.1 s for rank 1"), std::string::npos) << message;
}

TEST(Dispatcher, NamesRanksAsTheWholeGroupKnowsThemOnATrackOfIt) {
  on_ranks({.ranks = 4}, [&](Transport& group) {
    TrackTransport track(group, 2);
    ThreadPool pool(1);
    const HarnessOptions options = harness(MoeA2ABackend::pplx, Routing::random, WireType::f32);
    Dispatcher dispatcher(options.dispatcher, track, pool);
    if (group.rank() == 1) {
      dispatcher.dispatch_send({.timeout = std::chrono::milliseconds(50)});
      try {
        dispatcher.dispatch_recv();
        ADD_FAILURE() << "nobody answered, and it went on";
      } catch (const TransportError& e) {
        EXPECT_EQ(e.peer(), 3);
        const std::string what = e.what();
        EXPECT_NE(what.find("dispatch_recv of rank 1 "), std::string::npos) << what;
        EXPECT_NE(what.find("waited 0.05 s for rank 3:"), std::string::npos) << what;
      }
    }
    EXPECT_EQ(group.barrier(deadline_in(std::chrono::seconds(20))), WaitResult::reached);
  });
}

TEST(Dispatcher, TakesAnotherTimeoutForOneExchange) {
  on_ranks({.ranks = 2}, [&](Transport& transport) {
    ThreadPool pool(1);
    const HarnessOptions options =
        harness(MoeA2ABackend::pplx, Routing::random, WireType::f32);  // 30 s
    Dispatcher dispatcher(options.dispatcher, transport, pool);
    if (transport.rank() == 0) {
      dispatcher.dispatch_send({.timeout = std::chrono::milliseconds(50)});
      EXPECT_THROW(dispatcher.dispatch_recv(), TransportError);
    }
    EXPECT_EQ(transport.barrier(deadline_in(std::chrono::seconds(20))), WaitResult::reached);
  });
}

TEST(Dispatcher, SaysWhenRanksDisagreeAboutAKeptRouting) {
  on_ranks({.ranks = 2}, [&](Transport& transport) {
    ThreadPool pool(1);
    HarnessOptions options = harness(MoeA2ABackend::pplx, Routing::random, WireType::f32);
    Dispatcher dispatcher(options.dispatcher, transport, pool);
    dispatcher.dispatch_send({});
    dispatcher.dispatch_recv();
    const auto kept = dispatcher.keep_routing();
    dispatcher.combine_send();
    dispatcher.combine_recv({});
    dispatcher.dispatch_send({.cached = transport.rank() == 0 ? kept.get() : nullptr});
    try {
      dispatcher.dispatch_recv();
      ADD_FAILURE() << "nobody noticed";
    } catch (const TransportError& e) {
      EXPECT_NE(std::string(e.what()).find("routings"), std::string::npos) << e.what();
    }
    EXPECT_EQ(transport.barrier(deadline_in(std::chrono::seconds(20))), WaitResult::reached);
  });
}

}  // namespace
}  // namespace ferry
