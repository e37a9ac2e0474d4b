// QueryBlocks: every query of a step is in one block, with those that share its keys.
#include <gtest/gtest.h>

#include <array>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "ferry/model/mixers/attention_parts.h"

namespace ferry::testing {

namespace {

struct Case {
  int sequences = 0;
  int tokens = 0;  // of each
  int readers = 0;
  HeadRange own;
  int threads = 0;
};

/// Only their addresses count.
SequenceState* state_of(int sequence) {
  static std::array<std::uint64_t, 8> places;
  return reinterpret_cast<SequenceState*>(&places[static_cast<std::size_t>(sequence)]);
}

std::vector<TokenPlace> places_of(const Case& c) {
  std::vector<TokenPlace> places;
  for (int s = 0; s < c.sequences; ++s)
    for (int t = 0; t < c.tokens; ++t) places.push_back({state_of(s), 10 * s + t});
  return places;
}

TEST(QueryBlocks, OneTokenEachAndByTokenWhereAskedFor) {
  const Case c{.sequences = 2, .tokens = 5, .readers = 40, .own = {0, 40}, .threads = 1};
  const std::vector<TokenPlace> places = places_of(c);
  QueryBlocks blocks(64, 64);
  blocks.build(places, c.own, c.readers, c.threads, 1);
  ASSERT_EQ(blocks.size(), 10 * 3);  // 40 heads: 16, 16 and 8
  for (std::int64_t i = 0; i < blocks.size(); ++i) {
    const QueryBlock block = blocks.at_by_token(i);
    EXPECT_EQ(block.tokens, 1);
    EXPECT_EQ(block.first_token, i / 3);
    EXPECT_EQ(block.first_head, i % 3 * 16);
  }
}

class QueryBlocksOf : public ::testing::TestWithParam<Case> {};

TEST_P(QueryBlocksOf, HoldEveryQueryOnceWithThoseThatShareItsKeys) {
  const Case& c = GetParam();
  const std::vector<TokenPlace> places = places_of(c);
  QueryBlocks blocks(64, 64);
  blocks.build(places, c.own, c.readers, c.threads);
  std::map<std::pair<std::int64_t, int>, int> times;
  for (std::int64_t i = 0; i < blocks.size(); ++i) {
    const QueryBlock block = blocks.at(i);
    ASSERT_GE(block.queries(), 1);
    ASSERT_LE(block.queries(), kAttendQueries);
    for (std::int64_t q = 0; q < block.queries(); ++q) {
      ++times[{block.token(q), block.head(q)}];
      EXPECT_EQ(block.head(q) / c.readers, block.first_head / c.readers);
      EXPECT_EQ(places[static_cast<std::size_t>(block.token(q))].state,
                places[static_cast<std::size_t>(block.first_token)].state);
    }
  }
  EXPECT_EQ(times.size(), places.size() * static_cast<std::size_t>(c.own.size()));
  for (const auto& [query, count] : times) {
    EXPECT_EQ(count, 1) << "token " << query.first << " head " << query.second;
    EXPECT_TRUE(c.own.begin <= query.second && query.second < c.own.end);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Model,
    QueryBlocksOf,
    ::testing::Values(Case{1, 40, 1, {0, 4}, 1},
                      Case{3, 7, 4, {0, 16}, 2},
                      Case{2, 20, 6, {3, 15}, 2},   // begins and ends within shared heads
                      Case{1, 1, 32, {0, 32}, 1},   // more readers than a block holds
                      Case{4, 1, 20, {20, 40}, 8},  // fewer queries than would fill the threads
                      Case{1, 1, 1, {0, 1}, 16}),
    [](const auto& c) { return "Case" + std::to_string(c.index); });

TEST(QueryBlocks, LeaveNoThreadWithoutWork) {
  QueryBlocks blocks(1, 16);
  const std::vector<TokenPlace> one{{state_of(0), 100}};
  blocks.build(one, {0, 16}, 16, 2);
  EXPECT_EQ(blocks.size(), 4);
}

TEST(QueryBlocks, OfNothingAreNone) {
  QueryBlocks blocks(4, 4);
  blocks.build({}, {0, 4}, 1, 2);
  EXPECT_EQ(blocks.size(), 0);
}

}  // namespace

}  // namespace ferry::testing
