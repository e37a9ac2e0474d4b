// Speculation: the same tokens, logits and log probabilities as without, however drafts turn out.
#include <gtest/gtest.h>

#include "ferry/core/error.h"
#include "ferry/engine/engine.h"
#include "ferry/model/mixers/mixer.h"
#include "ferry/runtime/model.h"
#include "support/draft_layer.h"
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

void PrintTo(const Told& told, std::ostream* out) {
  *out << testing::PrintToString(told.tokens) << " " << told.logits_sha256;
}

struct Way {
  DraftOptions drafts = {.tokens = 4};
  int ranks = 1;
  int tp = 1;
  int threads = 1;
  int max_tokens = 64;
  int max_sequences = 4;
  int max_context = 0;
  std::int64_t max_kv_tokens = 0;
  DType weights = DType::f32;
  MoeA2ABackend backend = MoeA2ABackend::pplx;
  int redundant = 0;
  BalanceOptions balance = {};
};

constexpr DraftOptions kOff = {};

struct Outcome {
  std::vector<Told> told;
  EngineStats stats;
};

Outcome run(const std::string& model, const std::vector<Request>& requests, const Way& way) {
  const Model opened =
      Model::open({.model = test::data_dir(model),
                   .launch = {.transport = "inproc", .ranks = way.ranks},
                   .threads = way.threads,
                   .weights = weight_type(way.weights),
                   .decoder = {.tp = way.tp, .max_tokens = way.max_tokens, .backend = way.backend},
                   .engine = {.max_sequences_per_rank = way.max_sequences,
                              .max_tokens_per_step = way.max_tokens,
                              .max_context = way.max_context,
                              .max_kv_tokens = way.max_kv_tokens,
                              .drafts = way.drafts,
                              .hash_logits = true,
                              .balance = way.balance},
                   .expert_location = {.redundant = way.redundant}});
  Outcome outcome{.told = std::vector<Told>(requests.size()), .stats = {}};
  opened.run([&](Decoder& decoder, Transport& transport) {
    Engine engine = opened.engine_on(decoder, transport);
    if (transport.rank() == 0)
      for (const Request& request : requests) static_cast<void>(engine.submit(request));
    engine.run([&](const TokenEvent& event) {
      Told& one = outcome.told.at(event.request);
      EXPECT_TRUE(one.logits_sha256.empty()) << "a token behind the last one";
      if (one.tokens.empty()) one.prompt = event.prompt_logprobs;
      one.tokens.push_back(event.token);
      if (event.logprobs) one.logprobs.push_back(*event.logprobs);
      one.logits_sha256 = event.logits_sha256;
    });
    if (transport.rank() == 0) outcome.stats = engine.stats();
    return 0;
  });
  return outcome;
}

ProcessorOptions allowed(Ids ids) {
  return {.name = "allowed_tokens", .integers = std::move(ids), .numbers = {}};
}

/// Greedy, and drawn from few tokens, so that much repeats and much does not; with penalties, stop
/// ids, log probabilities, and ends of every length.
std::vector<Request> many_requests(const std::string& model) {
  std::vector<Request> requests;
  for (const test::GoldenPrompt& p : test::golden_prompts(model))
    requests.push_back({.prompt = p.prompt,
                        .max_new_tokens = static_cast<int>(p.greedy.size()),
                        .sampling = {},
                        .stop_ids = {}});
  const std::size_t golden = requests.size();
  for (std::size_t i = 0; i < 12; ++i) {
    Request request = requests[i % golden];
    request.max_new_tokens = 5 + 3 * static_cast<int>(i);
    request.sampling = {.temperature = 0.9, .top_p = 0.95, .seed = i};
    request.processors = {allowed({2, 5, 9})};
    if (i % 3 == 1)
      request.processors.push_back({.name = "penalties", .integers = {}, .numbers = {0.5, 0.1, 1}});
    if (i % 4 == 2) request.stop_ids = {9};
    if (i % 2 == 0) request.top_logprobs = 2;
    if (i % 4 == 0) request.prompt_logprobs_from = 1;
    requests.push_back(std::move(request));
  }
  return requests;
}

class Drafts : public testing::TestWithParam<const char*> {};

TEST_P(Drafts, ChangeNoBit) {
  if (!test::runs_all_ways(GetParam())) GTEST_SKIP() << test::kMainRunHasIt;
  const std::vector<Request> requests = many_requests(GetParam());
  const DType weights = DType::bf16;
  const Outcome without = run(GetParam(), requests, {.drafts = kOff, .weights = weights});
  EXPECT_EQ(without.stats.drafted_tokens, 0U);
  for (const Way& way : {Way{},
                         Way{.drafts = {.tokens = 1, .shortest_run = 1}, .max_tokens = 7},
                         Way{.drafts = {.tokens = 9, .shortest_run = 1}, .ranks = 2},
                         Way{.ranks = 2, .tp = 2, .max_sequences = 2},
                         Way{.ranks = 3, .threads = 2, .max_sequences = 1}}) {
    Way with = way;
    with.weights = weights;
    const Outcome outcome = run(GetParam(), requests, with);
    EXPECT_EQ(outcome.told, without.told)
        << way.drafts.tokens << " tokens, ranks " << way.ranks << ", tp " << way.tp;
    EXPECT_GT(outcome.stats.accepted_tokens, 20U);
    EXPECT_GT(outcome.stats.drafted_tokens, outcome.stats.accepted_tokens);
  }
}

/// Pages run out and sequences start over; a context that ends within drafts.
TEST_P(Drafts, ChangeNoBitAtTheLimitsOfPagesAndContext) {
  if (!test::runs_all_ways(GetParam())) GTEST_SKIP() << test::kMainRunHasIt;
  std::vector<Request> requests = many_requests(GetParam());
  std::size_t longest = 0;
  for (const Request& request : requests) longest = std::max(longest, request.prompt.size());
  const auto context = static_cast<int>(longest + 21);
  for (Request& request : requests) request.max_new_tokens = 60;
  const Outcome without = run(GetParam(), requests, {.drafts = kOff, .max_context = context});
  const std::int64_t pages = (context + kPagePositions) / kPagePositions;
  // Of recurrent layers: room for two sequences.
  const StateLayout layout(
      state_specs(load_config(test::data_dir(GetParam())), wire_type(Way{}.weights)));
  const auto fixed = static_cast<std::int64_t>((layout.bytes_beside_pages() * 2) /
                                               layout.bytes_per_position() / kPagePositions);
  const Outcome outcome = run(GetParam(),
                              requests,
                              {.max_tokens = 16,
                               .max_sequences = 6,
                               .max_context = context,
                               .max_kv_tokens = (pages + 2 + fixed) * kPagePositions});
  EXPECT_EQ(outcome.told, without.told);
  EXPECT_GT(outcome.stats.accepted_tokens, 20U);
}

DraftOptions by_layer(int tokens) { return {.tokens = tokens, .source = DraftSource::layer}; }

TEST_P(Drafts, ChangeNoBitWhileExpertsMove) {
  if (!test::runs_all_ways(GetParam())) GTEST_SKIP() << test::kMainRunHasIt;
  const std::vector<Request> requests = many_requests(GetParam());
  const Outcome without = run(GetParam(), requests, {.drafts = kOff});
  const Outcome outcome = run(
      GetParam(),
      requests,
      {.ranks = 2,
       .redundant = 2,
       .balance = {.record = true,
                   .window = 3,
                   .rebalance = {.enabled = true, .every = 3, .least_gain = 0, .canary = true}}});
  EXPECT_EQ(outcome.told, without.told);
}

INSTANTIATE_TEST_SUITE_P(Models,
                         Drafts,
                         testing::Values("deepseek_v3",
                                         "deepseek_v32_sparse",
                                         "gpt_oss_mxfp4",
                                         "lfm2_moe",
                                         "llama4_text",
                                         "mixtral_window_bf16",
                                         "qwen3_bf16",
                                         "qwen3_next"),
                         [](const auto& model) { return std::string(model.param); });

/// Those of a layer that predicts further tokens, which here foresees nearly nothing.
class LayerDrafts : public testing::TestWithParam<const char*> {};

TEST_P(LayerDrafts, ChangeNoBit) {
  const std::vector<Request> requests = many_requests(GetParam());
  const DType weights = DType::bf16;
  const Outcome without = run(GetParam(), requests, {.drafts = kOff, .weights = weights});
  for (const Way& way :
       {Way{.drafts = by_layer(1)},
        Way{.drafts = by_layer(3), .max_tokens = 7},
        Way{.drafts = by_layer(2), .ranks = 2},
        Way{.drafts = by_layer(5), .ranks = 4, .max_sequences = 2},
        Way{.drafts = by_layer(2), .ranks = 2, .tp = 2, .max_sequences = 2},
        Way{.drafts = by_layer(3), .ranks = 3, .threads = 2, .max_sequences = 1}}) {
    Way with = way;
    with.weights = weights;
    const Outcome outcome = run(GetParam(), requests, with);
    EXPECT_EQ(outcome.told, without.told)
        << way.drafts.tokens << " tokens, ranks " << way.ranks << ", tp " << way.tp;
    EXPECT_GT(outcome.stats.drafted_tokens, 50U);
  }
}

TEST_P(LayerDrafts, ChangeNoBitWhileExpertsMove) {
  const std::vector<Request> requests = many_requests(GetParam());
  const Outcome without = run(GetParam(), requests, {.drafts = kOff});
  const Outcome outcome = run(
      GetParam(),
      requests,
      {.drafts = by_layer(2),
       .ranks = 2,
       .redundant = 2,
       .balance = {.record = true,
                   .window = 3,
                   .rebalance = {.enabled = true, .every = 3, .least_gain = 0, .canary = true}}});
  EXPECT_EQ(outcome.told, without.told);
  EXPECT_GT(outcome.stats.drafted_tokens, 50U);
}

INSTANTIATE_TEST_SUITE_P(Models,
                         LayerDrafts,
                         testing::ValuesIn(test::kDraftModels),
                         [](const auto& model) { return std::string(model.param); });

/// Of a checkpoint whose layer drafts what its model gives.
class SureDrafts : public testing::TestWithParam<const char*> {
 protected:
  SureDrafts() { test::write_sure_drafts(GetParam(), dir_.path() / "model"); }

  std::string model() const { return (dir_.path() / "model").string(); }

  static Request greedy(Ids prompt, int tokens) {
    return {.prompt = std::move(prompt), .max_new_tokens = tokens, .sampling = {}, .stop_ids = {}};
  }

 private:
  const test::TempDir dir_;
};

TEST_P(SureDrafts, SaveTheirSteps) {
  for (const int ranks : {1, 2, 4}) {
    for (const int draft : {1, 3}) {
      for (const int tokens : {1, 2, 5, 8, 20, 41}) {
        const Request request = greedy({7, 8, 9}, tokens);
        const Outcome without = run(model(), {request}, {.drafts = kOff, .ranks = ranks});
        const Outcome outcome =
            run(model(), {request}, {.drafts = by_layer(draft), .ranks = ranks});
        EXPECT_EQ(outcome.told, without.told);
        const int behind_first = (tokens - 1 + draft) / (draft + 1);
        EXPECT_EQ(outcome.stats.steps, static_cast<std::uint64_t>(1 + behind_first))
            << tokens << " tokens, drafts of " << draft << ", " << ranks << " ranks";
        EXPECT_EQ(without.stats.steps, static_cast<std::uint64_t>(tokens));
        EXPECT_EQ(outcome.stats.accepted_tokens, outcome.stats.drafted_tokens);
      }
    }
  }
}

/// Sequences of every length enter and leave; the later ones find what the earlier ones have kept.
TEST_P(SureDrafts, GoOnBehindKeptPages) {
  std::vector<Request> requests;
  for (int i = 0; i < 9; ++i) {
    Ids prompt(40, 5);
    prompt.resize(static_cast<std::size_t>(30 + i), i);
    requests.push_back(greedy(std::move(prompt), 6 + 5 * i));
  }
  for (const int ranks : {1, 2}) {
    const Way way{.drafts = by_layer(3), .ranks = ranks, .max_sequences = 1};
    Way plain = way;
    plain.drafts = kOff;
    const Outcome without = run(model(), requests, plain);
    const Outcome outcome = run(model(), requests, way);
    EXPECT_EQ(outcome.told, without.told);
    // Recurrent layers beside a window keep nothing.
    const bool recurrent = load_config(model()).delta.key_heads > 0;
    EXPECT_EQ(outcome.stats.prefix_reused_tokens > 16, !recurrent);
    EXPECT_EQ(outcome.stats.accepted_tokens, outcome.stats.drafted_tokens);
    EXPECT_LT(outcome.stats.steps, without.stats.steps / 2);
  }
}

/// Pages run out and sequences start over; a context that ends within drafts.
TEST_P(SureDrafts, ComeTrueAtTheLimitsOfPagesAndContext) {
  constexpr int kContext = 70;
  std::vector<Request> requests;
  for (int i = 0; i < 9; ++i)
    requests.push_back(greedy(Ids(static_cast<std::size_t>(3 + 5 * i), 4 + i), 60));
  const Outcome without = run(model(), requests, {.drafts = kOff, .max_context = kContext});
  // Of recurrent layers: room for two sequences.
  const StateLayout layout(
      state_specs(with_draft_layer(load_config(model()), "it"), wire_type(Way{}.weights)));
  const auto fixed = static_cast<std::int64_t>((layout.bytes_beside_pages() * 2) /
                                               layout.bytes_per_position() / kPagePositions);
  const Outcome outcome = run(model(),
                              requests,
                              {.drafts = by_layer(4),
                               .max_tokens = 16,
                               .max_sequences = 6,
                               .max_context = kContext,
                               .max_kv_tokens = (7 + fixed) * kPagePositions});
  EXPECT_EQ(outcome.told, without.told);
  EXPECT_GT(outcome.stats.evictions, 0U);
  EXPECT_GT(outcome.stats.accepted_tokens, 100U);
}

INSTANTIATE_TEST_SUITE_P(Models,
                         SureDrafts,
                         testing::ValuesIn(test::kDraftModels),
                         [](const auto& model) { return std::string(model.param); });

constexpr const char* kModel = "qwen3_bf16";

/// A request that gives token 5 again and again, whatever the model says.
Request always_five(Ids prompt, int tokens) {
  return {.prompt = std::move(prompt),
          .max_new_tokens = tokens,
          .sampling = {},
          .stop_ids = {},
          .processors = {allowed({5})}};
}

/// Runs it with and without drafts and returns the stats with them.
EngineStats same_with_drafts(const Request& request, const Ids& expected) {
  const Outcome without = run(kModel, {request}, {.drafts = kOff});
  const Outcome outcome = run(kModel, {request}, {.drafts = {.tokens = 4, .shortest_run = 1}});
  EXPECT_EQ(without.told[0].tokens, expected);
  EXPECT_EQ(outcome.told, without.told);
  EXPECT_EQ(outcome.stats.prefill_tokens, without.stats.prefill_tokens);
  EXPECT_EQ(outcome.stats.decode_tokens, without.stats.decode_tokens);
  return outcome.stats;
}

TEST(Draft, OneThatIsAllRightSavesItsSteps) {
  for (int tokens = 1; tokens < 13; ++tokens) {
    const EngineStats stats =
        same_with_drafts(always_five(Ids(6, 5), tokens), Ids(static_cast<std::size_t>(tokens), 5));
    EXPECT_EQ(stats.accepted_tokens, stats.drafted_tokens) << "none goes beyond the end";
    EXPECT_EQ(stats.steps, 1U + static_cast<std::uint64_t>(tokens + 3) / 5) << tokens;
  }
}

TEST(Draft, OneThatIsAllWrongCostsNothingButItsRows) {
  const EngineStats stats = same_with_drafts(always_five({5, 6, 5, 6, 5, 6}, 3), {5, 5, 5});
  EXPECT_EQ(stats.drafted_tokens, 1U);
  EXPECT_EQ(stats.accepted_tokens, 0U);
  EXPECT_EQ(stats.steps, 3U);
}

TEST(Draft, AStopIdInTheMiddleOfOneEndsTheRequest) {
  Request request = always_five({5, 5, 5, 7, 5, 5, 5, 7}, 30);
  request.stop_ids = {7};
  request.processors = {allowed({5, 7}),
                        {.name = "min_tokens", .integers = {3}, .numbers = {}},
                        {.name = "logit_bias", .integers = {7}, .numbers = {100}}};
  const EngineStats stats = same_with_drafts(request, {5, 5, 5, 7});
  EXPECT_EQ(stats.steps, 2U);
  EXPECT_EQ(stats.drafted_tokens, 4U) << "one behind the stop id";
  EXPECT_EQ(stats.accepted_tokens, 2U) << "the stop id's own row gives nothing";
}

/// Where ranks sum first, what beside a row is in the step decides which replica it goes to.
TEST(Draft, IsRefusedWhereItCouldChangeBits) {
  const Request request = always_five({5, 5}, 3);
  const Way sums{.ranks = 2, .backend = MoeA2ABackend::none};
  EXPECT_EQ(run(kModel, {request}, sums).told[0].tokens, (Ids{5, 5, 5}));
  Way replicas = sums;
  replicas.redundant = 2;
  EXPECT_THROW(run(kModel, {request}, replicas), ConfigError);
}

}  // namespace
}  // namespace ferry
