#include "ferry/moe/backend.h"

#include <gtest/gtest.h>

#include <string>

#include "ferry/core/error.h"

namespace ferry {
namespace {

TEST(Backend, NamesRoundTrip) {
  for (const auto b :
       {MoeA2ABackend::none, MoeA2ABackend::alltoallv, MoeA2ABackend::pplx, MoeA2ABackend::deepep})
    EXPECT_EQ(parse_backend(backend_name(b)), b);
  for (const auto m : {DeepepMode::normal, DeepepMode::low_latency})
    EXPECT_EQ(parse_deepep_mode(deepep_mode_name(m)), m);
}

TEST(Backend, UnknownNamesListTheKnown) {
  try {
    parse_backend("nvshmem");
    FAIL();
  } catch (const ConfigError& e) {
    EXPECT_NE(std::string(e.what()).find("known: none, alltoallv, pplx, deepep"), std::string::npos)
        << e.what();
  }
  EXPECT_THROW(parse_deepep_mode("fast"), ConfigError);
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
