// Only commit() advances a sequence: whatever else has run, logits afterwards are those of a run
// that never saw it. For the mixers of every golden model.
#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <random>
#include <string>

#include "ferry/core/error.h"
#include "ferry/model/mixers/mixer.h"
#include "support/golden_model.h"

namespace ferry {
namespace {

using Ids = std::vector<std::int32_t>;

/// As many tokens as make every window of the golden models give pages back.
constexpr int kTokens = 120;
constexpr int kMostTokens = 24;  // of a step

Ids random_ids(unsigned seed, int n, int vocab) {
  std::mt19937 random(seed);
  Ids ids;
  for (int i = 0; i < n; ++i)
    ids.push_back(static_cast<std::int32_t>(random() % static_cast<unsigned>(vocab)));
  return ids;
}

class Commit : public testing::TestWithParam<const char*> {
 protected:
  void with_decoder(int tp, const std::function<void(Decoder&, PagePool&)>& body) const {
    const int status = run_ranks({.transport = "inproc", .ranks = tp}, [&](Transport& transport) {
      ThreadPool pool(1);
      Decoder decoder(
          checkpoint_.config(),
          std::make_shared<const DenseWeights>(
              load_dense_weights(checkpoint_, {WeightType::bf16}, pool, {})),
          load_expert_weights(
              checkpoint_, {WeightType::bf16}, {transport.rank()}, transport.size(), pool, {}),
          {.tp = tp, .max_tokens = 2 * kMostTokens, .dispatch_wire = {}, .combine_wire = {}},
          transport,
          pool);
      PagePool pages(decoder.state_layout());
      body(decoder, pages);
      return 0;
    });
    EXPECT_EQ(status, 0);
  }

  /// Logits at every position, of a run that sees nothing but `ids`.
  std::vector<float> plain_logits(const Ids& ids) const {
    return test::run_model(GetParam(), {ids}, {.weights = WeightType::bf16, .chunk = 24})[0];
  }

  std::size_t vocab() const { return static_cast<std::size_t>(checkpoint_.config().vocab); }

  const Checkpoint checkpoint_ = Checkpoint::open(test::data_dir(GetParam()));
  const Ids ids_ = random_ids(1, kTokens, checkpoint_.config().vocab);
};

/// A sequence on its way through `ids`: each step runs some of them, then wrong ones, of which
/// none stays.
class Guesser {
 public:
  Guesser(PagePool& pages, const Ids& ids, unsigned seed)
      : state_(pages, static_cast<int>(ids.size()) + kMostTokens), ids_(ids), random_(seed) {}

  bool done() const { return state_.length() == static_cast<int>(ids_.size()); }

  /// 0 to all of the tokens that it takes are right.
  SequenceStep guess() {
    const int left = static_cast<int>(ids_.size()) - state_.length();
    const int tokens = 1 + static_cast<int>(random_() % kMostTokens);
    const auto right = random_() % static_cast<unsigned>(std::min(left, tokens) + 1);
    right_ = static_cast<int>(right);
    tokens_.assign(ids_.begin() + state_.length(), ids_.begin() + state_.length() + right_);
    while (static_cast<int>(tokens_.size()) < tokens)
      tokens_.push_back(static_cast<std::int32_t>(random_() % 50));
    return {.state = &state_, .tokens = tokens_, .logits = SequenceStep::Logits::all};
  }

  int right() const { return right_; }

  /// Behind the step: takes its rows of logits, and says how many they were.
  std::size_t take(const float* rows, std::size_t vocab) {
    logits_.insert(logits_.end(), rows, rows + static_cast<std::size_t>(right_) * vocab);
    return tokens_.size() * vocab;
  }

  const SequenceState& state() const { return state_; }

  SequenceState& state() { return state_; }

  const std::vector<float>& logits() const { return logits_; }

 private:
  SequenceState state_;
  const Ids& ids_;
  std::mt19937 random_;
  Ids tokens_;
  int right_ = 0;
  std::vector<float> logits_;
};

TEST_P(Commit, WhatWasNotAcceptedLeavesNoTrace) {
  if (!test::runs_all_ways(GetParam())) GTEST_SKIP() << test::kMainRunHasIt;
  const std::vector<float> expected = plain_logits(ids_);
  for (const int tp : {1, 2}) {
    with_decoder(tp, [&](Decoder& decoder, PagePool& pages) {
      std::vector<Guesser> sequences;
      sequences.emplace_back(pages, ids_, 11);
      sequences.emplace_back(pages, ids_, 12);
      while (!sequences[0].done() || !sequences[1].done()) {
        std::vector<SequenceStep> batch;
        std::vector<int> accepted;
        for (Guesser& s : sequences) {
          batch.push_back(s.guess());
          accepted.push_back(s.right());
        }
        const std::span<const float> rows = decoder.forward(batch);
        const float* next = rows.data();
        for (Guesser& s : sequences) next += s.take(next, vocab());
        decoder.commit(accepted);
        for (Guesser& s : sequences) s.state().let_go();
        for (const Guesser& s : sequences)
          ASSERT_EQ(s.state().held_bytes(), pages.layout().bytes_held(s.state().length()));
      }
      for (const Guesser& s : sequences) {
        ASSERT_EQ(s.logits().size(), expected.size());
        EXPECT_EQ(std::memcmp(s.logits().data(), expected.data(), expected.size() * sizeof(float)),
                  0)
            << "tp " << tp;
      }
    });
  }
}

TEST_P(Commit, AStepThatIsNotCommittedMayRunAgain) {
  with_decoder(1, [&](Decoder& decoder, PagePool& pages) {
    SequenceState state(pages, kTokens);
    const auto run = [&](int first, int tokens) {
      const SequenceStep step{.state = &state,
                              .tokens = std::span(ids_).subspan(static_cast<std::size_t>(first),
                                                                static_cast<std::size_t>(tokens))};
      const auto logits = decoder.forward({&step, 1});
      return std::vector<float>(logits.begin(), logits.end());
    };
    for (int first = 0; first < 60; first += 20) {
      run(first, 20);
      decoder.commit();
    }
    const std::vector<float> once = run(60, 20);
    run(80, 7);  // as a step that was given up: other tokens, and not as many
    const std::vector<float> again = run(60, 20);
    EXPECT_EQ(state.length(), 60);
    EXPECT_EQ(once, again);
    decoder.commit();
    EXPECT_EQ(state.length(), 80);
  });
}

TEST_P(Commit, LayersKeepNoMoreThanTheirSpansNeed) {
  const ModelConfig& config = checkpoint_.config();
  with_decoder(1, [&](Decoder& decoder, PagePool& pages) {
    const std::size_t first_page = decoder.state_layout().bytes_held(1);
    SequenceState state(pages, 480);
    const Ids ids = random_ids(2, 480, config.vocab);
    for (std::size_t at = 0; at < ids.size(); at += 24) {
      const SequenceStep step{.state = &state, .tokens = std::span(ids).subspan(at, 24)};
      decoder.forward({&step, 1});
      decoder.commit();
    }
    state.let_go();
    std::size_t full = 0;
    for (int layer = 0; layer < config.layers; ++layer) {
      const StateSpec spec = mixer_of(config, layer).state(config, layer, decoder.kv_type(), {});
      const std::size_t page =
          spec.row_bytes * static_cast<std::size_t>(spec.streams) * kPagePositions;
      if (spec.span.kind == AttentionSpan::Kind::full) full += page;
    }
    // 480 positions are 30 pages; no window of these models sees more than two.
    EXPECT_LE(pages.held_bytes(), 30 * full + 2 * (first_page - full));
    EXPECT_GE(pages.held_bytes(), 30 * full);
  });
}

INSTANTIATE_TEST_SUITE_P(Models,
                         Commit,
                         testing::ValuesIn(test::kGoldenModels),
                         [](const auto& param) { return std::string(param.param); });

TEST(CommitOfDecoder, RefusesOtherNumbersThanHaveRun) {
  const Checkpoint checkpoint = Checkpoint::open(test::data_dir("qwen3_untied"));
  run_ranks({.transport = "inproc", .ranks = 1}, [&](Transport& transport) {
    ThreadPool pool(1);
    Decoder decoder(checkpoint.config(),
                    std::make_shared<const DenseWeights>(
                        load_dense_weights(checkpoint, {WeightType::bf16}, pool, {})),
                    load_expert_weights(checkpoint, {WeightType::bf16}, {0}, 1, pool, {}),
                    {.max_tokens = 8, .dispatch_wire = {}, .combine_wire = {}},
                    transport,
                    pool);
    PagePool pages(decoder.state_layout());
    SequenceState state(pages, 16);
    const Ids ids = {1, 2, 3};
    const SequenceStep step{.state = &state, .tokens = ids};
    decoder.forward({&step, 1});
    const std::vector<int> too_many = {4};
    const std::vector<int> negative = {-1};
    const std::vector<int> two = {1, 1};
    for (const auto& accepted : {too_many, negative, two, std::vector<int>{}})
      EXPECT_THROW(decoder.commit(accepted), BrokenContract);
    EXPECT_EQ(state.length(), 0);
    const std::vector<int> some = {2};
    decoder.commit(some);
    EXPECT_EQ(state.length(), 2);
    decoder.commit();
    EXPECT_EQ(state.length(), 2) << "nothing has run since";
    return 0;
  });
}

}  // namespace
}  // namespace ferry
