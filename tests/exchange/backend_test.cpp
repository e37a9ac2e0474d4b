#include "ferry/backend.h"

#include <gtest/gtest.h>

#include <string>

#include "ferry/core/error.h"

namespace ferry {
namespace {

TEST(Backend, NamesRoundTrip) {
  for (const auto b : all_backends()) EXPECT_EQ(parse_backend(backend_name(b)), b);
  for (const auto m : all_deepep_modes()) EXPECT_EQ(parse_deepep_mode(deepep_mode_name(m)), m);
  for (const auto f :
       {DispatchFormat::padded, DispatchFormat::ragged, DispatchFormat::row_pointers})
    EXPECT_EQ(parse_format(format_name(f)), f);
}

TEST(Backend, UnknownNamesListTheKnown) {
  try {
    parse_backend("nvshmem");
    FAIL();
  } catch (const ConfigError& e) {
    EXPECT_NE(std::string(e.what()).find(
                  "known: none, alltoallv, pplx, deepep, mooncake, ascend_fuseep, auto"),
              std::string::npos)
        << e.what();
  }
  EXPECT_THROW(parse_deepep_mode("fast"), ConfigError);
}

TEST(Backend, AutoIsNoRowOfTheTable) {
  EXPECT_THROW(exchange_options(MoeA2ABackend::automatic), BrokenContract);
  EXPECT_THROW(exchange_options(MoeA2ABackend::deepep, DeepepMode::automatic), BrokenContract);
}

TEST(Backend, OnlyPreReducingRowsSumBeforeHome) {
  using ReduceAt = ExchangeOptions::ReduceAt;
  EXPECT_EQ(exchange_options(MoeA2ABackend::pplx).reduce_at, ReduceAt::home);
  EXPECT_EQ(exchange_options(MoeA2ABackend::alltoallv).reduce_at, ReduceAt::home);
  EXPECT_EQ(exchange_options(MoeA2ABackend::deepep, DeepepMode::low_latency).reduce_at,
            ReduceAt::home);
  EXPECT_EQ(exchange_options(MoeA2ABackend::deepep, DeepepMode::normal).reduce_at,
            ReduceAt::rank_then_home);
  EXPECT_EQ(exchange_options(MoeA2ABackend::none).reduce_at, ReduceAt::rank_then_home);
}

}  // namespace
}  // namespace ferry
