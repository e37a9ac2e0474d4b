#include "ferry/engine/engine.h"

#include <gtest/gtest.h>

#include <cstdio>

#include "ferry/core/error.h"
#include "ferry/runtime/model.h"
#include "support/golden_model.h"
#include "support/long_tests.h"

namespace ferry {
namespace {

struct Outcome {
  std::vector<std::int32_t> tokens;
  std::string logits_sha256;

  bool operator==(const Outcome&) const = default;
};

struct EngineRun {
  std::string transport = "inproc";
  int ranks = 1;
  int tp = 1;
  int threads = 1;
  int max_tokens = 64;
  int max_sequences = 4;
  int max_context = 0;
  DType weights = DType::f32;
  MoeA2ABackend backend = MoeA2ABackend::pplx;
  int redundant = 0;
  ReplicaRule replica_rule = ReplicaRule::hash;
  BalanceOptions balance = {};
  int* switches = nullptr;  ///< if given: layers that rebalancing switched
};

void PrintTo(const Outcome& outcome, std::ostream* out) {
  *out << testing::PrintToString(outcome.tokens) << " " << outcome.logits_sha256;
}

/// Runs all requests in one engine. Rank 0 may be another process, so its events come back through
/// a file.
std::vector<Outcome> generate(const std::string& model,
                              const std::vector<Request>& requests,
                              const EngineRun& run) {
  const Model opened = Model::open({.model = test::data_dir(model),
                                    .launch = {.transport = run.transport,
                                               .ranks = run.ranks,
                                               .start_timeout = std::chrono::seconds(60)},
                                    .threads = run.threads,
                                    .weights = weight_type(run.weights),
                                    .decoder = {.tp = run.tp,
                                                .max_tokens = run.max_tokens,
                                                .backend = run.backend,
                                                .replica_rule = run.replica_rule},
                                    .engine = {.max_sequences_per_rank = run.max_sequences,
                                               .max_tokens_per_step = run.max_tokens,
                                               .max_context = run.max_context,
                                               .hash_logits = true,
                                               .balance = run.balance},
                                    .expert_location = {.redundant = run.redundant}});
  std::FILE* events = std::tmpfile();
  const int status = opened.run([&](Decoder& decoder, Transport& transport) {
    Engine engine = opened.engine_on(decoder, transport);
    if (transport.rank() == 0)
      for (const Request& request : requests) static_cast<void>(engine.submit(request));
    engine.run([&](const TokenEvent& event) {
      std::fprintf(events,
                   "%d %d %d %s\n",
                   static_cast<int>(event.request),
                   event.token,
                   event.last ? 1 : 0,
                   event.last ? event.logits_sha256.c_str() : "-");
    });
    if (engine.balancer() && engine.balancer()->rebalance_stats()) {
      const RebalanceStats stats = *engine.balancer()->rebalance_stats();
      EXPECT_EQ(stats.plans_failed, 0U) << stats.last_failure;
      EXPECT_TRUE(run.transport != "inproc" || stats.bytes_moved == 0)
          << stats.bytes_moved << " bytes copied between threads";
      std::fprintf(events, "-1 %d 0 -\n", static_cast<int>(stats.layers_switched));
    }
    std::fflush(events);
    return 0;
  });
  EXPECT_EQ(status, 0);
  std::rewind(events);
  std::vector<Outcome> outcomes(requests.size());
  int request = 0, token = 0, last = 0;
  char hash[65] = {};
  while (std::fscanf(events, "%d %d %d %64s", &request, &token, &last, hash) == 4) {
    if (request < 0) {
      if (run.switches) *run.switches = token;
      continue;
    }
    Outcome& outcome = outcomes.at(static_cast<std::size_t>(request));
    EXPECT_TRUE(outcome.logits_sha256.empty()) << "a token behind the last one";
    outcome.tokens.push_back(token);
    if (last) outcome.logits_sha256 = hash;
  }
  std::fclose(events);
  return outcomes;
}

std::vector<Request> golden_requests(const std::string& model) {
  std::vector<Request> requests;
  for (const test::GoldenPrompt& p : test::golden_prompts(model)) {
    requests.push_back({.prompt = p.prompt,
                        .max_new_tokens = static_cast<int>(p.greedy.size()),
                        .sampling = {},
                        .stop_ids = {}});
  }
  return requests;
}

/// Sampled requests besides the greedy ones, some with logits processors, so that each rank has
/// several and places run out.
std::vector<Request> many_requests(const std::string& model) {
  std::vector<Request> requests = golden_requests(model);
  const std::size_t golden = requests.size();
  for (std::size_t i = 0; i < 9; ++i) {
    Request request = requests[i % golden];
    request.max_new_tokens = 3 + static_cast<int>(i);
    request.sampling = {.temperature = 0.8, .top_k = 50, .top_p = 0.95, .seed = i};
    if (i % 3 == 1) {
      request.processors = {{.name = "logit_bias", .integers = {3, 17}, .numbers = {4, -100}},
                            {.name = "penalties", .integers = {}, .numbers = {1, 0.5, 1.25}}};
    }
    requests.push_back(request);
  }
  return requests;
}

class GoldenModel : public testing::TestWithParam<const char*> {};

TEST_P(GoldenModel, GreedyContinuationIsThatOfTransformers) {
  const std::vector<test::GoldenPrompt> prompts = test::golden_prompts(GetParam());
  for (const int ranks : {1, 2, 3, 4}) {
    if (slow_run() && ranks % 2 == 0) continue;
    const auto outcomes = generate(GetParam(), golden_requests(GetParam()), {.ranks = ranks});
    for (std::size_t i = 0; i < prompts.size(); ++i)
      EXPECT_EQ(outcomes[i].tokens, prompts[i].greedy) << "prompt " << i << ", ranks " << ranks;
  }
}

TEST_P(GoldenModel, LogitsAreTheSameBitsHoweverARequestIsRun) {
  if (!test::runs_all_ways(GetParam())) GTEST_SKIP() << test::kMainRunHasIt;
  for (const DType weights : {DType::f32, DType::bf16}) {
    const std::vector<Request> requests = many_requests(GetParam());
    std::vector<Outcome> alone;
    for (const Request& request : requests)
      alone.push_back(generate(GetParam(), {request}, {.weights = weights}).at(0));
    for (const std::string transport : {"inproc", "shm"}) {
      for (const int ranks : {2, 3, 4}) {
        const EngineRun run{.transport = transport,
                            .ranks = ranks,
                            .threads = 1 + ranks % 2,
                            .max_tokens = ranks == 3 ? 7 : 64,
                            .weights = weights};
        EXPECT_EQ(generate(GetParam(), requests, run), alone)
            << transport << ", ranks " << ranks << ", " << dtype_name(weights);
      }
    }
  }
}

/// Heads need not divide by the ranks of a group, and there may be more ranks than key-value heads.
TEST_P(GoldenModel, LogitsAreTheSameBitsForAnySizeOfGroups) {
  if (!test::runs_all_ways(GetParam())) GTEST_SKIP() << test::kMainRunHasIt;
  const std::vector<Request> requests = many_requests(GetParam());
  for (const DType weights : {DType::f32, DType::bf16}) {
    const std::vector<Outcome> expected = generate(GetParam(), requests, {.weights = weights});
    for (const auto& [ranks, tp] : {std::pair{2, 2}, {3, 3}, {4, 2}, {4, 4}, {6, 3}}) {
      const EngineRun run{.transport = ranks == 4 ? "shm" : "inproc",
                          .ranks = ranks,
                          .tp = tp,
                          .threads = 1 + tp % 2,
                          .max_tokens = tp == 3 ? 7 : 64,
                          .weights = weights};
      EXPECT_EQ(generate(GetParam(), requests, run), expected)
          << "ranks " << ranks << ", tp " << tp << ", " << dtype_name(weights);
    }
  }
}

/// A plan every few steps, so few bytes a step that newer plans interrupt older ones.
BalanceOptions restless(Policy policy, std::size_t step_bytes) {
  return {.record = true,
          .window = 3,
          .rebalance = {.enabled = true,
                        .every = 3,
                        .policy = policy,
                        .least_gain = 0,
                        .step_bytes = step_bytes,
                        .canary = true}};
}

TEST_P(GoldenModel, RebalancingChangesNoBit) {
  if (!test::runs_all_ways(GetParam())) GTEST_SKIP() << test::kMainRunHasIt;
  const std::vector<Request> requests = many_requests(GetParam());
  int switches = 0;
  for (const DType weights : {DType::f32, DType::bf16}) {
    const auto still = generate(GetParam(), requests, {.ranks = 2, .weights = weights});
    for (const std::string transport : {"inproc", "shm"}) {
      for (const int ranks : {2, 3, 4}) {
        int switched = 0;
        const EngineRun run{.transport = transport,
                            .ranks = ranks,
                            .tp = ranks == 4 ? 2 : 1,
                            .weights = weights,
                            .redundant = ranks == 3 ? 0 : ranks,
                            .balance = restless(ranks == 2 ? Policy::deepseek : Policy::greedy,
                                                ranks == 4 ? 1000 : 1 << 20),
                            .switches = &switched};
        EXPECT_EQ(generate(GetParam(), requests, run), still)
            << transport << ", ranks " << ranks << ", " << dtype_name(weights);
        switches += switched;
      }
    }
  }
  EXPECT_GT(switches, 12) << "about one a run is the least";
}

class ReplicaRules : public testing::TestWithParam<ReplicaRule> {};

/// While placements with replicas come and go, for several numbers of ranks, groups and backends.
TEST_P(ReplicaRules, ChangeNoBit) {
  for (const std::string model : {"qwen3_bf16", "deepseek_v3"}) {
    const std::vector<Request> requests = many_requests(model);
    const auto still = generate(model, requests, {.weights = DType::bf16});
    for (const auto& [ranks, tp, policy, backend] :
         {std::tuple{2, 1, Policy::incremental, MoeA2ABackend::pplx},
          {3, 1, Policy::greedy, MoeA2ABackend::alltoallv},
          {4, 1, Policy::risk, MoeA2ABackend::deepep},
          {4, 2, Policy::greedy, MoeA2ABackend::pplx}}) {
      int switched = 0;
      const EngineRun run{.transport = ranks == 3 ? "shm" : "inproc",
                          .ranks = ranks,
                          .tp = tp,
                          .weights = DType::bf16,
                          .backend = backend,
                          .redundant = 2 * ranks,
                          .replica_rule = GetParam(),
                          .balance = restless(policy, 1 << 16),
                          .switches = &switched};
      EXPECT_EQ(generate(model, requests, run), still)
          << model << ", ranks " << ranks << ", tp " << tp;
      EXPECT_GT(switched, 0) << model << ", ranks " << ranks << ", tp " << tp;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Rules,
    ReplicaRules,
    testing::Values(ReplicaRule::hash, ReplicaRule::nearest, ReplicaRule::weighted),
    [](const auto& rule) { return std::string(replica_rule_name(rule.param)); });

INSTANTIATE_TEST_SUITE_P(Models,
                         GoldenModel,
                         testing::ValuesIn(test::kGoldenModels),
                         [](const auto& model) { return std::string(model.param); });

constexpr const char* kModel = "qwen2_untied";

TEST(Engine, StopIdEndsARequestAndIsKept) {
  Request request = golden_requests(kModel).at(0);
  const std::vector<std::int32_t> greedy = test::golden_prompts(kModel).at(0).greedy;
  request.stop_ids = {greedy[5]};
  const auto first = std::find(greedy.begin(), greedy.end(), greedy[5]);
  EXPECT_EQ(generate(kModel, {request}, {.ranks = 2}).at(0).tokens,
            std::vector<std::int32_t>(greedy.begin(), first + 1));
}

TEST(Engine, FullContextEndsARequest) {
  Request request = golden_requests(kModel).at(1);
  const std::size_t prompt = request.prompt.size();
  const auto tokens = [&](std::size_t context) {
    return generate(kModel, {request}, {.max_context = static_cast<int>(context)})
        .at(0)
        .tokens.size();
  };
  EXPECT_EQ(tokens(prompt), 1U);
  EXPECT_EQ(tokens(prompt + 4), 5U);
}

TEST(Engine, RunsAgainAfterItRanDry) {
  const Model model = Model::open({.model = test::data_dir(kModel),
                                   .launch = {.transport = "inproc", .ranks = 2},
                                   .decoder = {.max_tokens = 16},
                                   .engine = {.max_tokens_per_step = 16}});
  const std::vector<test::GoldenPrompt> prompts = test::golden_prompts(kModel);
  model.run([&](Decoder& decoder, Transport& transport) {
    Engine engine = model.engine_on(decoder, transport);
    engine.run([](const TokenEvent&) { ADD_FAILURE() << "nothing was asked for"; });
    for (const test::GoldenPrompt& p : prompts) {
      std::vector<std::int32_t> tokens;
      if (transport.rank() == 0) {
        static_cast<void>(engine.submit(
            {.prompt = p.prompt, .max_new_tokens = 8, .sampling = {}, .stop_ids = {}}));
      }
      engine.run([&](const TokenEvent& event) { tokens.push_back(event.token); });
      if (transport.rank() == 0) {
        EXPECT_EQ(tokens, std::vector(p.greedy.begin(), p.greedy.begin() + 8));
      }
    }
    if (transport.rank() == 0) {
      EXPECT_EQ(engine.stats().decode_tokens, 7 * prompts.size());
      EXPECT_EQ(engine.stats().prefill_tokens, 1U + 17U + 40U);
      // What both ranks counted of both: a row for each expert of each token that ran.
      const std::vector<SourceStats> sources = engine.stats().sources;
      EXPECT_EQ(sources.size(), 4U);
      std::uint64_t rows = 0, waited_ns = 0;
      for (const SourceStats& source : sources) {
        rows += source.rows_received;
        waited_ns += source.wait_ns();
      }
      EXPECT_EQ(rows,
                (1 + 17 + 40 + 7 * prompts.size()) *
                    static_cast<std::uint64_t>(decoder.config().moe.topk) *
                    static_cast<std::uint64_t>(decoder.config().sparse_layers()));
      EXPECT_GT(waited_ns, 0U) << "which of the two comes later is chance, that one does is not";
    }
    return 0;
  });
}

TEST(Engine, RefusesContextsThatTheModelHasNot) {
  ModelConfig config;
  config.max_positions = 512;
  EXPECT_EQ(resolve_context(config, 0), 512);
  EXPECT_EQ(resolve_context(config, 10), 10);
  EXPECT_THROW(resolve_context(config, 513), ConfigError);
  EXPECT_THROW(resolve_context(config, -1), ConfigError);
}

}  // namespace
}  // namespace ferry
