// Kept prefixes as the batcher plans them, carried out on real pages.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <random>

#include "ferry/engine/batcher.h"
#include "ferry/state/kept_pages.h"

namespace ferry {
namespace {

using Ids = std::vector<std::int32_t>;

constexpr StateSpec kFull{.streams = 1, .row_bytes = 8};
constexpr StateSpec kWindow{
    .streams = 1, .row_bytes = 8, .span = {AttentionSpan::Kind::window, 32}};
constexpr StateSpec kBlock{.streams = 1, .row_bytes = 8, .span = {AttentionSpan::Kind::block, 40}};
constexpr StateSpec kRecurrent{.fixed_bytes = 8};
constexpr int kContext = 400;

Ids ids_of(std::int32_t first, int tokens) {
  Ids ids(static_cast<std::size_t>(tokens));
  for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = first + static_cast<std::int32_t>(i);
  return ids;
}

Admission asks(std::uint64_t id, Ids prompt, std::string salt = "") {
  return {.id = id,
          .request = {.prompt = std::move(prompt),
                      .sampling = {},
                      .stop_ids = {},
                      .cache_salt = std::move(salt)}};
}

BatcherOptions options(int groups, int pages, const std::vector<StateSpec>& layers) {
  BatcherOptions o{.groups = groups,
                   .max_sequences = 5,
                   .max_tokens = 64,
                   .layout = StateLayout(layers),
                   .record_bytes = record_capacity(kContext, 5, 64),
                   .keep_prefixes = true};
  if (pages > 0) o.state_bytes = static_cast<std::size_t>(pages) * o.layout.bytes_held(1);
  return o;
}

/// What a rank does with its orders. A row holds a hash of all tokens up to it, as keys and values
/// depend on them; so does what lies beside the pages, which is layer kFixedLayer's.
class Holder {
 public:
  explicit Holder(const StateLayout& layout) : pages_(layout), layers_(layout.classes().size()) {}

  static constexpr int kFixedLayer = 0;

  /// The tokens that have come to their end: a sequence and its next token.
  std::vector<TokenResult> run(const StepRecord& record, bool lost) {
    for (const KeepOrder& keep : record.keeps) {
      const auto ended = ended_.find(keep.sequence);
      kept_.keep(keep.number,
                 keep.before,
                 keep.page,
                 ended != ended_.end() ? ended->second.state : live_.at(keep.sequence).state);
    }
    ended_.clear();
    for (auto& [id, one] : live_) one.state.let_go();
    for (const std::uint64_t number : record.forgotten_windows) kept_.forget_windows(number);
    for (const std::uint64_t number : record.forgotten) kept_.forget(number);
    if (record.forget_all) kept_.clear();
    for (const std::uint64_t id : record.dropped) live_.erase(id);
    for (const std::uint64_t id : record.evicted)
      live_.at(id).state = SequenceState(pages_, kContext);
    for (const Admission& admission : record.admissions)
      live_.emplace(admission.id, Live{admission.ids(), SequenceState(pages_, kContext)});
    for (const BeginOrder& begin : record.begins)
      kept_.give(begin.number, begin.pages, live_.at(begin.sequence).state);
    return run_tokens(record, lost);
  }

  void finish(std::uint64_t id) {
    ended_.emplace(id, std::move(live_.at(id)));
    live_.erase(id);
  }

  void grow(std::uint64_t id, std::int32_t token) { live_.at(id).ids.push_back(token); }

  std::size_t most_held() const { return most_held_; }

  std::size_t held() const {
    std::size_t bytes = pages_.held_bytes() + kept_.snapshot_bytes();
    for (const auto& [id, one] : live_)
      if (one.state.length() > 0) bytes += pages_.layout().bytes_beside_pages();
    return bytes;
  }

  std::size_t kept() const { return kept_.size(); }

  std::uint64_t tokens_run() const { return tokens_run_; }

 private:
  struct Live {
    Ids ids;
    SequenceState state;
  };

  std::uint64_t hash(const Ids& ids, std::int64_t position) const {
    std::uint64_t hash = 1;
    for (std::int64_t p = 0; p <= position; ++p)
      hash = (hash ^ static_cast<std::uint32_t>(ids[static_cast<std::size_t>(p)])) *
             0x9e3779b97f4a7c15ULL;
    return hash;
  }

  void check_fixed(const Live& one) const {
    std::uint64_t fixed = 0;
    std::memcpy(&fixed, one.state.fixed(kFixedLayer), sizeof(fixed));
    ASSERT_EQ(fixed, one.state.length() == 0 ? 0 : hash(one.ids, one.state.length() - 1));
  }

  void check_row(const Live& one, int layer, std::int64_t position) const {
    std::uint64_t row = 0;
    std::memcpy(&row, one.state.rows(layer, 0).row(position), sizeof(row));
    ASSERT_EQ(row, hash(one.ids, position)) << "layer " << layer << ", position " << position;
  }

  std::vector<TokenResult> run_tokens(const StepRecord& record, bool lost) {
    for (const SequenceRun& run : record.runs) {
      live_.at(run.id).state.let_go();
      live_.at(run.id).state.reserve(run.tokens);
    }
    most_held_ = std::max(most_held_, held());
    std::vector<TokenResult> results;
    for (const SequenceRun& run : record.runs) {
      Live& one = live_.at(run.id);
      const std::int64_t length = one.state.length();
      EXPECT_LE(length + run.tokens, std::ssize(one.ids));
      if (pages_.layout().fixed_bytes() > 0) {
        check_fixed(one);
        const std::uint64_t next = lost ? 1 : hash(one.ids, length + run.tokens - 1);
        std::memcpy(one.state.next_fixed(kFixedLayer), &next, sizeof(next));
      }
      for (int i = 0; i < static_cast<int>(layers_); ++i) {
        const int layer = i + (pages_.layout().layer(0).page_class < 0 ? 1 : 0);
        const AttentionSpan& span = pages_.layout().classes()[static_cast<std::size_t>(i)].span;
        for (std::int64_t p = span.first(length); p < length; ++p) check_row(one, layer, p);
        for (std::int64_t p = length; p < length + run.tokens; ++p) {
          const std::uint64_t row = lost ? 0 : hash(one.ids, p);
          std::memcpy(one.state.rows(layer, 0).row(p), &row, sizeof(row));
        }
      }
      if (lost) continue;
      one.state.commit(run.tokens);
      tokens_run_ += static_cast<std::uint64_t>(run.tokens);
      if (one.state.length() == std::ssize(one.ids)) results.push_back({.id = run.id});
    }
    return results;
  }

  PagePool pages_;
  KeptPages kept_{pages_};
  std::size_t layers_;
  std::map<std::uint64_t, Live> live_, ended_;
  std::size_t most_held_ = 0;
  std::uint64_t tokens_run_ = 0;
};

/// A batcher and the holders that carry out what it plans.
struct Groups {
  explicit Groups(const BatcherOptions& o) : options(o), batcher(o) {
    for (int g = 0; g < o.groups; ++g) holders.push_back(std::make_unique<Holder>(o.layout));
  }

  /// One step; `last`: whether a request's token was its last. Returns the records.
  std::vector<StepRecord> step(const std::function<TokenResult(std::uint64_t)>& next,
                               bool lost = false) {
    auto records = batcher.plan();
    for (std::size_t g = 0; g < holders.size(); ++g) {
      if (!holders[g]) continue;
      std::vector<std::byte> bytes(options.record_bytes);
      static_cast<void>(encode(records[g], bytes));
      std::vector<TokenResult> results = holders[g]->run(records[g], lost);
      for (TokenResult& result : results) {
        result = next(result.id);
        holders[g]->grow(result.id, result.token);
        if (result.last) holders[g]->finish(result.id);
      }
      batcher.finish_step(static_cast<int>(g),
                          {.step = records[g].step, .lost = lost, .tokens = results});
      if (options.state_bytes != SIZE_MAX) {
        EXPECT_LE(holders[g]->most_held(), options.state_bytes);
        EXPECT_LE(batcher.used_bytes(), options.state_bytes * holders.size());
      }
    }
    return records;
  }

  /// Until nothing is left; each request gives one token.
  void run_all() {
    while (!batcher.idle())
      step([](std::uint64_t id) { return TokenResult{.id = id, .token = 7, .last = true}; });
  }

  std::uint64_t tokens_run() const {
    std::uint64_t sum = 0;
    for (const auto& holder : holders) sum += holder ? holder->tokens_run() : 0;
    return sum;
  }

  BatcherOptions options;
  Batcher batcher;
  std::vector<std::unique_ptr<Holder>> holders;
};

TEST(BatcherPrefix, ARepeatedPromptCostsAtMostAPage) {
  for (const int tokens : {1, 15, 16, 17, 31, 32, 100, 160}) {
    Groups groups(options(1, 0, {kFull}));
    groups.batcher.enqueue(asks(0, ids_of(0, tokens)));
    groups.run_all();
    EXPECT_EQ(groups.tokens_run(), static_cast<std::uint64_t>(tokens));
    groups.batcher.enqueue(asks(1, ids_of(0, tokens)));
    groups.run_all();
    const int again = tokens - (tokens - 1) / 16 * 16;
    EXPECT_EQ(groups.tokens_run(), static_cast<std::uint64_t>(tokens + again));
    EXPECT_EQ(groups.batcher.prefix_stats().asked, static_cast<std::uint64_t>(2 * tokens));
    EXPECT_EQ(groups.batcher.prefix_stats().reused, static_cast<std::uint64_t>(tokens - again));
  }
}

TEST(BatcherPrefix, ASharedPrefixIsComputedOnceAlsoByThoseWhoComeTogether) {
  Groups groups(options(1, 0, {kFull}));
  const Ids system = ids_of(0, 200);
  for (std::uint64_t id = 0; id < 5; ++id) {
    Ids prompt = system;
    prompt.insert(prompt.end(), 10, -1 - static_cast<std::int32_t>(id));
    groups.batcher.enqueue(asks(id, prompt));
  }
  groups.run_all();
  // 192 tokens are 12 pages; the rest is everybody's own.
  EXPECT_EQ(groups.tokens_run(), 192U + 5 * 18U);
  EXPECT_EQ(groups.batcher.prefix_stats().reused, 4 * 192U);
}

/// Snapshots are there where steps have ended: before a prompt's last token, and where a prompt
/// parts from what others have computed.
TEST(BatcherPrefix, RecurrentLayersFindWhereStepsHaveEnded) {
  Groups groups(options(1, 0, {kRecurrent, kFull}));
  groups.batcher.enqueue(asks(0, ids_of(0, 90)));
  groups.run_all();
  EXPECT_EQ(groups.tokens_run(), 90U);
  groups.batcher.enqueue(asks(1, ids_of(0, 90)));
  groups.run_all();
  EXPECT_EQ(groups.tokens_run(), 90U + 10U) << "a step ended at 80";
  Ids other = ids_of(0, 48);
  other.insert(other.end(), 30, -5);
  groups.batcher.enqueue(asks(2, other));
  groups.run_all();
  EXPECT_EQ(groups.tokens_run(), 100U + 78U) << "nobody stood at 48";
  std::ranges::fill(other.begin() + 48, other.end(), -6);
  groups.batcher.enqueue(asks(3, other));
  groups.run_all();
  EXPECT_EQ(groups.tokens_run(), 178U + 30U) << "the one before did";
}

TEST(BatcherPrefix, OfRecurrentLayersThatComeTogetherOneComputesWhatTheyShare) {
  Groups groups(options(1, 0, {kRecurrent, kFull}));
  Ids system = ids_of(0, 100);
  groups.batcher.enqueue(asks(0, system));
  groups.run_all();
  for (std::uint64_t id = 1; id < 5; ++id) {
    Ids prompt = ids_of(0, 48);
    prompt.insert(prompt.end(), 20, -1 - static_cast<std::int32_t>(id));
    groups.batcher.enqueue(asks(id, prompt));
  }
  groups.run_all();
  EXPECT_EQ(groups.tokens_run(), 100U + 48U + 4 * 20U);
}

TEST(BatcherPrefix, WhatASequenceHasGivenIsFoundToo) {
  Groups groups(options(1, 0, {kFull}));
  groups.batcher.enqueue(asks(0, ids_of(0, 20)));
  Ids all = ids_of(0, 20);
  while (!groups.batcher.idle()) {
    groups.step([&](std::uint64_t id) {
      all.push_back(100);
      return TokenResult{.id = id, .token = 100, .last = all.size() == 50};
    });
  }
  const std::uint64_t before = groups.tokens_run();
  EXPECT_EQ(before, 49U) << "the last is never run";
  all.insert(all.end(), 5, 9);
  groups.batcher.enqueue(asks(1, all));
  groups.run_all();
  EXPECT_EQ(groups.tokens_run() - before, 55U - 48U);
}

TEST(BatcherPrefix, LogProbabilitiesOfThePromptNeedTheRowsBeforeThem) {
  for (const auto& [from, run] :
       {std::pair{0, 100}, {1, 100}, {16, 100}, {17, 84}, {40, 68}, {100, 4}, {1000, 4}}) {
    Groups groups(options(1, 0, {kFull}));
    groups.batcher.enqueue(asks(0, ids_of(0, 100)));
    groups.run_all();
    Admission admission = asks(1, ids_of(0, 100));
    admission.request.top_logprobs = 0;
    admission.request.prompt_logprobs_from = from;
    groups.batcher.enqueue(admission);
    groups.run_all();
    EXPECT_EQ(groups.tokens_run(), 100U + static_cast<std::uint64_t>(run)) << "from " << from;
  }
}

TEST(BatcherPrefix, SaltsKeepClientsApart) {
  Groups groups(options(1, 20, {kFull}));
  std::uint64_t id = 0;
  for (const char* salt : {"", "a", "b", "a", ""}) {
    groups.batcher.enqueue(asks(id++, ids_of(0, 65), salt));
    groups.run_all();
  }
  EXPECT_EQ(groups.tokens_run(), 3 * 65U + 2 * 1U);
}

TEST(BatcherPrefix, ForgettingIsDoneWhereNothingRuns) {
  Groups groups(options(2, 0, {kFull, kWindow}));
  groups.batcher.enqueue(asks(0, ids_of(0, 65)));
  EXPECT_FALSE(groups.batcher.forget_prefixes()) << "it waits";
  groups.run_all();
  EXPECT_GT(groups.batcher.idle_bytes(), 0U);
  EXPECT_TRUE(groups.batcher.forget_prefixes());
  EXPECT_EQ(groups.batcher.idle_bytes(), 0U);
  EXPECT_FALSE(groups.batcher.idle()) << "the holders do not know yet";
  groups.run_all();
  for (const auto& holder : groups.holders) {
    EXPECT_EQ(holder->kept(), 0U);
    EXPECT_EQ(holder->held(), 0U);
  }
  groups.batcher.enqueue(asks(1, ids_of(0, 65)));
  groups.run_all();
  EXPECT_EQ(groups.tokens_run(), 2 * 65U);
}

TEST(BatcherPrefix, IdlePagesMakeWayBeforeAnySequenceStartsOver) {
  Groups groups(options(1, 10, {kFull}));
  for (std::uint64_t id = 0; id < 20; ++id) {
    groups.batcher.enqueue(asks(id, ids_of(static_cast<std::int32_t>(1000 * id), 150)));
    groups.run_all();
  }
  EXPECT_EQ(groups.batcher.evictions(), 0U);
  EXPECT_EQ(groups.tokens_run(), 20 * 150U);
  groups.batcher.enqueue(asks(20, ids_of(19000, 150)));
  groups.run_all();
  EXPECT_EQ(groups.tokens_run(), 20 * 150U + 6U) << "the last one is still there";
}

TEST(BatcherPrefix, WithoutALimitNoMoreIsKeptThanSequencesHeldAtOnce) {
  Groups groups(options(1, 0, {kFull}));
  for (std::uint64_t id = 0; id < 50; ++id) {
    groups.batcher.enqueue(asks(id, ids_of(static_cast<std::int32_t>(1000 * id), 160)));
    groups.run_all();
    EXPECT_LE(groups.holders[0]->held(), 2 * groups.options.layout.bytes_held(160));
  }
}

TEST(BatcherPrefix, WhereNothingIsKeptRequestsGoToTheLeastBusyGroup) {
  // Where nothing is kept, two requests go to two groups.
  Groups groups(options(2, 0, {kFull}));
  groups.batcher.enqueue(asks(0, ids_of(0, 300)));
  groups.batcher.enqueue(asks(1, ids_of(1000, 300)));
  const auto first = groups.batcher.plan();
  EXPECT_EQ(first[0].admissions.size(), 1U);
  EXPECT_EQ(first[1].admissions.size(), 1U);
}

TEST(BatcherPrefix, ALongPrefixDrawsARequestAndAShortOneDoesNot) {
  for (const auto& [shared, group] : {std::pair{250, 1U}, {17, 0U}}) {
    Groups groups(options(2, 0, {kFull}));
    groups.batcher.enqueue(asks(0, ids_of(0, 300)));
    groups.batcher.enqueue(asks(1, ids_of(1000, 300)));
    groups.run_all();
    // The other group has nothing to do, this one decodes.
    Ids prompt = ids_of(1000, 300);
    groups.batcher.enqueue(asks(2, prompt));
    const auto keep = [](std::uint64_t id) { return TokenResult{.id = id, .token = 7}; };
    EXPECT_EQ(groups.step(keep)[1].admissions.size(), 1U) << "both are idle";
    prompt.resize(static_cast<std::size_t>(shared));
    prompt.insert(prompt.end(), 60, -5);
    groups.batcher.enqueue(asks(3, prompt));
    EXPECT_EQ(groups.step(keep)[group].admissions.size(), 1U) << shared;
  }
}

/// Few kinds of pages, so that many prompts begin alike; groups that die, steps that are lost,
/// requests that are cancelled, more pages than there is memory for. Each row is looked at.
TEST(BatcherPrefix, NoSequenceEverStandsOnWrongRowsOrOnTooManyPages) {
  std::mt19937 random(11);
  const auto below = [&](int n) { return static_cast<int>(random() % static_cast<unsigned>(n)); };
  std::uint64_t evictions = 0, reused = 0;
  for (int round = 0; round < 60; ++round) {
    const int pages = 8 + below(20);
    const std::vector<StateSpec> layers =
        std::array{std::vector{kFull},
                   std::vector{kFull, kWindow},
                   std::vector{kWindow},
                   std::vector{kBlock, kFull, kWindow},
                   std::vector{kRecurrent, kFull}}[static_cast<std::size_t>(round % 5)];
    Groups groups(options(1 + round % 3, pages, layers));
    const int most = std::min(kContext, (pages - 1) * kPagePositions);
    std::map<std::uint64_t, int> left;
    std::uint64_t asked = 0;
    int steps = 0;
    for (; (asked < 40 || !groups.batcher.idle()) && steps < 5000; ++steps) {
      while (asked < 40 && below(3) == 0) {
        const int fresh = 1 + below(std::min(40, most / 2));
        Ids prompt;
        for (int page = below(8); page > 0; --page)
          prompt.insert(prompt.end(), 16, static_cast<std::int32_t>(below(2)));
        for (int more = 1 + below(20); more > 0; --more) prompt.push_back(below(2));
        prompt.resize(std::min(prompt.size(), static_cast<std::size_t>(most - fresh)));
        Admission admission = asks(asked, prompt, below(5) == 0 ? "other" : "");
        if (below(6) == 0) {
          admission.request.top_logprobs = 1;
          admission.request.prompt_logprobs_from = below(60);
        }
        left[asked++] = fresh;
        groups.batcher.enqueue(std::move(admission));
      }
      if (below(40) == 0 && asked > 0 && groups.batcher.cancel(asked - 1)) left.erase(asked - 1);
      if (below(10) == 0) groups.batcher.forget_prefixes();
      groups.step(
          [&](std::uint64_t id) {
            const int more = --left.at(id);
            if (more == 0) left.erase(id);
            return TokenResult{.id = id, .token = below(2), .last = more == 0};
          },
          below(12) == 0);
      if (groups.options.groups > 1 && steps == 60) {
        groups.batcher.lose_group(1);
        groups.holders[1].reset();
      }
      ASSERT_FALSE(HasFailure()) << "round " << round << ", step " << steps;
    }
    EXPECT_TRUE(left.empty()) << "no progress in round " << round;
    evictions += groups.batcher.evictions();
    reused += groups.batcher.prefix_stats().reused;
    if (groups.batcher.forget_prefixes()) groups.run_all();
    for (const auto& holder : groups.holders) EXPECT_TRUE(!holder || holder->held() == 0);
  }
  EXPECT_GT(evictions, 60U);
  EXPECT_GT(reused, 10000U);
}

}  // namespace
}  // namespace ferry
