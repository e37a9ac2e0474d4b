#include "ferry/exchange_stats.h"

#include <gtest/gtest.h>

namespace ferry {
namespace {

TEST(ExchangeStats, AddsAndSubtractsEveryCounter) {
  ExchangeStats sum{.exchanges = 1, .bytes_logical = 20, .bytes_wire = 300, .bytes_network = 4000};
  const ExchangeStats more{
      .exchanges = 5, .bytes_logical = 60, .bytes_wire = 700, .bytes_network = 8000};
  const ExchangeStats before = sum;
  sum += more;
  EXPECT_EQ(sum,
            (ExchangeStats{
                .exchanges = 6, .bytes_logical = 80, .bytes_wire = 1000, .bytes_network = 12000}));
  EXPECT_EQ(sum - before, more);
}

}  // namespace
}  // namespace ferry
