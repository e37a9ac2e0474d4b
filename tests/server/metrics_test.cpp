#include "ferry/server/metrics.h"

#include <gmock/gmock.h>

#include <string>

namespace ferry {
namespace {

using testing::HasSubstr;
using testing::Not;

EngineState waits_of(std::uint64_t epoch, int ranks, int milliseconds) {
  EngineState state;
  state.stats.epoch = epoch;
  state.stats.ranks = ranks;
  state.stats.sources.resize(static_cast<std::size_t>(ranks) * static_cast<std::size_t>(ranks));
  for (SourceStats& source : state.stats.sources)
    source.combine_wait_ns = static_cast<std::uint64_t>(milliseconds) * 1'000'000;
  return state;
}

TEST(Metrics, CountersOfPairsBeginAnewWithOtherRanks) {
  Metrics metrics("model");
  constexpr const char* kPair = "ferry_exchange_wait_seconds_total{rank=\"1\",source=\"0\"} ";
  EXPECT_THAT(metrics.text(waits_of(1, 2, 500)), HasSubstr(kPair + std::string("0.5")));
  EXPECT_THAT(metrics.text(waits_of(1, 2, 750)), HasSubstr(kPair + std::string("0.75")));
  const std::string larger = metrics.text(waits_of(2, 3, 250));
  EXPECT_THAT(larger, HasSubstr(kPair + std::string("0.25")));
  EXPECT_THAT(larger, HasSubstr("{rank=\"2\",source=\"2\"} 0.25"));
  const std::string smaller = metrics.text(waits_of(3, 1, 250));
  EXPECT_THAT(smaller, HasSubstr("{rank=\"0\",source=\"0\"} 0.25"));
  EXPECT_THAT(smaller, Not(HasSubstr("rank=\"1\"")));
}

}  // namespace
}  // namespace ferry
