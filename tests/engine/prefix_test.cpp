// Conversations over kept prefixes: the same tokens, logits and log probabilities as without, for
// every kind of attention, whatever is evicted, restarted or lost.
#include <gtest/gtest.h>

#include <random>

#include "ferry/core/error.h"
#include "ferry/engine/engine.h"
#include "ferry/model/mixers/mixer.h"
#include "ferry/runtime/model.h"
#include "support/golden_model.h"

namespace ferry {
namespace {

using Ids = std::vector<std::int32_t>;

struct Told {
  Ids tokens;
  std::string logits_sha256;
  std::vector<Logprobs> logprobs;
  std::vector<Logprobs> prompt;

  bool operator==(const Told&) const = default;
};

struct Way {
  bool keep = true;
  int ranks = 1;
  int tp = 1;
  int max_tokens = 64;
  int max_sequences = 4;
  std::int64_t max_kv_tokens = 0;
  DType weights = DType::f32;
  std::optional<WireType> kv_type = {};
  MoeA2ABackend backend = MoeA2ABackend::pplx;
  int redundant = 0;
  BalanceOptions balance = {};
};

/// Rounds of requests, each of which continues what the ones before it have given.
class Conversations {
 public:
  Conversations(int count, int rounds, int vocab, unsigned seed)
      : rounds_(rounds), vocab_(vocab), random_(seed) {
    const Ids system = text(40);
    for (int i = 0; i < count; ++i) {
      Ids start = i % 3 == 2 ? text(20) : system;
      texts_.push_back(std::move(start));
    }
  }

  int rounds() const { return rounds_; }

  std::vector<Request> next() {
    std::vector<Request> requests;
    for (std::size_t i = 0; i < texts_.size(); ++i) {
      const Ids more = text(1 + below(20));
      texts_[i].insert(texts_[i].end(), more.begin(), more.end());
      Request request{.prompt = texts_[i],
                      .max_new_tokens = 1 + below(20),
                      .sampling = {.temperature = 0.8, .top_p = 0.95, .seed = i},
                      .stop_ids = {}};
      if (i % 2 == 0) request.top_logprobs = 2;
      if (i % 4 == 0) request.prompt_logprobs_from = below(2) * below(60);
      if (i % 5 == 4) request.cache_salt = "other";
      requests.push_back(std::move(request));
    }
    return requests;
  }

  void take(const std::vector<Told>& told) {
    for (std::size_t i = 0; i < texts_.size(); ++i)
      texts_[i].insert(texts_[i].end(), told[i].tokens.begin(), told[i].tokens.end());
  }

 private:
  int below(int n) { return static_cast<int>(random_() % static_cast<unsigned>(n)); }

  Ids text(int tokens) {
    Ids ids(static_cast<std::size_t>(tokens));
    for (std::int32_t& id : ids) id = below(vocab_);
    return ids;
  }

  int rounds_;
  int vocab_;
  std::mt19937 random_;
  std::vector<Ids> texts_;
};

struct Outcome {
  std::vector<std::vector<Told>> rounds;
  EngineStats stats;
  std::uint64_t cached_tokens = 0;
};

constexpr int kConversations = 7;
constexpr int kRounds = 3;

Outcome converse(const std::string& model, const Way& run) {
  const Model opened = Model::open({.model = test::data_dir(model),
                                    .launch = {.transport = "inproc", .ranks = run.ranks},
                                    .weights = weight_type(run.weights),
                                    .decoder = {.tp = run.tp,
                                                .max_tokens = run.max_tokens,
                                                .backend = run.backend,
                                                .kv_type = run.kv_type},
                                    .engine = {.max_sequences_per_rank = run.max_sequences,
                                               .max_tokens_per_step = run.max_tokens,
                                               .max_kv_tokens = run.max_kv_tokens,
                                               .keep_prefixes = run.keep,
                                               .hash_logits = true,
                                               .balance = run.balance},
                                    .expert_location = {.redundant = run.redundant}});
  Outcome outcome;
  opened.run([&](Decoder& decoder, Transport& transport) {
    Engine engine = opened.engine_on(decoder, transport);
    Conversations conversations(kConversations, kRounds, decoder.config().vocab, 3);
    for (int round = 0; round < kRounds; ++round) {
      std::vector<Told> told(kConversations);
      std::uint64_t first = 0;
      if (transport.rank() == 0) {
        const std::vector<Request> requests = conversations.next();
        first = static_cast<std::uint64_t>(round) * requests.size();
        for (const Request& request : requests) static_cast<void>(engine.submit(request));
      }
      engine.run([&](const TokenEvent& event) {
        Told& one = told.at(event.request - first);
        if (one.tokens.empty()) one.prompt = event.prompt_logprobs;
        outcome.cached_tokens += event.cached_tokens;
        one.tokens.push_back(event.token);
        if (event.logprobs) one.logprobs.push_back(*event.logprobs);
        one.logits_sha256 = event.logits_sha256;
      });
      if (transport.rank() != 0) continue;
      conversations.take(told);
      outcome.rounds.push_back(std::move(told));
    }
    if (transport.rank() == 0) outcome.stats = engine.stats();
    return 0;
  });
  return outcome;
}

/// What three sequences have beside pages, as positions in whole pages.
std::int64_t beside_pages(const char* model, WireType kv_type) {
  const StateLayout layout(state_specs(load_config(test::data_dir(model)), kv_type));
  const std::size_t bytes = 3 * layout.counted_with_prefixes().bytes_beside_pages();
  return pages_of(static_cast<std::int64_t>(bytes / layout.bytes_per_position())) * kPagePositions;
}

class Prefixes : public testing::TestWithParam<const char*> {};

TEST_P(Prefixes, ChangeNoBit) {
  if (!test::runs_all_ways(GetParam())) GTEST_SKIP() << test::kMainRunHasIt;
  const DType weights = DType::bf16;
  const Outcome without = converse(GetParam(), {.keep = false, .weights = weights});
  EXPECT_EQ(without.cached_tokens, 0U);
  EXPECT_EQ(without.stats.prefix_asked_tokens, 0U);
  EXPECT_EQ(without.stats.kv_idle_tokens, 0);
  for (const Way& run : {Way{},
                         Way{.max_tokens = 7},
                         Way{.ranks = 2, .max_sequences = 2},
                         Way{.ranks = 2, .tp = 2},
                         Way{.ranks = 3, .max_kv_tokens = 256}}) {
    Way with = run;
    with.weights = weights;
    if (run.max_kv_tokens > 0) with.max_kv_tokens += beside_pages(GetParam(), wire_type(weights));
    const Outcome outcome = converse(GetParam(), with);
    EXPECT_TRUE(outcome.rounds == without.rounds)
        << "ranks " << run.ranks << ", tp " << run.tp << ", tokens " << run.max_tokens;
    EXPECT_GT(outcome.cached_tokens, 300U);
    EXPECT_EQ(outcome.stats.prefix_reused_tokens, outcome.cached_tokens);
    if (outcome.stats.evictions > 0) continue;
    EXPECT_EQ(outcome.stats.prefill_tokens + outcome.cached_tokens, without.stats.prefill_tokens)
        << "what is not found is computed, and nothing else";
  }
}

/// More conversation than pages, so that sequences start over, with and without what they kept.
TEST_P(Prefixes, ChangeNoBitWherePagesRunOut) {
  if (!test::runs_all_ways(GetParam())) GTEST_SKIP() << test::kMainRunHasIt;
  const Outcome without = converse(GetParam(), {.keep = false});
  for (const std::int64_t pages : {192, 240}) {
    const std::int64_t positions = pages + beside_pages(GetParam(), WireType::f32);
    const Outcome outcome =
        converse(GetParam(), {.max_tokens = 16, .max_sequences = 6, .max_kv_tokens = positions});
    EXPECT_TRUE(outcome.rounds == without.rounds) << positions << " positions";
    EXPECT_LE(outcome.stats.kv_idle_tokens, positions);
  }
}

TEST_P(Prefixes, ChangeNoBitWhereKeysAndValuesAreNarrow) {
  if (!test::runs_all_ways(GetParam())) GTEST_SKIP() << test::kMainRunHasIt;
  for (const WireType kv_type : {WireType::int8_block, WireType::fp8}) {
    const Outcome without = converse(GetParam(), {.keep = false, .kv_type = kv_type});
    for (const Way& run : {Way{.max_tokens = 7, .kv_type = kv_type},
                           Way{.ranks = 2, .tp = 2, .kv_type = kv_type},
                           Way{.max_tokens = 16,
                           .max_sequences = 6,
                           .max_kv_tokens = 192 + beside_pages(GetParam(), kv_type),
                           .kv_type = kv_type}}) {
      const Outcome outcome = converse(GetParam(), run);
      EXPECT_TRUE(outcome.rounds == without.rounds)
          << wire_type_name(kv_type) << ", tp " << run.tp << ", tokens " << run.max_tokens;
      EXPECT_GT(outcome.cached_tokens, 100U);
    }
  }
}

TEST_P(Prefixes, ChangeNoBitWhileExpertsMove) {
  if (!test::runs_all_ways(GetParam())) GTEST_SKIP() << test::kMainRunHasIt;
  const Outcome without = converse(GetParam(), {.keep = false});
  const Outcome outcome = converse(
      GetParam(),
      {.ranks = 2,
       .redundant = 2,
       .balance = {.record = true,
                   .window = 3,
                   .rebalance = {.enabled = true, .every = 3, .least_gain = 0, .canary = true}}});
  EXPECT_TRUE(outcome.rounds == without.rounds);
  EXPECT_GT(outcome.cached_tokens, 300U);
}

INSTANTIATE_TEST_SUITE_P(Models,
                         Prefixes,
                         testing::Values("deepseek_v3",
                                         "deepseek_v32_sparse",
                                         "glm_moe_dsa_sparse",
                                         "gpt_oss_mxfp4",
                                         "lfm2_moe",
                                         "llama4_text",
                                         "mixtral_window_bf16",
                                         "qwen3_5_moe_text",
                                         "qwen3_bf16",
                                         "qwen3_next"),
                         [](const auto& model) { return std::string(model.param); });

/// Where ranks sum first a row's bits follow the placement of experts.
TEST(Prefix, IsNotKeptWhereExpertsThatMoveChangeBits) {
  const BalanceOptions moves{.record = true,
                             .rebalance = {.enabled = true, .every = 3, .least_gain = 0}};
  for (const auto& [redundant, balance, kept] :
       {std::tuple{0, BalanceOptions{}, true}, {2, BalanceOptions{}, false}, {0, moves, false}}) {
    const Outcome outcome = converse(
        "qwen3_bf16",
        {.ranks = 2, .backend = MoeA2ABackend::none, .redundant = redundant, .balance = balance});
    EXPECT_EQ(outcome.cached_tokens > 0, kept);
    if (!kept) continue;
    const Outcome without =
        converse("qwen3_bf16", {.keep = false, .ranks = 2, .backend = MoeA2ABackend::none});
    EXPECT_EQ(without.stats.prefix_asked_tokens, 0U);
  }
}

TEST(Prefix, ForgottenOnesAreComputedAgain) {
  const Model model = Model::open({.model = test::data_dir("qwen3_bf16"),
                                   .launch = {.transport = "inproc", .ranks = 2},
                                   .decoder = {.max_tokens = 64},
                                   .engine = {.max_tokens_per_step = 64}});
  model.run([&](Decoder& decoder, Transport& transport) {
    Engine engine = model.engine_on(decoder, transport);
    std::vector<std::size_t> cached;
    for (int i = 0; i < 4; ++i) {
      if (transport.rank() == 0) {
        if (i == 2) {
          EXPECT_TRUE(engine.forget_prefixes());
        }
        static_cast<void>(engine.submit(
            {.prompt = Ids(50, 3), .max_new_tokens = 1, .sampling = {}, .stop_ids = {}}));
      }
      engine.run([&](const TokenEvent& event) { cached.push_back(event.cached_tokens); });
    }
    if (transport.rank() == 0) {
      EXPECT_EQ(cached, (std::vector<std::size_t>{0, 48, 0, 48}));
    }
    return 0;
  });
}

}  // namespace
}  // namespace ferry
