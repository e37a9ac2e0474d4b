#include "ferry/exchange/compatibility.h"

#include <gtest/gtest.h>

#include <string>

#include "ferry/core/error.h"

namespace ferry {
namespace {

DispatcherOptions options(MoeA2ABackend backend) {
  return {.exchange = exchange_options(backend),
          .slots_per_rank = 2,
          .hidden = 64,
          .topk = 2,
          .max_tokens = 4};
}

/// The reason of the refusal; fails where there is none.
std::string refusal(const DispatcherOptions& o, int ranks) {
  try {
    check_options(o, ranks);
  } catch (const ConfigError& e) {
    return e.what();
  }
  ADD_FAILURE() << "was not refused";
  return "";
}

void expect_refusal(const DispatcherOptions& o, int ranks, const std::string& part) {
  const std::string reason = refusal(o, ranks);
  EXPECT_NE(reason.find(part), std::string::npos) << reason;
}

TEST(Compatibility, AllBackendsServeFerrysExperts) {
  for (const MoeA2ABackend backend : all_backends()) {
    if (backend == MoeA2ABackend::automatic) continue;
    EXPECT_FALSE(why_not(exchange_options(backend), {})) << backend_name(backend);
    EXPECT_NO_THROW(check_options(options(backend), 2)) << backend_name(backend);
  }
}

TEST(Compatibility, RefusesExpertsThatCannotReadTheLayout) {
  const ExpertsContract padded_only{
      .name = "my kernel", .ragged = false, .row_pointers = false, .in_tiles = false};
  EXPECT_FALSE(why_not(exchange_options(MoeA2ABackend::pplx), padded_only));
  const auto reason = why_not(exchange_options(MoeA2ABackend::alltoallv), padded_only);
  ASSERT_TRUE(reason);
  EXPECT_NE(reason->find("my kernel cannot read ragged rows"), std::string::npos) << *reason;
  EXPECT_THROW(check_experts(exchange_options(MoeA2ABackend::ascend_fuseep), padded_only),
               ConfigError);
}

TEST(Compatibility, RefusesTilesForExpertsThatMustSeeAllRows) {
  const auto reason = why_not(exchange_options(MoeA2ABackend::ascend_fuseep), {.in_tiles = false});
  ASSERT_TRUE(reason);
  EXPECT_NE(reason->find("tile by tile"), std::string::npos) << *reason;
}

TEST(Compatibility, RefusesWiresThatExpertsCannotHave) {
  DispatcherOptions pointers = options(MoeA2ABackend::ascend_fuseep);
  pointers.dispatch_wire = WireType::fp8;
  expect_refusal(pointers, 2, "cannot take a fp8 wire");
  DispatcherOptions other = options(MoeA2ABackend::pplx);
  other.dispatch_wire = WireType::bf16;
  other.expert_type = WireType::int8;
  expect_refusal(other, 2, "delivered only as they travelled");
}

TEST(Compatibility, RefusesPartitionsThatDoNotComeOut) {
  DispatcherOptions columns = options(MoeA2ABackend::alltoallv);
  columns.exchange.hidden_partition = true;
  EXPECT_NO_THROW(check_options(columns, 4));
  expect_refusal(columns, 3, "H 64 does not divide by 3 ranks");
  columns.exchange.on_dead_rank = ExchangeOptions::OnDeadRank::mask;
  expect_refusal(columns, 4, "no rank can be masked");
  DispatcherOptions groups = options(MoeA2ABackend::pplx);
  groups.tp = 2;
  EXPECT_NO_THROW(check_options(groups, 4));
  expect_refusal(groups, 3, "do not make groups of tp 2");
}

TEST(Compatibility, RanksThatHoldTheSameTokensChooseTheSameReplicas) {
  const Placement alike = Placement::identity(4, 4, 4);
  const Placement own = alike.choosing({.source = 1});
  DispatcherOptions o = options(MoeA2ABackend::alltoallv);
  EXPECT_NO_THROW(check_placement(o, own));
  o.tp = 2;
  EXPECT_NO_THROW(check_placement(o, alike));
  EXPECT_THROW(check_placement(o, own), ConfigError);
  EXPECT_NO_THROW(check_placement(o, alike.choosing({.source = 1, .tp = 2})));
  o.tp = 4;
  EXPECT_THROW(check_placement(o, alike.choosing({.source = 1, .tp = 2})), ConfigError);
  o.tp = 1;
  o.exchange.hidden_partition = true;
  EXPECT_THROW(check_placement(o, own), ConfigError);
}

}  // namespace
}  // namespace ferry
