#include "ferry/engine/batcher.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

namespace ferry {
namespace {

Request prompt_of(std::size_t tokens) {
  return {.prompt = std::vector<std::int32_t>(tokens, 1), .sampling = {}, .stop_ids = {}};
}

int tokens_of(const StepRecord& record) {
  int sum = 0;
  for (const SequenceRun& run : record.runs) sum += run.tokens;
  return sum;
}

/// The result of a rank on which `last` of the sequences that are past their prompt finish.
StepResult result_of(const StepRecord& record, const std::vector<TokenResult>& tokens) {
  return {.step = record.step, .tokens = tokens};
}

BatcherOptions options(int ranks, int max_sequences, int max_tokens) {
  return {.groups = ranks,
          .max_sequences = max_sequences,
          .max_tokens = max_tokens,
          .record_bytes = record_capacity(1000, max_sequences, max_tokens)};
}

TEST(Batcher, IdleUntilAskedAndAgainAtTheEnd) {
  Batcher batcher(options(1, 4, 64));
  EXPECT_TRUE(batcher.idle());
  batcher.enqueue({.id = 0, .request = prompt_of(3)});
  EXPECT_FALSE(batcher.idle());
  const auto step = batcher.plan();
  ASSERT_EQ(step.size(), 1U);
  EXPECT_FALSE(batcher.idle());
  batcher.finish_step(0, result_of(step[0], {{.id = 0, .token = 5, .last = true}}));
  EXPECT_TRUE(batcher.idle());
  EXPECT_TRUE(batcher.plan_stop()[0].stop);
}

/// Ranks 0, 1, 2; then a new one, 2 and 0: what ran on 1 starts over, the others go on.
TEST(Batcher, GroupsOfTheNextEpochGoOnOrAreNew) {
  Batcher batcher(options(3, 1, 64));
  for (std::uint64_t id = 0; id < 3; ++id) batcher.enqueue({.id = id, .request = prompt_of(2)});
  const auto step = batcher.plan();
  for (int r = 0; r < 3; ++r) {
    const auto id = static_cast<std::uint64_t>(r);
    batcher.finish_step(r, result_of(step[id], {{.id = id, .token = 7, .last = false}}));
  }
  const auto end = batcher.plan_next_epoch();
  ASSERT_EQ(end.size(), 3U);
  EXPECT_TRUE(end[0].next_epoch);
  EXPECT_FALSE(runs_step(end[0]));
  EXPECT_EQ(batcher.regroup(std::vector{-1, 2, 0}), 1U);
  const auto next = batcher.plan();
  ASSERT_EQ(next.size(), 3U);
  EXPECT_EQ(next[0].step, end[0].step + 1);
  ASSERT_EQ(next[0].admissions.size(), 1U);
  EXPECT_EQ(next[0].admissions[0].id, 1U);
  EXPECT_EQ(next[0].admissions[0].generated, (std::vector<std::int32_t>{7}));
  for (const std::size_t r : {1U, 2U}) {
    EXPECT_TRUE(next[r].admissions.empty());
    ASSERT_EQ(next[r].runs.size(), 1U);
    EXPECT_EQ(next[r].runs[0].id, r == 1 ? 2U : 0U);
    EXPECT_EQ(next[r].runs[0].tokens, 1);
  }
}

TEST(Batcher, SpreadsRequestsEvenly) {
  Batcher batcher(options(3, 4, 64));
  for (std::uint64_t id = 0; id < 6; ++id) batcher.enqueue({.id = id, .request = prompt_of(2)});
  const auto step = batcher.plan();
  for (std::size_t r = 0; r < 3; ++r) {
    ASSERT_EQ(step[r].admissions.size(), 2U);
    EXPECT_EQ(step[r].admissions[0].id, r);
    EXPECT_EQ(step[r].admissions[1].id, r + 3);
    EXPECT_EQ(step[r].step, 0U);
  }
  EXPECT_EQ(batcher.planned_prompt_tokens(), 12);
  EXPECT_EQ(batcher.planned_decode_tokens(), 0);
}

TEST(Batcher, AmongEquallyBusyRanksTheOneWithLessPromptLeftGetsTheNext) {
  Batcher batcher(options(2, 4, 10));
  batcher.enqueue({.id = 0, .request = prompt_of(100)});
  batcher.enqueue({.id = 1, .request = prompt_of(3)});
  batcher.enqueue({.id = 2, .request = prompt_of(3)});
  const auto step = batcher.plan();
  EXPECT_EQ(step[0].admissions.size(), 1U);
  EXPECT_EQ(step[1].admissions.size(), 2U);
}

TEST(Batcher, CutsLongPromptsIntoChunks) {
  Batcher batcher(options(1, 4, 10));
  batcher.enqueue({.id = 0, .request = prompt_of(25)});
  EXPECT_EQ(tokens_of(batcher.plan()[0]), 10);
  EXPECT_EQ(tokens_of(batcher.plan()[0]), 10);
  EXPECT_EQ(tokens_of(batcher.plan()[0]), 5);
  EXPECT_EQ(tokens_of(batcher.plan()[0]), 1);  // past its prompt
  EXPECT_EQ(batcher.planned_prompt_tokens(), 0);
  EXPECT_EQ(batcher.planned_decode_tokens(), 1);
}

TEST(Batcher, DecodeComesBeforePrompts) {
  Batcher batcher(options(1, 4, 4));
  batcher.enqueue({.id = 0, .request = prompt_of(1)});
  static_cast<void>(batcher.plan());
  batcher.enqueue({.id = 1, .request = prompt_of(20)});
  const auto step = batcher.plan();
  ASSERT_EQ(step[0].runs.size(), 2U);
  EXPECT_EQ(step[0].runs[0].id, 0U);
  EXPECT_EQ(step[0].runs[0].tokens, 1);
  EXPECT_EQ(step[0].runs[1].id, 1U);
  EXPECT_EQ(step[0].runs[1].tokens, 3);
}

TEST(Batcher, NoMoreSequencesThanPlacesOrTokens) {
  Batcher by_places(options(1, 2, 64));
  Batcher by_tokens(options(1, 16, 2));
  for (Batcher* batcher : {&by_places, &by_tokens}) {
    for (std::uint64_t id = 0; id < 5; ++id) batcher->enqueue({.id = id, .request = prompt_of(1)});
    EXPECT_EQ(batcher->plan()[0].admissions.size(), 2U);
    const auto step = batcher->plan();
    EXPECT_TRUE(step[0].admissions.empty());
    EXPECT_EQ(tokens_of(step[0]), 2);
    batcher->finish_step(0, result_of(step[0], {{.id = 0, .token = 1, .last = true}}));
    const auto next = batcher->plan();
    ASSERT_EQ(next[0].admissions.size(), 1U);
    EXPECT_EQ(next[0].admissions[0].id, 2U);
  }
}

TEST(Batcher, WhatAGroupLostIsPlannedAgain) {
  Batcher batcher(options(1, 4, 10));
  batcher.enqueue({.id = 0, .request = prompt_of(2)});
  const auto first = batcher.plan();
  batcher.finish_step(0, result_of(first[0], {{.id = 0, .token = 5, .last = false}}));
  batcher.enqueue({.id = 1, .request = prompt_of(20)});
  const auto lost = batcher.plan();
  EXPECT_EQ(lost[0].admissions.size(), 1U);
  EXPECT_EQ(batcher.finish_step(0, {.step = lost[0].step, .lost = true, .tokens = {}}), 0U);
  const auto again = batcher.plan();
  EXPECT_TRUE(again[0].admissions.empty()) << "the group has it already";
  ASSERT_EQ(again[0].runs.size(), lost[0].runs.size());
  for (std::size_t i = 0; i < again[0].runs.size(); ++i) {
    EXPECT_EQ(again[0].runs[i].id, lost[0].runs[i].id);
    EXPECT_EQ(again[0].runs[i].tokens, lost[0].runs[i].tokens);
  }
}

TEST(Batcher, SequencesOfAGroupThatIsGoneStartOverElsewhereWithTheirTokens) {
  Batcher batcher(options(2, 4, 64));
  for (std::uint64_t id = 0; id < 4; ++id) batcher.enqueue({.id = id, .request = prompt_of(3)});
  const auto step = batcher.plan();
  batcher.finish_step(0, result_of(step[0], {{.id = 0, .token = 10}, {.id = 2, .token = 12}}));
  batcher.finish_step(1, result_of(step[1], {{.id = 1, .token = 11}, {.id = 3, .token = 13}}));
  EXPECT_TRUE(batcher.cancel(3));
  EXPECT_EQ(batcher.lose_group(1), 1U);
  EXPECT_EQ(batcher.waiting(), 1U);
  batcher.enqueue({.id = 4, .request = prompt_of(3)});
  const auto next = batcher.plan();
  EXPECT_TRUE(next[1].runs.empty() && next[1].admissions.empty() && next[1].dropped.empty());
  ASSERT_EQ(next[0].admissions.size(), 2U);
  EXPECT_EQ(next[0].admissions[0].id, 1U);
  EXPECT_EQ(next[0].admissions[0].generated, std::vector<std::int32_t>{11});
  EXPECT_EQ(tokens_of(next[0]), 2 + 4 + 3);
  std::vector<TokenResult> last;
  for (const std::uint64_t id : {0U, 1U, 2U, 4U}) last.push_back({.id = id, .last = true});
  EXPECT_EQ(batcher.finish_step(0, result_of(next[0], last)), 4U);
  EXPECT_TRUE(batcher.idle());
}

TEST(Batcher, AdmissionsThatDoNotFitTheRecordWait) {
  BatcherOptions small = options(1, 8, 1000);
  small.record_bytes = record_bytes_without_admissions(8, 1000) +
                       encoded_bytes({.id = 0, .request = prompt_of(1000)});
  Batcher batcher(small);
  // Two of these do not fit one record, and the short one may not overtake.
  batcher.enqueue({.id = 0, .request = prompt_of(900)});
  batcher.enqueue({.id = 1, .request = prompt_of(900)});
  batcher.enqueue({.id = 2, .request = prompt_of(1)});
  EXPECT_EQ(batcher.plan()[0].admissions.size(), 1U);
  EXPECT_EQ(batcher.plan()[0].admissions.size(), 2U);
}

TEST(Batcher, RanksWithoutWorkStillGetTheirRecord) {
  Batcher batcher(options(4, 4, 64));
  batcher.enqueue({.id = 0, .request = prompt_of(2)});
  const auto step = batcher.plan();
  ASSERT_EQ(step.size(), 4U);
  for (std::size_t r = 1; r < 4; ++r) {
    EXPECT_TRUE(step[r].runs.empty());
    EXPECT_FALSE(step[r].stop);
  }
}

TEST(Batcher, EveryRequestRunsToItsEndUnderRandomLoad) {
  std::mt19937 random(1);
  for (int round = 0; round < 30; ++round) {
    const int ranks = 1 + static_cast<int>(random() % 5);
    const BatcherOptions o =
        options(ranks, 1 + static_cast<int>(random() % 5), 1 + static_cast<int>(random() % 20));
    Batcher batcher(o);
    std::map<std::uint64_t, std::pair<int, int>> left;  // request -> prompt, new tokens
    for (std::uint64_t id = 0; id < 20; ++id) {
      left[id] = {1 + static_cast<int>(random() % 50), 1 + static_cast<int>(random() % 10)};
      batcher.enqueue({.id = id, .request = prompt_of(static_cast<std::size_t>(left[id].first))});
    }
    for (int steps = 0; !batcher.idle(); ++steps) {
      ASSERT_LT(steps, 5000);
      const auto records = batcher.plan();
      for (int r = 0; r < ranks; ++r) {
        const StepRecord& record = records[static_cast<std::size_t>(r)];
        ASSERT_LE(tokens_of(record), o.max_tokens);
        ASSERT_LE(record.runs.size(), static_cast<std::size_t>(o.max_sequences));
        std::vector<std::byte> bytes(o.record_bytes);
        static_cast<void>(encode(record, bytes));
        std::vector<TokenResult> tokens;
        for (const SequenceRun& run : record.runs) {
          auto& [prompt, fresh] = left.at(run.id);
          if (prompt > 0) {
            prompt -= run.tokens;
            ASSERT_GE(prompt, 0);
            if (prompt > 0) continue;
          }
          tokens.push_back({.id = run.id, .token = 1, .last = --fresh == 0});
          if (fresh == 0) left.erase(run.id);
        }
        batcher.finish_step(r, result_of(record, tokens));
      }
    }
    EXPECT_TRUE(left.empty());
  }
}

TEST(Batcher, CancelledRequestsLeaveTheQueueOrTheirRank) {
  Batcher batcher(options(1, 1, 64));
  for (std::uint64_t id = 0; id < 3; ++id) batcher.enqueue({.id = id, .request = prompt_of(2)});
  static_cast<void>(batcher.plan());
  EXPECT_TRUE(batcher.cancel(1));  // waits
  EXPECT_TRUE(batcher.cancel(0));  // runs
  EXPECT_FALSE(batcher.cancel(0));
  EXPECT_FALSE(batcher.cancel(77));
  const auto step = batcher.plan();
  EXPECT_EQ(step[0].dropped, std::vector<std::uint64_t>{0});
  ASSERT_EQ(step[0].admissions.size(), 1U);
  EXPECT_EQ(step[0].admissions[0].id, 2U);
  EXPECT_TRUE(batcher.cancel(2));
  EXPECT_FALSE(batcher.idle()) << "its rank does not know yet";
  EXPECT_EQ(batcher.plan()[0].dropped, std::vector<std::uint64_t>{2});
  EXPECT_TRUE(batcher.idle());
}

TEST(Batcher, NoMoreRunOverAllRanksThanAllowed) {
  BatcherOptions o = options(2, 4, 64);
  o.max_running = 3;
  Batcher batcher(o);
  for (std::uint64_t id = 0; id < 5; ++id) batcher.enqueue({.id = id, .request = prompt_of(1)});
  const auto step = batcher.plan();
  EXPECT_EQ(step[0].admissions.size() + step[1].admissions.size(), 3U);
  EXPECT_EQ(batcher.running(), 3U);
  EXPECT_EQ(batcher.waiting(), 2U);
}

TEST(Batcher, ShortPromptsPassALongOneThatStillGetsHalf) {
  Batcher batcher(options(1, 4, 20));
  batcher.enqueue({.id = 0, .request = prompt_of(1000)});
  batcher.enqueue({.id = 1, .request = prompt_of(30)});
  batcher.enqueue({.id = 2, .request = prompt_of(4)});
  std::map<std::uint64_t, int> tokens;
  const auto step = batcher.plan();
  for (const SequenceRun& run : step[0].runs) tokens[run.id] = run.tokens;
  EXPECT_EQ(tokens, (std::map<std::uint64_t, int>{{0, 10}, {1, 6}, {2, 4}}));
}

TEST(Batcher, FewPromptTokensRunBesideDecodesOfAnyRank) {
  Batcher batcher(options(2, 4, 64));
  batcher.enqueue({.id = 0, .request = prompt_of(1)});
  static_cast<void>(batcher.plan(8));
  batcher.enqueue({.id = 1, .request = prompt_of(100)});  // on the other rank
  const auto mixed = batcher.plan(8);
  EXPECT_EQ(tokens_of(mixed[0]), 1);
  EXPECT_EQ(tokens_of(mixed[1]), 8);
  EXPECT_EQ(batcher.most_prompt_tokens(), 8);
  batcher.finish_step(0, result_of(mixed[0], {{.id = 0, .token = 1, .last = true}}));
  EXPECT_EQ(tokens_of(batcher.plan(8)[1]), 64) << "nobody decodes";
}

constexpr StateSpec kFullLayer{.streams = 2, .row_bytes = 12};
constexpr StateSpec kWindowLayer{
    .streams = 3, .row_bytes = 8, .span = {AttentionSpan::Kind::window, 32}};

/// Memory for so many pages of each of these layers.
void limit_to_pages(BatcherOptions& o, int pages, const std::vector<StateSpec>& layers) {
  o.layout = StateLayout(layers);
  o.state_bytes = static_cast<std::size_t>(pages) * o.layout.bytes_held(kPagePositions);
}

/// Runs all of `requests` (prompt, new tokens) over few pages; checks each step's use of pages.
/// Adds to `evictions`.
void run_over_pages(const BatcherOptions& o,
                    const std::vector<std::pair<int, int>>& requests,
                    std::uint64_t& evictions) {
  Batcher batcher(o);

  struct Progress {
    int known, cached, fresh;
  };

  std::map<std::uint64_t, Progress> live;
  for (std::uint64_t id = 0; id < requests.size(); ++id) {
    const auto [prompt, fresh] = requests[id];
    live[id] = {.known = prompt, .cached = 0, .fresh = fresh};
    batcher.enqueue({.id = id, .request = prompt_of(static_cast<std::size_t>(prompt))});
  }
  int steps = 0;
  for (; !batcher.idle() && steps < 10000; ++steps) {
    const auto records = batcher.plan();
    for (Rank r = 0; r < o.groups; ++r) {
      const StepRecord& record = records[static_cast<std::size_t>(r)];
      for (const std::uint64_t id : record.evicted) live.at(id).cached = 0;
      std::vector<TokenResult> tokens;
      for (const SequenceRun& run : record.runs) {
        Progress& p = live.at(run.id);
        p.cached += run.tokens;
        ASSERT_LE(p.cached, p.known);
        if (p.cached < p.known) continue;
        ++p.known;
        tokens.push_back({.id = run.id, .token = 1, .last = --p.fresh == 0});
        if (p.fresh == 0) live.erase(run.id);
      }
      ASSERT_LE(batcher.used_bytes(), o.state_bytes * static_cast<std::size_t>(o.groups));
      batcher.finish_step(r, result_of(record, tokens));
    }
    std::size_t bytes = 0;
    for (const auto& [id, p] : live) bytes += o.layout.bytes_held(p.cached);
    ASSERT_LE(bytes, o.state_bytes * static_cast<std::size_t>(o.groups)) << "step " << steps;
  }
  EXPECT_TRUE(live.empty()) << "no progress";
  evictions += batcher.evictions();
}

TEST(Batcher, SequencesStartOverWhereThereAreNoPagesAndAllComeToTheirEnd) {
  std::mt19937 random(3);
  std::uint64_t evictions = 0;
  for (const int ranks : {1, 2}) {
    for (int round = 0; round < 75; ++round) {
      BatcherOptions o = options(ranks, 5, 40);
      const int pages = 3 + round % 7;
      limit_to_pages(o,
                     pages,
                     round % 3 == 0   ? std::vector{kFullLayer}
                     : round % 3 == 1 ? std::vector{kWindowLayer}
                                      : std::vector{kWindowLayer, kFullLayer, kWindowLayer});
      std::vector<std::pair<int, int>> requests;
      for (int i = 0; i < 12; ++i) {
        const int most = pages * kPagePositions;
        const int prompt = 1 + static_cast<int>(random() % static_cast<unsigned>(most));
        requests.emplace_back(
            prompt, 1 + static_cast<int>(random() % static_cast<unsigned>(most - prompt + 1)));
      }
      run_over_pages(o, requests, evictions);
    }
  }
  EXPECT_GT(evictions, 100U) << "one a run is the least";
}

TEST(Batcher, WindowsTakeNoMoreThanTheyShow) {
  BatcherOptions o = options(1, 4, 16);
  // A window of 32 in steps of 16 tokens lies in 4 pages, however long the sequence.
  limit_to_pages(o, 12, {kWindowLayer});
  Batcher batcher(o);
  for (std::uint64_t id = 0; id < 4; ++id) batcher.enqueue({.id = id, .request = prompt_of(400)});
  EXPECT_EQ(batcher.plan()[0].admissions.size(), 3U);
  EXPECT_EQ(batcher.used_bytes(), o.state_bytes);
  limit_to_pages(o, 24, {kFullLayer});
  Batcher full(o);
  full.enqueue({.id = 0, .request = prompt_of(400)});
  EXPECT_TRUE(full.plan()[0].admissions.empty()) << "25 pages";
}

TEST(Batcher, TheYoungestStartsOver) {
  BatcherOptions o = options(1, 4, 64);
  limit_to_pages(o, 2, {kFullLayer});
  Batcher batcher(o);
  batcher.enqueue({.id = 0, .request = prompt_of(kPagePositions)});
  batcher.enqueue({.id = 1, .request = prompt_of(kPagePositions)});
  EXPECT_EQ(batcher.plan()[0].admissions.size(), 2U);
  const auto step = batcher.plan();
  EXPECT_EQ(step[0].evicted, std::vector<std::uint64_t>{1});
  ASSERT_EQ(step[0].runs.size(), 1U);
  EXPECT_EQ(step[0].runs[0].id, 0U);
  EXPECT_EQ(batcher.evictions(), 1U);
  batcher.finish_step(0, result_of(step[0], {{.id = 0, .token = 1, .last = true}}));
  const auto again = batcher.plan();
  ASSERT_EQ(again[0].runs.size(), 1U);
  EXPECT_EQ(again[0].runs[0].id, 1U);
  EXPECT_EQ(again[0].runs[0].tokens, kPagePositions + 1) << "its prompt and the token it had given";
}

}  // namespace
}  // namespace ferry
