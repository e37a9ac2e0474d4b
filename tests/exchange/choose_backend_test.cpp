#include "ferry/choose_backend.h"

#include <gtest/gtest.h>

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

}  // namespace
}  // namespace ferry
