#include "ferry/engine/ngram_drafter.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "ferry/core/error.h"

namespace ferry {
namespace {

using Ids = std::vector<std::int32_t>;

Ids draft_of(const Ids& ids, int most = 4, int shortest = 2, int longest = 8) {
  NgramDrafter drafter({.tokens = 4, .shortest_run = shortest, .longest_run = longest});
  return drafter.draft(ids, most);
}

TEST(NgramDrafter, SaysWhatFollowedTheNewestTokens) {
  EXPECT_EQ(draft_of({1, 2, 3, 4, 5, 6, 7, 1, 2}), (Ids{3, 4, 5, 6}));
  EXPECT_EQ(draft_of({1, 2, 3, 4, 5, 6, 7, 1, 2}, 2), (Ids{3, 4}));
  EXPECT_EQ(draft_of({1, 2, 3, 4, 5, 6, 7, 1, 2}, 0), Ids{});
  EXPECT_EQ(draft_of({1, 2, 3, 4, 5, 6, 7, 1, 2}, -1), Ids{});
  EXPECT_EQ(draft_of({1, 2, 3, 9, 2}), Ids{}) << "one token alone is no run";
  EXPECT_EQ(draft_of({1, 2, 3, 9, 2}, 4, 1), (Ids{3, 9, 2, 3}));
}

TEST(NgramDrafter, TheLongestRunCountsAndOfEqualOnesTheLatest) {
  EXPECT_EQ(draft_of({7, 1, 2, 3, 8, 1, 2, 4, 7, 1, 2}, 1), Ids{3});
  EXPECT_EQ(draft_of({7, 1, 2, 3, 8, 1, 2, 4, 9, 1, 2}, 1), Ids{4});
  EXPECT_EQ(draft_of({7, 1, 2, 3, 8, 1, 2, 4, 7, 1, 2}, 1, 2, 2), Ids{4});
}

TEST(NgramDrafter, WhatRepeatsAFewTokensGoesOnInTheDraft) {
  EXPECT_EQ(draft_of({5, 5, 5}), (Ids{5, 5, 5, 5}));
  EXPECT_EQ(draft_of({1, 2, 1, 2, 1, 2}), (Ids{1, 2, 1, 2}));
}

TEST(NgramDrafter, ShortTextsHaveNone) {
  for (const Ids& ids : {Ids{}, Ids{1}, Ids{1, 1}}) EXPECT_EQ(draft_of(ids), Ids{});
  EXPECT_EQ(draft_of({1, 1}, 4, 1), (Ids{1, 1, 1, 1}));
  NgramDrafter off(DraftOptions{});
  EXPECT_EQ(off.draft(Ids{5, 5, 5}, 4), Ids{});
}

/// The definition, over a text that grows by a few tokens at a time.
TEST(NgramDrafter, IsWhatItsDefinitionSaysOfAnyText) {
  std::mt19937 random(5);
  for (int round = 0; round < 60; ++round) {
    const int shortest = 1 + round % 3;
    const int longest = shortest + round % 5;
    NgramDrafter drafter({.tokens = 4, .shortest_run = shortest, .longest_run = longest});
    Ids ids;
    while (ids.size() < 300) {
      for (unsigned n = random() % 6; n > 0; --n)
        ids.push_back(static_cast<std::int32_t>(random() % (5 + round % 7)) - 1);
      std::size_t best = 0;
      int most = shortest - 1;
      // A place has to be among the latest 64 with the same bucket; so few tokens have more.
      const auto size = static_cast<int>(ids.size());
      for (int end = size - 1; end >= shortest; --end) {
        int same = 0;
        while (same < std::min(longest, end) && ids[static_cast<std::size_t>(end - same - 1)] ==
                                                    ids[static_cast<std::size_t>(size - same - 1)])
          ++same;
        if (same > most) {
          most = same;
          best = static_cast<std::size_t>(end);
        }
      }
      const Ids found = drafter.draft(ids, 4);
      ASSERT_EQ(found.empty(), best == 0) << "round " << round << ", " << ids.size() << " tokens";
      // Of many places some are not looked at, but what is found has the shortest run before it.
      if (found.empty()) continue;
      const auto run = ids.end() - shortest;
      ASSERT_EQ(found.size(), 4U);
      Ids text(run, ids.end());
      text.push_back(found[0]);
      ASSERT_NE(std::search(ids.begin(), ids.end(), text.begin(), text.end()), ids.end());
      if (size < 60) {
        ASSERT_EQ(found[0], ids[best]) << "round " << round;
      }
    }
  }
}

TEST(NgramDrafter, DraftsAreAsLongAsTheyPay) {
  NgramDrafter drafter({.tokens = 8, .shortest_run = 1});
  const Ids ids = {3, 3, 3, 3};
  const auto length = [&] { return drafter.draft(ids, 100).size(); };
  EXPECT_EQ(length(), 8U);
  drafter.learn(8, 3);
  EXPECT_EQ(length(), 3U);
  drafter.learn(3, 0);
  EXPECT_EQ(length(), 1U);
  drafter.learn(1, 0);
  EXPECT_EQ(length(), 1U);
  drafter.learn(1, 1);
  EXPECT_EQ(length(), 2U);
  drafter.learn(2, 2);
  drafter.learn(4, 4);
  drafter.learn(8, 8);
  EXPECT_EQ(length(), 8U);
  drafter.learn(2, 2);  // it had room for no more
  EXPECT_EQ(length(), 8U);
}

TEST(DraftLength, OneThatCostsSomethingIsMadeLessOftenAsLongAsNoneComesTrue) {
  DraftLength length({.tokens = 2, .source = DraftSource::layer});
  // Steps that go by until the next one is made.
  const auto pause = [&] {
    int steps = 0;
    for (; length.worth_making() == 0; ++steps) length.rest();
    return steps;
  };
  EXPECT_EQ(length.worth_making(), 2);
  for (const int expected : {0, 1, 3, 7, 15, 31, 31}) {
    length.learn(length.worth_making(), 0);
    EXPECT_EQ(pause(), expected);
    EXPECT_EQ(length.worth_making(), 1);
  }
  length.learn(1, 0);
  EXPECT_EQ(length.worth_making(), 0);
  length.learn(1, 1);  // that was made before the pause
  EXPECT_EQ(length.worth_making(), 2);
  length.learn(2, 0);
  EXPECT_EQ(length.worth_making(), 1) << "one alone may be wrong";
}

TEST(NgramDrafter, OptionsOutOfRangeAreRefusedByName) {
  EXPECT_NO_THROW(check_drafts({}));
  EXPECT_NO_THROW(check_drafts({.tokens = 64, .shortest_run = 1, .longest_run = 1}));
  for (const DraftOptions& wrong : {DraftOptions{.tokens = -1},
                                    {.tokens = 65},
                                    {.tokens = 4, .shortest_run = 0},
                                    {.tokens = 4, .shortest_run = 3, .longest_run = 2},
                                    {.tokens = 4, .longest_run = 65}})
    EXPECT_THROW(check_drafts(wrong), ConfigError);
}

}  // namespace
}  // namespace ferry
