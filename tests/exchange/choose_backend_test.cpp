#include "ferry/choose_backend.h"

#include <gtest/gtest.h>

#include <mutex>
#include <string>
#include <vector>

#include "ferry/core/error.h"
#include "ferry/core/threads.h"
#include "ferry/inproc.h"
#include "ferry/launch.h"
#include "support/ranks.h"

namespace ferry {
namespace {

BackendSituation prefill(bool load_store) {
  return {.ranks = 4, .tokens = 512, .hidden = 4096, .topk = 8, .load_store = load_store};
}

TEST(ChooseBackend, KeepsWhatWasNamed) {
  const BackendChoice choice =
      choose_backend(MoeA2ABackend::alltoallv, DeepepMode::low_latency, prefill(true));
  EXPECT_EQ(choice.backend, MoeA2ABackend::alltoallv);
  EXPECT_TRUE(choice.why.empty());
}

TEST(ChooseBackend, MovesNothingWherePeersCanBeRead) {
  const BackendChoice choice =
      choose_backend(MoeA2ABackend::automatic, DeepepMode::automatic, prefill(true));
  EXPECT_EQ(choice.backend, MoeA2ABackend::ascend_fuseep);
  EXPECT_NE(choice.why.find("read each other's memory"), std::string::npos) << choice.why;
  BackendSituation cannot = prefill(true);
  cannot.experts_take_pointers = false;
  EXPECT_EQ(choose_backend(MoeA2ABackend::automatic, DeepepMode::automatic, cannot).backend,
            MoeA2ABackend::pplx);
}

TEST(ChooseBackend, SumsOnEachRankOnlyWhereAllowed) {
  const auto reduce_at = [](const BackendChoice& c) {
    return exchange_options(c.backend, c.mode).reduce_at;
  };
  BackendSituation network = prefill(false);
  network.ranks = 2;  // four of a token's eight rows would come back, or one sum
  EXPECT_EQ(reduce_at(choose_backend(MoeA2ABackend::automatic, DeepepMode::automatic, network)),
            ExchangeOptions::ReduceAt::home);
  const BackendChoice bound = choose_backend(MoeA2ABackend::deepep, DeepepMode::automatic, network);
  EXPECT_EQ(bound.mode, DeepepMode::low_latency);
  EXPECT_NE(bound.why.find("--allow-prereduce"), std::string::npos) << bound.why;
  network.allow_prereduce = true;
  EXPECT_EQ(reduce_at(choose_backend(MoeA2ABackend::automatic, DeepepMode::automatic, network)),
            ExchangeOptions::ReduceAt::rank_then_home);
  EXPECT_EQ(choose_backend(MoeA2ABackend::deepep, DeepepMode::automatic, network).mode,
            DeepepMode::normal);
}

TEST(ChooseBackend, CostsGrowWithTokensAndShrinkWithTheWire) {
  BackendSituation small = prefill(false);
  small.tokens = 16;
  BackendSituation fp8 = prefill(false);
  fp8.dispatch_wire = WireType::fp8;
  const double full = backend_costs(prefill(false)).front().us;
  EXPECT_LT(backend_costs(small).front().us, full);
  EXPECT_LT(backend_costs(fp8).front().us, full);
}

TEST(ChooseBackend, SaysWhereAnEightBitCombineWireDoesNotPay) {
  const auto why = [](WireType wire, bool load_store) {
    BackendSituation situation = prefill(load_store);
    situation.combine_wire = wire;
    return choose_backend(MoeA2ABackend::automatic, DeepepMode::automatic, situation).why;
  };
  EXPECT_NE(why(WireType::fp8, true).find("--combine-wire bf16"), std::string::npos);
  EXPECT_EQ(why(WireType::fp8, false).find("--combine-wire"), std::string::npos);
  EXPECT_EQ(why(WireType::f32, true).find("--combine-wire"), std::string::npos);
}

TEST(ChooseBackend, ChoosesForOneRankToo) {
  BackendSituation alone = prefill(true);
  alone.ranks = 1;
  EXPECT_NO_THROW(choose_backend(MoeA2ABackend::automatic, DeepepMode::automatic, alone));
  alone.load_store = false;
  EXPECT_NO_THROW(choose_backend(MoeA2ABackend::automatic, DeepepMode::automatic, alone));
}

/// A dispatcher of ragged sizes, and what is known of its exchanges.
DispatcherOptions shape_for(int tp = 1) {
  return {.slots_per_rank = 3,
          .hidden = 40,
          .topk = 4,
          .max_tokens = 7,
          .tp = tp,
          .dispatch_wire = WireType::bf16,
          .expert_type = WireType::bf16,
          .combine_wire = WireType::bf16};
}

BackendSituation situation_of(const DispatcherOptions& shape, const Transport& transport) {
  return {.ranks = transport.size(),
          .tokens = shape.max_tokens,
          .hidden = shape.hidden,
          .topk = shape.topk,
          .dispatch_wire = shape.dispatch_wire,
          .combine_wire = shape.combine_wire,
          .load_store = transport.capabilities().load_store};
}

/// What every rank of a group chose; empty where they differ.
std::string chosen_by_all(const LaunchOptions& launch,
                          MoeA2ABackend asked,
                          const DispatcherOptions& shape,
                          bool allow_prereduce = false) {
  std::mutex mutex;
  std::vector<std::string> heard;
  run_ranks(launch, [&](Transport& transport) {
    ThreadPool pool(1);
    BackendSituation situation = situation_of(shape, transport);
    situation.allow_prereduce = allow_prereduce;
    situation.experts_take_pointers = shape.expert_type == shape.dispatch_wire;
    const BackendChoice choice =
        measure_backend(asked, DeepepMode::automatic, situation, shape, transport, pool);
    const std::lock_guard lock(mutex);
    heard.push_back(BackendCost{choice.backend, choice.mode}.name() + "; " + choice.why);
    return 0;
  });
  for (const std::string& line : heard)
    if (line != heard.front()) return {};
  return heard.front();
}

TEST(MeasureBackend, RanksChooseAlikeAndSayByWhatTheyDid) {
  for (const int ranks : {1, 2, 3, 5}) {
    for (const MoeA2ABackend asked : {MoeA2ABackend::automatic, MoeA2ABackend::deepep}) {
      const std::string choice = chosen_by_all({.ranks = ranks}, asked, shape_for());
      EXPECT_FALSE(choice.empty()) << ranks;
      if (asked == MoeA2ABackend::deepep) {
        // Without leave to sum on ranks there is one mode alone, and nothing to measure.
        EXPECT_EQ(choice.find("deepep low_latency;"), 0U) << choice;
        continue;
      }
      EXPECT_NE(choice.find("exchanges of 1 and of 7 tokens a rank took"), std::string::npos)
          << choice;
      EXPECT_EQ(choice.find("none;"), std::string::npos) << choice;
      EXPECT_EQ(choice.find("deepep normal;"), std::string::npos) << choice;
    }
  }
}

TEST(MeasureBackend, TriesEveryShapeOfExchange) {
  DispatcherOptions more_experts_than_slots = shape_for();
  more_experts_than_slots.topk = 9;
  DispatcherOptions quantised = shape_for();
  quantised.dispatch_wire = WireType::fp8;
  quantised.combine_wire = WireType::int8;
  DispatcherOptions weighted = shape_for();
  weighted.row_weights = true;
  DispatcherOptions fixed = shape_for();
  fixed.exchange = {.format = DispatchFormat::ragged, .fixed_format = true};
  DispatcherOptions sliced = shape_for();
  sliced.result_columns = 16;
  for (const DispatcherOptions& shape :
       {more_experts_than_slots, quantised, weighted, fixed, sliced, shape_for(/*tp=*/2)}) {
    for (const bool allow_prereduce : {false, shape.result_columns == 0}) {
      const std::string choice =
          chosen_by_all({.ranks = 2}, MoeA2ABackend::automatic, shape, allow_prereduce);
      EXPECT_NE(choice.find("auto chose"), std::string::npos) << choice;
    }
  }
}

TEST(MeasureBackend, RunsNothingWhereNothingIsLeftToChoose) {
  // A rank alone on its end of two: any exchange would wait in vain.
  const auto ends = make_inproc(2);
  ThreadPool pool(1);
  const BackendChoice choice = measure_backend(MoeA2ABackend::pplx,
                                               DeepepMode::automatic,
                                               situation_of(shape_for(), *ends[0]),
                                               shape_for(),
                                               *ends[0],
                                               pool);
  EXPECT_EQ(choice.backend, MoeA2ABackend::pplx);
  EXPECT_TRUE(choice.why.empty());
}

TEST(MeasureBackend, ARankThatDoesNotComeEndsTheOthers) {
  EXPECT_THROW(run_ranks({.ranks = 2, .start_timeout = std::chrono::seconds(1)},
                         [](Transport& transport) {
                           if (transport.rank() == 1) return 0;
                           ThreadPool pool(1);
                           DispatcherOptions shape = shape_for();
                           shape.timeout = std::chrono::seconds(1);
                           static_cast<void>(measure_backend(MoeA2ABackend::automatic,
                                                             DeepepMode::automatic,
                                                             situation_of(shape, transport),
                                                             shape,
                                                             transport,
                                                             pool));
                           return 0;
                         }),
               TransportError);
}

}  // namespace
}  // namespace ferry
