// Drafts in the batcher's plans: how long, for whom, and what is left when they were wrong.
#include <gtest/gtest.h>

#include <map>
#include <random>

#include "ferry/core/error.h"
#include "ferry/engine/batcher.h"

namespace ferry {
namespace {

using Ids = std::vector<std::int32_t>;

Request repeating(std::size_t tokens, int fresh) {
  Request request{
      .prompt = Ids(tokens, 1), .max_new_tokens = fresh, .sampling = {}, .stop_ids = {}};
  return request;
}

BatcherOptions options(int max_sequences, int max_tokens, int draft = 4) {
  return {.max_sequences = max_sequences,
          .max_tokens = max_tokens,
          .record_bytes = record_capacity(1000, max_sequences, max_tokens),
          .drafts = {.tokens = draft}};
}

StepResult ones(const StepRecord& record, std::uint64_t id, std::size_t tokens, bool last = false) {
  StepResult result{.step = record.step, .tokens = {}};
  for (std::size_t i = 0; i < tokens; ++i)
    result.tokens.push_back({.id = id, .token = 1, .last = last && i + 1 == tokens});
  return result;
}

/// One whose prompt has run.
void begin(Batcher& batcher, std::uint64_t id, std::size_t tokens, int fresh) {
  batcher.enqueue({.id = id, .request = repeating(tokens, fresh)});
  const auto step = batcher.plan();
  batcher.finish_step(0, ones(step[0], id, 1));
}

/// Two whose prompts have run, in one step.
void begin_two(Batcher& batcher,
               std::pair<std::size_t, int> first,
               std::pair<std::size_t, int> second) {
  batcher.enqueue({.id = 0, .request = repeating(first.first, first.second)});
  batcher.enqueue({.id = 1, .request = repeating(second.first, second.second)});
  const auto step = batcher.plan();
  StepResult result = ones(step[0], 0, 1);
  result.tokens.push_back({.id = 1, .token = 1});
  batcher.finish_step(0, result);
}

TEST(BatcherDrafts, RunBesideTheOneTokenAndStayAsFarAsTheyCame) {
  Batcher batcher(options(4, 64));
  begin(batcher, 0, 5, 100);
  const auto step = batcher.plan();
  ASSERT_EQ(step[0].runs.size(), 1U);
  EXPECT_EQ(step[0].runs[0].tokens, 5);
  EXPECT_EQ(step[0].runs[0].draft, Ids(4, 1));
  EXPECT_EQ(batcher.planned_decode_tokens(), 1);
  batcher.finish_step(0, ones(step[0], 0, 3));
  EXPECT_EQ(batcher.draft_stats().drafted, 4U);
  EXPECT_EQ(batcher.draft_stats().accepted, 2U);
  EXPECT_EQ(batcher.plan()[0].runs[0].draft.size(), 2U) << "as long as the last one was right";
}

TEST(BatcherDrafts, OffThereAreNone) {
  Batcher batcher(options(4, 64, 0));
  begin(batcher, 0, 5, 100);
  EXPECT_EQ(batcher.plan()[0].runs[0].tokens, 1);
}

TEST(BatcherDrafts, NoneGoesBeyondWhatTheRequestMayGive) {
  for (int fresh = 2; fresh < 8; ++fresh) {
    Batcher batcher(options(4, 64));
    begin(batcher, 0, 5, fresh);  // and one token is there
    EXPECT_EQ(batcher.plan()[0].runs[0].draft.size(),
              static_cast<std::size_t>(std::min(4, fresh - 2)));
  }
  for (int context = 5; context < 12; ++context) {
    BatcherOptions o = options(4, 64);
    o.max_context = context;
    Batcher batcher(o);
    begin(batcher, 0, 4, 100);
    EXPECT_EQ(batcher.plan()[0].runs[0].tokens, std::min(5, context - 4)) << context;
  }
}

TEST(BatcherDrafts, TakeNoTokenOfOthersAndHalfOfWhatPromptsCouldHave) {
  BatcherOptions o = options(3, 6, 8);
  Batcher batcher(o);
  begin_two(batcher, {2, 100}, {2, 100});
  auto step = batcher.plan();
  ASSERT_EQ(step[0].runs.size(), 2U);
  EXPECT_EQ(step[0].runs[0].tokens + step[0].runs[1].tokens, 6);
  EXPECT_EQ(step[0].runs[1].tokens, 1);
  StepResult result = ones(step[0], 0, 1);
  result.tokens.push_back({.id = 1, .token = 1});
  batcher.finish_step(0, result);
  batcher.enqueue({.id = 2, .request = repeating(100, 1)});
  step = batcher.plan();
  ASSERT_EQ(step[0].runs.size(), 3U);
  EXPECT_EQ(step[0].runs[0].tokens, 2) << "shorter after one that was all wrong";
  EXPECT_EQ(step[0].runs[1].tokens, 2);
  EXPECT_EQ(step[0].runs[2].tokens, 2);
}

TEST(BatcherDrafts, WhatAGroupLostIsPlannedAgainAlike) {
  Batcher batcher(options(4, 64));
  begin(batcher, 0, 5, 100);
  const auto lost = batcher.plan();
  EXPECT_EQ(batcher.finish_step(0, {.step = lost[0].step, .lost = true, .tokens = {}}), 0U);
  const auto again = batcher.plan();
  EXPECT_EQ(again[0].runs[0].draft, lost[0].runs[0].draft);
  EXPECT_EQ(again[0].runs[0].tokens, lost[0].runs[0].tokens);
  EXPECT_EQ(batcher.draft_stats().drafted, 0U) << "nobody gave any";
}

BatcherOptions by_layer(int max_sequences, int max_tokens, int draft) {
  BatcherOptions o = options(max_sequences, max_tokens, draft);
  o.drafts.source = DraftSource::layer;
  return o;
}

TEST(BatcherDrafts, ByTheModelAreAskedForWithANewestTokenAndRunInTheNextStep) {
  Batcher batcher(by_layer(4, 64, 3));
  batcher.enqueue({.id = 0, .request = repeating(100, 50)});
  auto step = batcher.plan();
  EXPECT_EQ(step[0].passes, 0) << "in the middle of a prompt";
  batcher.finish_step(0, {.step = step[0].step, .tokens = {}});
  step = batcher.plan();
  EXPECT_EQ(step[0].runs[0].drafts, 3);
  EXPECT_EQ(step[0].passes, 3);
  StepResult result = ones(step[0], 0, 1);
  result.drafts = {{.id = 0, .tokens = {4, 5, 6}}};
  batcher.finish_step(0, result);
  step = batcher.plan();
  EXPECT_EQ(step[0].runs[0].draft, (Ids{4, 5, 6}));
  EXPECT_EQ(step[0].runs[0].tokens, 4);
  batcher.finish_step(0, ones(step[0], 0, 1));
  step = batcher.plan();
  EXPECT_TRUE(step[0].runs[0].draft.empty()) << "nobody has drafted any";
  EXPECT_EQ(step[0].runs[0].drafts, 1) << "shorter after one that was all wrong";
  EXPECT_EQ(batcher.draft_stats().drafted, 3U);
}

TEST(BatcherDrafts, ByTheModelMakeAllGroupsRunTheLayerAlike) {
  BatcherOptions o = by_layer(4, 64, 2);
  o.groups = 3;
  Batcher batcher(o);
  batcher.enqueue({.id = 0, .request = repeating(5, 50)});
  for (const StepRecord& record : batcher.plan()) EXPECT_EQ(record.passes, 2);
}

TEST(BatcherDrafts, ByTheModelEndWithTheRequest) {
  Batcher batcher(by_layer(4, 64, 3));
  batcher.enqueue({.id = 0, .request = repeating(5, 3)});
  auto step = batcher.plan();
  EXPECT_EQ(step[0].passes, 1) << "two tokens are left, one of which needs no draft";
  StepResult result = ones(step[0], 0, 1);
  result.drafts = {{.id = 0, .tokens = {1}}};
  batcher.finish_step(0, result);
  step = batcher.plan();
  EXPECT_EQ(step[0].runs[0].draft, Ids{1});
  EXPECT_EQ(step[0].passes, 0);
}

TEST(BatcherDrafts, ByTheModelThatNobodyAskedForAreABrokenContract) {
  for (const std::size_t tokens : {0U, 1U}) {
    Batcher batcher(by_layer(4, 64, 3));
    batcher.enqueue({.id = 0, .request = repeating(5, 50)});
    const auto step = batcher.plan();
    StepResult result = ones(step[0], 0, tokens);
    result.drafts = {{.id = tokens == 0 ? 0U : 1U, .tokens = {4}}};
    EXPECT_THROW(batcher.finish_step(0, result), BrokenContract);
  }
}

TEST(BatcherDrafts, MoreTokensThanWereAskedForAreABrokenContract) {
  for (const std::size_t tokens : {0U, 6U}) {
    Batcher batcher(options(4, 64));
    begin(batcher, 0, 5, 100);
    const auto step = batcher.plan();
    EXPECT_THROW(batcher.finish_step(0, ones(step[0], 0, tokens)), BrokenContract) << tokens;
  }
  Batcher batcher(options(4, 64));
  begin(batcher, 0, 5, 100);
  const auto step = batcher.plan();
  StepResult behind_the_end = ones(step[0], 0, 2, /*last=*/true);
  behind_the_end.tokens.push_back({.id = 0, .token = 1});
  EXPECT_THROW(batcher.finish_step(0, behind_the_end), BrokenContract);
}

constexpr StateSpec kFullLayer{.streams = 2, .row_bytes = 12};
constexpr StateSpec kWindowLayer{
    .streams = 3, .row_bytes = 8, .span = {AttentionSpan::Kind::window, 32}};

/// Two sequences whose own tokens have pages, and none is left for a draft.
TEST(BatcherDrafts, NobodyStartsOverForOne) {
  BatcherOptions o = options(4, 64);
  o.layout = StateLayout(std::vector{kFullLayer});
  o.state_bytes = 3 * o.layout.bytes_held(kPagePositions);
  Batcher batcher(o);
  begin_two(batcher, {kPagePositions - 2, 100}, {kPagePositions - 1, 3});
  auto step = batcher.plan();
  ASSERT_EQ(step[0].runs.size(), 2U);
  EXPECT_EQ(step[0].runs[0].tokens, 5) << "into the third page";
  EXPECT_EQ(step[0].runs[1].tokens, 1) << "of which there is none";
  EXPECT_EQ(batcher.used_bytes(), o.state_bytes);
  StepResult result = ones(step[0], 0, 1);
  result.tokens.push_back({.id = 1, .token = 1});
  batcher.finish_step(0, result);
  EXPECT_EQ(batcher.used_bytes(), 2 * o.layout.bytes_held(kPagePositions)) << "it went back";
  step = batcher.plan();
  EXPECT_EQ(batcher.evictions(), 0U);
}

struct Progress {
  int known = 0, cached = 0, fresh = 0;
};

/// What a rank would give: some of each draft.
StepResult play(const StepRecord& record,
                std::map<std::uint64_t, Progress>& live,
                std::mt19937& random) {
  StepResult result{.step = record.step, .tokens = {}};
  for (const std::uint64_t id : record.evicted) live.at(id).cached = 0;
  for (const BeginOrder& order : record.begins)
    live.at(order.sequence).cached = static_cast<int>(order.pages) * kPagePositions;
  for (const SequenceRun& run : record.runs) {
    Progress& p = live.at(run.id);
    const auto drafted = static_cast<int>(run.draft.size());
    p.cached += run.tokens - drafted;
    EXPECT_LE(p.cached, p.known);
    EXPECT_LT(drafted, p.fresh);
    if (p.cached < p.known) continue;
    const int given =
        1 + (drafted == 0 ? 0 : static_cast<int>(random() % static_cast<unsigned>(drafted + 1)));
    for (int i = 0; i < given; ++i)
      result.tokens.push_back(
          {.id = run.id, .token = 1 + static_cast<int>(random() % 2), .last = --p.fresh == 0});
    p.known += given;
    p.cached += given - 1;
    EXPECT_LE(run.drafts, record.passes);
    if (p.fresh > 0 && run.drafts > 0 && random() % 8 > 0) {
      EXPECT_LE(run.drafts, p.fresh + given - 1);
      result.drafts.push_back(
          {.id = run.id, .tokens = Ids(1 + random() % static_cast<unsigned>(run.drafts), 1)});
    }
    if (p.fresh == 0) live.erase(run.id);
  }
  return result;
}

TEST(BatcherDrafts, EveryRequestRunsToItsEndOverFewPages) {
  std::mt19937 random(7);
  std::uint64_t evictions = 0, accepted = 0;
  for (int round = 0; round < 120; ++round) {
    BatcherOptions o = options(1 + round % 5, 6 + round % 30, 1 + round % 6);
    const int pages = 3 + round % 7;
    o.layout = StateLayout(round % 3 == 0   ? std::vector{kFullLayer}
                           : round % 3 == 1 ? std::vector{kWindowLayer}
                                            : std::vector{kWindowLayer, kFullLayer});
    o.state_bytes = static_cast<std::size_t>(pages) * o.layout.bytes_held(kPagePositions);
    o.keep_prefixes = round % 2 == 0;
    if (round % 4 >= 2) o.drafts.source = DraftSource::layer;
    Batcher batcher(o);
    std::map<std::uint64_t, Progress> live;
    for (std::uint64_t id = 0; id < 12; ++id) {
      const int most = pages * kPagePositions;
      const int prompt = 1 + static_cast<int>(random() % static_cast<unsigned>(most));
      const int fresh = 1 + static_cast<int>(random() % static_cast<unsigned>(most - prompt + 1));
      live[id] = {.known = prompt, .fresh = fresh};
      batcher.enqueue({.id = id, .request = repeating(static_cast<std::size_t>(prompt), fresh)});
    }
    int steps = 0;
    for (; !batcher.idle() && steps < 10000; ++steps) {
      const auto records = batcher.plan();
      ASSERT_LE(batcher.used_bytes(), o.state_bytes);
      std::vector<std::byte> bytes(o.record_bytes);
      static_cast<void>(encode(records[0], bytes));
      int tokens = 0;
      for (const SequenceRun& run : records[0].runs) tokens += run.tokens;
      ASSERT_LE(tokens, o.max_tokens);
      if (random() % 16 == 0 && records[0].evicted.empty() && records[0].begins.empty()) {
        batcher.finish_step(0, {.step = records[0].step, .lost = true, .tokens = {}});
        continue;
      }
      batcher.finish_step(0, play(records[0], live, random));
      ASSERT_FALSE(HasFailure()) << "round " << round << ", step " << steps;
      std::size_t held = 0;
      for (const auto& [id, p] : live)
        if (p.cached > 0) held += o.layout.bytes_held(p.cached);
      if (!o.keep_prefixes) {
        ASSERT_LE(held, batcher.used_bytes());
      }
    }
    EXPECT_TRUE(live.empty()) << "no progress";
    EXPECT_EQ(batcher.used_bytes(), 0U);
    evictions += batcher.evictions();
    accepted += batcher.draft_stats().accepted;
  }
  EXPECT_GT(evictions, 10U);
  EXPECT_GT(accepted, 1000U);
}

}  // namespace
}  // namespace ferry
