#include "ferry/server/history.h"

#include <gtest/gtest.h>

namespace ferry {
namespace {

using std::chrono::seconds;

class HistoryTest : public testing::Test {
 protected:
  History::Clock::time_point now_{seconds(1000)};
  History history_{[this] { return now_; }};
};

TEST_F(HistoryTest, BeginsWithOneEmptySlot) {
  ASSERT_EQ(history_.slots().size(), 1U);
  EXPECT_EQ(history_.slots()[0].tokens, 0);
  EXPECT_EQ(history_.last_minute().first.next_token.quantile(0.5), 0);
  EXPECT_EQ(history_.last_minute().second, 0);
}

TEST_F(HistoryTest, WhatHappensFallsIntoItsSlot) {
  history_.accepted();
  history_.token(true, 0.1);
  now_ += seconds(10);
  history_.token(false, 0.002);
  history_.token(false, 0.002);
  history_.answered(200);
  history_.answered(429);
  history_.answered(503);
  now_ += seconds(30);
  history_.ended();
  history_.accepted();
  history_.accepted();
  const std::vector<History::Slot> slots = history_.slots();
  ASSERT_EQ(slots.size(), 5U);
  EXPECT_EQ(slots[0].tokens, 1);
  EXPECT_EQ(slots[1].tokens, 2);
  EXPECT_EQ(slots[1].refused, 1);
  EXPECT_EQ(slots[1].errors, 1);
  EXPECT_EQ(slots[3].in_flight, 1) << "nothing happened, but a request was under way";
  EXPECT_EQ(slots[4].in_flight, 2);
  EXPECT_NEAR(slots[0].first_token.quantile(0.5), 0.1, 0.02);
  EXPECT_NEAR(slots[1].next_token.quantile(0.99), 0.002, 0.0004);
  EXPECT_EQ(slots[1].first_token.quantile(0.5), 0);
}

TEST_F(HistoryTest, AMinuteIsTheLastSixSlotsAndTheOneThatFills) {
  history_.token(true, 0.1);
  now_ += seconds(10);
  history_.token(false, 1);
  EXPECT_EQ(history_.last_minute().first.tokens, 2);
  EXPECT_EQ(history_.last_minute().second, 10);
  now_ += seconds(65);  // slot 7 of 0 to 7
  EXPECT_EQ(history_.last_minute().first.tokens, 1);
  EXPECT_EQ(history_.last_minute().second, 65);
  now_ += seconds(10);
  EXPECT_EQ(history_.last_minute().first.tokens, 0);
}

TEST_F(HistoryTest, AnHourIsKept) {
  history_.token(true, 0.1);
  now_ += seconds(3599);
  EXPECT_EQ(history_.slots().size(), 360U);
  EXPECT_EQ(history_.slots().front().tokens, 1);
  now_ += seconds(1);
  EXPECT_EQ(history_.slots().size(), 360U);
  EXPECT_EQ(history_.slots().front().tokens, 0);
  now_ += seconds(100'000);
  history_.token(true, 0.1);
  std::int64_t tokens = 0;
  for (const History::Slot& slot : history_.slots()) tokens += slot.tokens;
  EXPECT_EQ(tokens, 1) << "what is older than an hour came back";
}

TEST(TimeCounts, ExtremesStayInTheOuterBuckets) {
  TimeCounts counts;
  counts.add(0);
  EXPECT_EQ(counts.quantile(0.5), 0.0005);
  counts.add(1e9);
  EXPECT_GT(counts.quantile(1), 100);
}

}  // namespace
}  // namespace ferry
