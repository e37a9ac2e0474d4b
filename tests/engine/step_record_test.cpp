#include "ferry/engine/step_record.h"

#include <gtest/gtest.h>

#include "ferry/core/error.h"
#include "ferry/engine/drafts.h"
#include "ferry/engine/logits_chain.h"
#include "ferry/state/state_layout.h"
#include "support/allocation_count.h"

namespace ferry {
namespace {

StepRecord sample_record() {
  StepRecord record{.step = 0x123456789a, .stop = false, .admissions = {}, .runs = {}};
  record.moves = {.plan = 3, .switches = 1ULL << 40, .bytes = 77};
  record.gone.set(2).set(1023);
  record.dropped = {5};
  record.evicted = {6, 1ULL << 50};
  record.keeps = {{.sequence = 3, .number = 1ULL << 40, .before = 12, .page = 1U << 30}};
  record.forgotten_windows = {13, 14};
  record.forgotten = {15};
  record.begins = {{.sequence = 7, .number = 16, .pages = 2},
                   {.sequence = 8, .number = 17, .pages = 3}};
  record.admissions.push_back(
      {.id = 7,
       .request = {
           .prompt = {1, 2, 3, 400000},
           .max_new_tokens = 5,
           .sampling = {.temperature = 0.7, .top_k = 3, .top_p = 0.5, .min_p = 0.1, .seed = ~0ULL},
           .stop_ids = {9, 10},
           .top_logprobs = 4,
           .logprob_ids = {41, 42, 43},
           .processors = {
               {.name = "logit_bias", .integers = {31, 32}, .numbers = {-1.5F, 99}, .text = "odd"},
               {.name = "min_tokens", .integers = {33}, .numbers = {}}}}});
  record.admissions.push_back(
      {.id = 8, .request = {.prompt = {5}, .max_new_tokens = 1, .sampling = {}, .stop_ids = {}}});
  record.admissions.back().generated = {21, 22};
  record.runs = {{.id = 3, .tokens = 1, .drafts = 2}, {.id = 7, .tokens = 4, .draft = {9, 0, 9}}};
  record.passes = 2;
  return record;
}

std::vector<std::byte> bytes_of(const StepRecord& record) {
  std::vector<std::byte> bytes(1 << 17);
  bytes.resize(encode(record, bytes));
  return bytes;
}

TEST(StepRecord, ComesBackAsItWentOut) {
  const StepRecord out = sample_record();
  const StepRecord in = decode_step_record(bytes_of(out));
  EXPECT_EQ(in.step, out.step);
  EXPECT_FALSE(in.stop);
  EXPECT_EQ(in.moves, out.moves);
  EXPECT_EQ(in.gone, out.gone);
  EXPECT_EQ(in.admissions[1].generated, out.admissions[1].generated);
  ASSERT_EQ(in.admissions.size(), 2U);
  const Request& request = in.admissions[0].request;
  EXPECT_EQ(in.admissions[0].id, 7U);
  EXPECT_EQ(request.prompt, out.admissions[0].request.prompt);
  EXPECT_EQ(request.max_new_tokens, 5);
  EXPECT_EQ(request.sampling.temperature, 0.7);
  EXPECT_EQ(request.sampling.top_k, 3);
  EXPECT_EQ(request.sampling.top_p, 0.5);
  EXPECT_EQ(request.sampling.min_p, 0.1);
  EXPECT_EQ(request.sampling.seed, ~0ULL);
  EXPECT_EQ(request.stop_ids, (std::vector<std::int32_t>{9, 10}));
  EXPECT_EQ(request.top_logprobs, 4);
  EXPECT_EQ(request.logprob_ids, (std::vector<std::int32_t>{41, 42, 43}));
  EXPECT_EQ(request.processors, out.admissions[0].request.processors);
  EXPECT_TRUE(in.admissions[1].request.processors.empty());
  EXPECT_EQ(in.admissions[1].request.top_logprobs, std::nullopt);
  EXPECT_EQ(in.dropped, out.dropped);
  EXPECT_EQ(in.evicted, out.evicted);
  EXPECT_EQ(in.keeps, out.keeps);
  EXPECT_EQ(in.forgotten_windows, out.forgotten_windows);
  EXPECT_EQ(in.forgotten, out.forgotten);
  EXPECT_EQ(in.begins, out.begins);
  EXPECT_FALSE(in.forget_all);
  ASSERT_EQ(in.runs.size(), 2U);
  EXPECT_EQ(in.runs[1].id, 7U);
  EXPECT_EQ(in.runs[1].tokens, 4);
  EXPECT_TRUE(in.runs[0].draft.empty());
  EXPECT_EQ(in.runs[0].drafts, 2);
  EXPECT_EQ(in.runs[1].drafts, 0);
  EXPECT_EQ(in.passes, 2);
  EXPECT_EQ(in.runs[1].draft, (std::vector<std::int32_t>{9, 0, 9}));
}

TEST(StepRecord, FlagsSurvive) {
  EXPECT_TRUE(
      decode_step_record(bytes_of({.step = 1, .forget_all = true, .admissions = {}, .runs = {}}))
          .forget_all);
  EXPECT_TRUE(
      decode_step_record(bytes_of({.step = 1, .stop = true, .admissions = {}, .runs = {}})).stop);
  const StepRecord last =
      decode_step_record(bytes_of({.step = 1, .next_epoch = true, .admissions = {}, .runs = {}}));
  EXPECT_TRUE(last.next_epoch);
  EXPECT_FALSE(last.stop);
}

TEST(StepRecord, SizesAreAsAnnounced) {
  StepRecord record = sample_record();
  const int runs = static_cast<int>(record.runs.size());
  std::size_t expected = record_bytes_without_admissions(runs, 40);
  for (const Admission& admission : record.admissions) expected += encoded_bytes(admission);
  record.dropped = {1, 2};
  record.evicted = {};
  record.runs[1].draft.resize(40);
  record.keeps.resize(4);  // of two pages, and one of each sequence
  record.forgotten.resize(kMostForgotten - record.forgotten_windows.size());
  EXPECT_EQ(bytes_of(record).size(), expected);

  // The greatest request that check_request lets through.
  Request largest{.prompt = std::vector<std::int32_t>(100), .sampling = {}, .stop_ids = {}};
  largest.stop_ids.resize(kMaxStopIds);
  largest.logprob_ids.resize(kMaxLogprobIds);
  for (const ProcessorKind* kind : processor_kinds())
    largest.processors.push_back({.name = kind->name, .integers = {}, .numbers = {}});
  largest.processors.back().integers.resize(kMaxProcessorNumbers / 2);
  largest.processors.front().numbers.resize(kMaxProcessorNumbers / 2);
  largest.processors.back().text.resize(kMaxProcessorText);
  record.admissions.clear();
  record.admissions.push_back({.id = 1, .request = largest});
  record.runs.assign(16, {.id = 1, .tokens = 1});
  record.runs.back().draft.resize(512);
  record.dropped.assign(7, 1);
  record.evicted.assign(9, 1);
  record.begins.assign(16, {});
  record.keeps.assign(16 + 512 / kPagePositions, {});
  EXPECT_EQ(bytes_of(record).size(), record_capacity(100, 16, 512));
}

TEST(StepRecord, UnknownProcessorsAreNotWritten) {
  StepRecord record = sample_record();
  record.admissions[0].request.processors[0].name = "no such";
  EXPECT_THROW(bytes_of(record), BrokenContract);
}

TEST(StepRecord, WhatDoesNotFitIsNotWritten) {
  std::vector<std::byte> small(40);
  EXPECT_THROW(static_cast<void>(encode(sample_record(), small)), BrokenContract);
}

TEST(StepRecord, EveryCutIsNoticed) {
  const std::vector<std::byte> bytes = bytes_of(sample_record());
  for (std::size_t n = 0; n < bytes.size(); ++n) {
    // A copy of exact size, so that the address sanitizer sees a read beyond the end.
    const std::vector<std::byte> cut(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(n));
    EXPECT_THROW(decode_step_record(cut), TransportError) << n;
  }
}

/// Every four bytes in turn say 2^32 - 1: most are counts or part of one.
template <class Decode>
void expect_small_from_damaged(const std::vector<std::byte>& bytes, Decode decode) {
  int refused = 0;
  for (std::size_t i = 0; i + 4 <= bytes.size(); ++i) {
    std::vector<std::byte> damaged = bytes;
    for (std::size_t j = 0; j < 4; ++j) damaged[i + j] = std::byte{0xff};
    const testing::AllocationCount allocated;
    try {
      static_cast<void>(decode(damaged));
    } catch (const TransportError& e) {
      ++refused;
      EXPECT_NE(std::string(e.what()).find("damaged"), std::string::npos) << e.what();
    }
    // What is there and its bookkeeping; a count that was believed would be gigabytes.
    EXPECT_LE(allocated.bytes_so_far(), 16 * std::ssize(bytes) + 4096) << "byte " << i;
  }
  EXPECT_GT(refused, 0);
}

TEST(StepRecord, DamagedCountsNeitherCrashNorReserve) {
  expect_small_from_damaged(bytes_of(sample_record()), decode_step_record);
}

TEST(StepResult, DamagedCountsNeitherCrashNorReserve) {
  StepResult result{.step = 1, .tokens = {{.id = 1, .token = 7}, {.id = 2, .token = 8}}};
  result.tokens[0].logprobs = {.chosen = -1, .top = {{.id = 3, .logprob = -2}}};
  result.prompts = {{.id = 1, .position = 2, .logprobs = {*result.tokens[0].logprobs}}};
  result.sources.resize(2);
  std::vector<std::byte> bytes(result_capacity(2, 40, 2));
  bytes.resize(encode(result, bytes));
  expect_small_from_damaged(bytes, decode_step_result);
}

TEST(StepResult, ComesBackAsItWentOut) {
  StepResult out{.step = 12,
                 .lost = true,
                 .gone = RankSet(5),
                 .tokens = {{.id = 1, .token = 77, .last = false}}};
  out.tokens.push_back({.id = 2, .token = 78, .last = true});
  out.tokens.back().logits_sha256.fill(std::byte{0xab});
  for (TokenResult& token : out.tokens)
    token.logprobs = {.chosen = -0.5F,
                      .top = std::vector<TokenLogprob>(kMaxTopLogprobs, {.id = 3, .logprob = -9}),
                      .asked = std::vector<TokenLogprob>(kMaxLogprobIds, {.id = 4, .logprob = -8})};
  out.prompts.push_back({.id = 1, .position = 5, .logprobs = {}});
  out.prompts.push_back({.id = 2, .position = 1, .logprobs = {}});
  for (int i = 0; i < 40; ++i) out.prompts[i % 2].logprobs.push_back(*out.tokens[0].logprobs);
  out.sources = {{.dispatch_wait_ns = 1, .combine_wait_ns = 2, .rows_received = 3},
                 {.dispatch_wait_ns = 4, .combine_wait_ns = 5, .rows_received = 6}};
  std::vector<std::byte> bytes(result_capacity(2, 42, 2));
  bytes.resize(encode(out, bytes));
  const StepResult in = decode_step_result(bytes);
  EXPECT_EQ(in.step, 12U);
  EXPECT_TRUE(in.lost);
  EXPECT_EQ(in.gone, out.gone);
  EXPECT_EQ(in.sources, out.sources);
  ASSERT_EQ(in.tokens.size(), 2U);
  EXPECT_EQ(in.tokens[0].token, 77);
  EXPECT_FALSE(in.tokens[0].last);
  EXPECT_EQ(in.tokens[1].id, 2U);
  EXPECT_TRUE(in.tokens[1].last);
  EXPECT_EQ(in.tokens[1].logprobs, out.tokens[1].logprobs);
  EXPECT_EQ(in.tokens[1].logits_sha256, out.tokens[1].logits_sha256);
  ASSERT_EQ(in.prompts.size(), 2U);
  EXPECT_EQ(in.prompts[0].position, 5U);
  EXPECT_EQ(in.prompts[1].id, 2U);
  EXPECT_EQ(in.prompts[1].logprobs, out.prompts[1].logprobs);
  for (std::size_t n = 0; n < bytes.size(); ++n)
    EXPECT_THROW(decode_step_result(std::span(bytes).first(n)), TransportError);
}

TEST(StepResult, SizeIsAsAnnouncedWhereEachRowGivesAToken) {
  TokenResult largest{.id = 1, .token = 77};
  largest.logprobs = {.chosen = -0.5F,
                      .top = std::vector<TokenLogprob>(kMaxTopLogprobs, {.id = 3, .logprob = -9}),
                      .asked = std::vector<TokenLogprob>(kMaxLogprobIds, {.id = 4, .logprob = -8})};
  StepResult out{.step = 12,
                 .tokens = std::vector<TokenResult>(40, largest),
                 .prompts = {{.id = 1, .position = 5, .logprobs = {}},
                             {.id = 2, .position = 1, .logprobs = {}}}};
  out.drafts.assign(2, {.id = 1, .tokens = std::vector<std::int32_t>(kMostDraftTokens)});
  out.sources.resize(3);
  std::vector<std::byte> bytes(result_capacity(2, 40, 3));
  EXPECT_EQ(encode(out, bytes), bytes.size());
}

TEST(StepResult, IsNotTakenForARecord) {
  std::vector<std::byte> bytes(result_capacity(1, 40, 1));
  static_cast<void>(encode(StepResult{.step = 1, .tokens = {}}, bytes));
  EXPECT_THROW(decode_step_record(bytes), TransportError);
}

}  // namespace
}  // namespace ferry
