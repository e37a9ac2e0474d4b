#include "ferry/state/state_layout.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "ferry/core/error.h"

namespace ferry {
namespace {

constexpr AttentionSpan kFull;
constexpr AttentionSpan kWindow{AttentionSpan::Kind::window, 37};
constexpr AttentionSpan kBlock{AttentionSpan::Kind::block, 40};

TEST(StateLayout, LayersThatKeepTheSamePositionsShareAClass) {
  const std::vector<StateSpec> specs = {
      {.streams = 4, .row_bytes = 12},
      {.streams = 4, .row_bytes = 12, .span = kWindow},
      {.fixed_bytes = 100},
      {.streams = 2, .row_bytes = 12},
      {.streams = 1, .row_bytes = 20},
      {},
      {.streams = 4, .row_bytes = 12, .span = kWindow, .fixed_bytes = 8}};
  const StateLayout layout(specs);
  ASSERT_EQ(layout.classes().size(), 3U);
  EXPECT_EQ(layout.classes()[0].streams, 6);
  EXPECT_EQ(layout.classes()[1].streams, 8);
  EXPECT_EQ(layout.classes()[1].span, kWindow);
  EXPECT_EQ(layout.classes()[2].row_bytes, 20U);
  const auto expect_place = [&](int layer, int page_class, int first_stream) {
    EXPECT_EQ(layout.layer(layer).page_class, page_class) << layer;
    EXPECT_EQ(layout.layer(layer).first_stream, first_stream) << layer;
  };
  expect_place(0, 0, 0);
  expect_place(1, 1, 0);
  expect_place(2, -1, 0);
  expect_place(3, 0, 4);
  expect_place(4, 2, 0);
  expect_place(5, -1, 0);
  expect_place(6, 1, 4);
  EXPECT_EQ(layout.layer(6).fixed_at, 128U) << "aligned";
  EXPECT_EQ(layout.fixed_bytes(), 192U);
  EXPECT_EQ(layout.bytes_beside_pages(), 2 * 192U);
  EXPECT_EQ(layout.bytes_per_position(), 6U * 12 + 8 * 12 + 20);
}

TEST(StateLayout, OfNothingKeepsNothing) {
  const StateLayout layout;
  EXPECT_EQ(layout.bytes_per_position(), 0U);
  EXPECT_EQ(layout.bytes_held(100), 0U);
  EXPECT_EQ(layout.bytes_most(100, 7), 0U);
}

TEST(StateLayout, RefusesWhatCannotBe) {
  const StateSpec negative{.streams = -1, .row_bytes = 4};
  EXPECT_THROW(StateLayout({&negative, 1}), BrokenContract);
  const StateSpec no_width{.streams = 1, .row_bytes = 4, .span = {AttentionSpan::Kind::window, 0}};
  EXPECT_THROW(StateLayout({&no_width, 1}), BrokenContract);
}

/// What is held is what a later query sees, in whole pages, and the page that the next token goes
/// to where it is begun: counted position by position.
std::int64_t pages_by_hand(const AttentionSpan& span, std::int64_t committed, std::int64_t end) {
  std::vector<bool> held(static_cast<std::size_t>(pages_of(end)));
  for (std::int64_t p = span.first(committed); p < end; ++p)
    held[static_cast<std::size_t>(p / kPagePositions)] = true;
  if (committed % kPagePositions != 0)
    held[static_cast<std::size_t>(committed / kPagePositions)] = true;
  return std::count(held.begin(), held.end(), true);
}

TEST(StateLayout, HeldBytesAreThePagesThatLaterQueriesSee) {
  for (const AttentionSpan& span : {kFull, kWindow, kBlock}) {
    const StateSpec spec{.streams = 3, .row_bytes = 8, .span = span, .fixed_bytes = 64};
    const StateLayout layout({&spec, 1});
    const std::size_t page = layout.classes()[0].page_bytes();
    for (std::int64_t committed = 0; committed < 200; ++committed) {
      for (const std::int64_t tokens : {0, 1, 7, 16, 90}) {
        const std::int64_t end = committed + tokens;
        const auto pages = static_cast<std::size_t>(pages_by_hand(span, committed, end));
        ASSERT_EQ(layout.bytes_held(committed, end), end == 0 ? 0 : 128 + pages * page)
            << committed << " and " << tokens;
      }
    }
  }
}

TEST(StateLayout, NoWayToALengthHoldsMoreThanTheMost) {
  for (const AttentionSpan& span : {kFull, kWindow, kBlock}) {
    const StateSpec spec{.streams = 1, .row_bytes = 4, .span = span};
    const StateLayout layout({&spec, 1});
    for (const std::int64_t step : {1, 2, 15, 16, 17, 100}) {
      std::size_t most = 0;
      for (std::int64_t length = 1; length < 300; ++length) {
        for (std::int64_t n = 1; n <= std::min(step, length); ++n)
          most = std::max(most, layout.bytes_held(length - n, length));
        ASSERT_LE(most, layout.bytes_most(length, step));
      }
      // Not much more either: what is asked for and never needed keeps others waiting.
      EXPECT_LE(layout.bytes_most(299, step), most + layout.classes()[0].page_bytes());
    }
  }
}

TEST(StateLayout, BesidePrefixesASnapshotCounts) {
  const StateLayout layout(
      std::vector<StateSpec>{{.streams = 1, .row_bytes = 4}, {.fixed_bytes = 64}});
  EXPECT_EQ(layout.counted_with_prefixes().bytes_beside_pages(), 3 * 64U);
  EXPECT_EQ(layout.counted_with_prefixes().bytes_held(5), layout.bytes_held(5) + 64);
  for (const auto& [committed, page] :
       {std::pair{0, 0}, {1, 0}, {15, 0}, {16, 0}, {17, 1}, {32, 1}})
    EXPECT_EQ(layout.first_window_page(committed), page) << committed;
}

TEST(StateLayout, WindowsThatStayTogetherCountAsTheWidest) {
  const StateSpec full{.streams = 1, .row_bytes = 4};
  const StateSpec narrow{.streams = 1, .row_bytes = 4, .span = {AttentionSpan::Kind::window, 17}};
  const StateSpec wide{.streams = 1, .row_bytes = 4, .span = {AttentionSpan::Kind::window, 33}};
  const StateLayout apart(std::vector{full, narrow, wide});
  const StateLayout together = apart.counted_with_prefixes();
  const std::size_t page = 4 * kPagePositions;
  EXPECT_EQ(apart.bytes_held(64), (4 + 1 + 2) * page);
  EXPECT_EQ(together.bytes_held(64), (4 + 2 + 2) * page);
  EXPECT_EQ(apart.bytes_most(640, 1), (40 + 2 + 3) * page);
  EXPECT_EQ(together.bytes_most(640, 1), (40 + 3 + 3) * page);
  EXPECT_EQ(together.bytes_held(0), 0U);
  const StateLayout one(std::vector{full, wide});
  EXPECT_EQ(one.counted_with_prefixes().bytes_held(100, 120), one.bytes_held(100, 120));
}

}  // namespace
}  // namespace ferry
