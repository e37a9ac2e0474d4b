// The exchange engine: every backend and row format over every transport, against sums worked out
// from the routing alone.
#include "ferry/moe/dispatcher.h"

#include <gtest/gtest.h>

#include <string>
#include <tuple>

#include "exchange_harness.h"
#include "ferry/core/error.h"
#include "ferry/transport/launch.h"

namespace ferry {
namespace {

using testing::HarnessOptions;
using testing::Routing;

struct Variant {
  std::string_view name;
  ExchangeOptions::SendPer send_per;
  ExchangeOptions::ReduceAt reduce_at;
  DispatchFormat format;
};

using SendPer = ExchangeOptions::SendPer;
using ReduceAt = ExchangeOptions::ReduceAt;

constexpr Variant kVariants[] = {
    {"pplx", SendPer::token_rank, ReduceAt::home, DispatchFormat::padded},
    {"homeRagged", SendPer::token_rank, ReduceAt::home, DispatchFormat::ragged},
    {"homePointers", SendPer::token_rank, ReduceAt::home, DispatchFormat::row_pointers},
    {"none", SendPer::rank, ReduceAt::rank_then_home, DispatchFormat::ragged},
    {"rankSumsPadded", SendPer::token_rank, ReduceAt::rank_then_home, DispatchFormat::padded},
};

HarnessOptions harness(const Variant& variant, Routing routing, DType wire) {
  HarnessOptions options{.routing = routing, .seed = 17};
  options.dispatcher = {.exchange = {variant.send_per, variant.format, variant.reduce_at},
                        .slots_per_rank = 3,
                        .hidden = 24,
                        .topk = 4,
                        .max_tokens = 9,
                        .dispatch_wire = wire,
                        .expert_type = wire,
                        .combine_wire = wire};
  return options;
}

/// Runs the harness on `ranks` ranks; a wrong byte anywhere ends in a thrown error or a status.
void run(const HarnessOptions& options, std::string_view transport, int ranks, int threads) {
  const int status =
      run_ranks({.transport = std::string(transport), .ranks = ranks}, [&](Transport& t) {
        ThreadPool pool(threads);
        run_exchanges(options, t, pool);
        return 0;
      });
  EXPECT_EQ(status, 0);
}

class Exchange : public ::testing::TestWithParam<std::tuple<Variant, std::string, int>> {};

TEST_P(Exchange, DeliversEveryRowAndSumsInOrder) {
  const auto& [variant, transport, ranks] = GetParam();
  for (const Routing routing :
       {Routing::random, Routing::masked, Routing::duplicates, Routing::one_expert}) {
    for (const DType wire : {DType::f32, DType::bf16}) {
      HarnessOptions options = harness(variant, routing, wire);
      options.count = 12;
      run(options, transport, ranks, ranks == 2 ? 2 : 1);
    }
  }
}

std::string variant_name(const ::testing::TestParamInfo<Exchange::ParamType>& info) {
  const auto& [variant, transport, ranks] = info.param;
  return std::string(variant.name) + "_" + transport + "_" + std::to_string(ranks);
}

INSTANTIATE_TEST_SUITE_P(All,
                         Exchange,
                         ::testing::Combine(::testing::ValuesIn(kVariants),
                                            ::testing::Values("inproc", "shm"),
                                            ::testing::Values(1, 2, 3, 4, 7)),
                         variant_name);

TEST(Dispatcher, SurvivesThousandsOfExchanges) {
  HarnessOptions options = harness(kVariants[0], Routing::masked, DType::bf16);
  options.count = 3000;
  run(options, "inproc", 3, 1);
}

TEST(Dispatcher, ServesOneLocalSlotAndMoreRanksThanExperts) {
  HarnessOptions options = harness(kVariants[0], Routing::random, DType::f32);
  options.dispatcher.slots_per_rank = 1;
  options.dispatcher.topk = 1;
  options.count = 50;
  run(options, "inproc", 7, 1);
}

TEST(Dispatcher, ConvertsAnF32WireForBf16Experts) {
  HarnessOptions options = harness(kVariants[0], Routing::random, DType::f32);
  options.dispatcher.expert_type = DType::bf16;  // the harness' rows are exact in bf16
  options.count = 5;
  run(options, "inproc", 2, 1);
}

TEST(Dispatcher, RefusesAWireThatRowPointersCannotRead) {
  HarnessOptions options = harness(kVariants[2], Routing::random, DType::f32);
  options.dispatcher.expert_type = DType::bf16;
  EXPECT_THROW(run(options, "inproc", 1, 1), ConfigError);
}

TEST(Dispatcher, RefusesPhasesOutOfTurn) {
  run_ranks({.ranks = 1}, [](Transport& t) {
    ThreadPool pool(1);
    Dispatcher dispatcher(harness(kVariants[0], Routing::random, DType::f32).dispatcher, t, pool);
    EXPECT_THROW(dispatcher.dispatch_recv(), BrokenContract);
    EXPECT_THROW(dispatcher.combine_send(), BrokenContract);
    return 0;
  });
}

TEST(Dispatcher, KnowsItsMemoryBeforeItTakesIt) {
  const DispatcherOptions options = harness(kVariants[0], Routing::random, DType::f32).dispatcher;
  const std::size_t pulled = Dispatcher::mem_size(options, 4, true);
  // Stage, results and experts' input are at least there; slabs only where rows are pushed.
  EXPECT_GE(pulled, (9 + 2 * 3 * 4 * 9) * 24 * sizeof(float));
  EXPECT_GT(Dispatcher::mem_size(options, 4, false), pulled);
}

TEST(Dispatcher, NamesPhaseAndRankWhenAPeerHangs) {
  std::string message;
  try {
    run_ranks({.ranks = 2}, [&](Transport& t) {
      ThreadPool pool(1);
      DispatcherOptions options = harness(kVariants[0], Routing::random, DType::f32).dispatcher;
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

TEST(Backend, NamesRoundTripAndUnknownOnesListTheKnown) {
  for (const MoeA2ABackend b : {MoeA2ABackend::none, MoeA2ABackend::pplx})
    EXPECT_EQ(parse_backend(backend_name(b)), b);
  try {
    parse_backend("nvshmem");
    FAIL();
  } catch (const ConfigError& e) {
    EXPECT_NE(std::string(e.what()).find("none, pplx"), std::string::npos) << e.what();
  }
}

}  // namespace
}  // namespace ferry
