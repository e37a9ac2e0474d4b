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
  return {.ranks = ranks,
          .max_sequences = max_sequences,
          .max_tokens = max_tokens,
          .record_bytes = record_capacity(1000, max_sequences)};
}

TEST(Batcher, IdleUntilAskedAndAgainAtTheEnd) {
  Batcher batcher(options(1, 4, 64));
  EXPECT_TRUE(batcher.idle());
  batcher.enqueue(0, prompt_of(3));
  EXPECT_FALSE(batcher.idle());
  const auto step = batcher.plan();
  ASSERT_EQ(step.size(), 1U);
  EXPECT_FALSE(batcher.idle());
  batcher.finish_step(0, result_of(step[0], {{.id = 0, .token = 5, .last = true}}));
  EXPECT_TRUE(batcher.idle());
  EXPECT_TRUE(batcher.plan_stop()[0].stop);
}

TEST(Batcher, SpreadsRequestsEvenly) {
  Batcher batcher(options(3, 4, 64));
  for (std::uint64_t id = 0; id < 6; ++id) batcher.enqueue(id, prompt_of(2));
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
  batcher.enqueue(0, prompt_of(100));
  batcher.enqueue(1, prompt_of(3));
  batcher.enqueue(2, prompt_of(3));
  const auto step = batcher.plan();
  EXPECT_EQ(step[0].admissions.size(), 1U);
  EXPECT_EQ(step[1].admissions.size(), 2U);
}

TEST(Batcher, CutsLongPromptsIntoChunks) {
  Batcher batcher(options(1, 4, 10));
  batcher.enqueue(0, prompt_of(25));
  EXPECT_EQ(tokens_of(batcher.plan()[0]), 10);
  EXPECT_EQ(tokens_of(batcher.plan()[0]), 10);
  EXPECT_EQ(tokens_of(batcher.plan()[0]), 5);
  EXPECT_EQ(tokens_of(batcher.plan()[0]), 1);  // past its prompt
  EXPECT_EQ(batcher.planned_prompt_tokens(), 0);
  EXPECT_EQ(batcher.planned_decode_tokens(), 1);
}

TEST(Batcher, DecodeComesBeforePrompts) {
  Batcher batcher(options(1, 4, 4));
  batcher.enqueue(0, prompt_of(1));
  static_cast<void>(batcher.plan());
  batcher.enqueue(1, prompt_of(20));
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
    for (std::uint64_t id = 0; id < 5; ++id) batcher->enqueue(id, prompt_of(1));
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

TEST(Batcher, AdmissionsThatDoNotFitTheRecordWait) {
  BatcherOptions small = options(1, 8, 1000);
  small.record_bytes = record_capacity(1000, 8);
  Batcher batcher(small);
  // Two of these do not fit one record, and the short one may not overtake.
  batcher.enqueue(0, prompt_of(900));
  batcher.enqueue(1, prompt_of(900));
  batcher.enqueue(2, prompt_of(1));
  EXPECT_EQ(batcher.plan()[0].admissions.size(), 1U);
  EXPECT_EQ(batcher.plan()[0].admissions.size(), 2U);
}

TEST(Batcher, RanksWithoutWorkStillGetTheirRecord) {
  Batcher batcher(options(4, 4, 64));
  batcher.enqueue(0, prompt_of(2));
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
      batcher.enqueue(id, prompt_of(static_cast<std::size_t>(left[id].first)));
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

}  // namespace
}  // namespace ferry
