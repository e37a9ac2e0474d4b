// A rank dies while requests run, at one put after the other: what callers of rank 0 hear.
#include "ferry/engine/survivors.h"

#include <gtest/gtest.h>

#include <memory>
#include <numeric>

#include "ferry/engine/engine.h"
#include "support/golden_model.h"
#include "support/ranks.h"

namespace ferry {
namespace {

constexpr const char* kModel = "qwen3_bf16";
constexpr int kRanks = 3;
constexpr Rank kVictim = 1;
constexpr int kMaxTokens = 16;

using Tokens = std::vector<std::vector<std::int32_t>>;  // of each request

/// More than run at once, sampled, some of them with prompts that take several steps.
std::vector<Request> requests() {
  std::vector<Request> all;
  const std::vector<test::GoldenPrompt> prompts = test::golden_prompts(kModel);
  for (std::size_t i = 0; i < 10; ++i) {
    all.push_back({.prompt = prompts[i % prompts.size()].prompt,
                   .max_new_tokens = 12 + static_cast<int>(i),
                   .sampling = {.temperature = 0.8, .top_p = 0.95, .seed = i},
                   .stop_ids = {}});
  }
  return all;
}

/// What every rank has before it knows of the others. Made before processes are forked.
struct Model {
  Checkpoint checkpoint = Checkpoint::open(test::data_dir(kModel));
  std::shared_ptr<const DenseWeights> dense = load_dense();

  std::shared_ptr<const DenseWeights> load_dense() const {
    ThreadPool loader(1);
    return std::make_shared<DenseWeights>(
        load_dense_weights(checkpoint, {WeightType::bf16}, loader, /*progress=*/{}));
  }
};

struct Group {
  MoeA2ABackend backend = MoeA2ABackend::mooncake;
  int redundant = 0;
  bool overlap = false;
};

/// Runs all requests. `ready`: when this rank's engine has been made.
Tokens run_engine(const Model& model,
                  const Group& group,
                  Transport& transport,
                  const std::function<void()>& ready,
                  EngineStats& stats) {
  ThreadPool pool(1);
  const ModelConfig& config = model.checkpoint.config();
  const ExpertPlacement placement = ExpertPlacement::identity(
      config.layers, config.moe.experts, transport.size(), group.redundant);
  Decoder decoder(
      config,
      model.dense,
      load_expert_weights(
          model.checkpoint, {WeightType::bf16}, placement, transport.rank(), pool, {}),
      {.max_tokens = kMaxTokens, .backend = group.backend, .two_batch_overlap = group.overlap},
      transport,
      pool);
  Engine engine(
      {.max_sequences_per_rank = 2, .max_tokens_per_step = kMaxTokens, .balance = {.record = true}},
      decoder,
      transport);
  ready();
  if (transport.rank() == 0)
    for (const Request& request : requests()) static_cast<void>(engine.submit(request));
  Tokens tokens(requests().size());
  engine.run([&](const TokenEvent& event) { tokens.at(event.request).push_back(event.token); });
  stats = engine.stats();
  return tokens;
}

Tokens run_alone(const Model& model) {
  Tokens tokens;
  on_ranks({}, [&](Transport& transport) {
    EngineStats stats;
    tokens = run_engine(
        model, {.backend = MoeA2ABackend::pplx}, transport, [] {}, stats);
  });
  return tokens;
}

struct Case {
  std::string transport;
  bool overlap = false;

  friend void PrintTo(const Case& c, std::ostream* out) {
    *out << c.transport << (c.overlap ? "Overlap" : "");
  }
};

class SurvivorsOfAnyDeath : public testing::TestWithParam<Case> {};

TEST_P(SurvivorsOfAnyDeath, GiveTheTokensThatAllWouldHaveGiven) {
  RankKind kind{.transport = GetParam().transport};
  if (kind.transport == "fabric") kind.provider = "tcp";
  const Model model;
  const Tokens expected = run_alone(model);
  const Group group{.redundant = model.checkpoint.config().moe.experts,
                    .overlap = GetParam().overlap};
  // A step has some twenty puts of a rank: the numbers come by all of them.
  for (int put = 0; put < 13 * 12; put += 13) {
    const RanksOptions on{
        .kind = kind,
        .ranks = kRanks,
        .faults = Faults{.ends_at_put = put, .ends_by_signal = kind.processes()},
        .faulty_rank = kVictim,
        .killed_rank = kind.processes() ? kVictim : Rank{-1},
    };
    on_ranks(on, [&](Transport& transport) {
      const auto region = transport.allocate_region(0, 1);
      const auto ready = [&] { others_are_ready(transport, *region, kVictim, 0); };
      EngineStats stats;
      try {
        const Tokens tokens = run_engine(model, group, transport, ready, stats);
        ASSERT_NE(transport.rank(), kVictim) << "it lived on";
        if (transport.rank() != 0) return;
        EXPECT_EQ(tokens, expected);
        EXPECT_EQ(stats.ranks_lost, 1U);
      } catch (const RankEnded& end) {
        transport.abort(end.what());
      }
    });
    ASSERT_FALSE(HasFailure()) << "put " << put;
  }
}

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const TransportInfo& info : list_transports()) {
    if (!info.available || info.name == "mpi") continue;
    all.push_back({std::string(info.name)});
    if (info.name != "fabric") all.push_back({std::string(info.name), /*overlap=*/true});
  }
  return all;
}

INSTANTIATE_TEST_SUITE_P(All,
                         SurvivorsOfAnyDeath,
                         testing::ValuesIn(cases()),
                         [](const auto& test) { return testing::PrintToString(test.param); });

/// Without replicas, and without rank 0, nobody can go on.
TEST(Survivors, EndWithAnErrorWhereTheyCannotGoOn) {
  const Model model;
  const int experts = model.checkpoint.config().moe.experts;
  for (const auto& [victim, redundant] : {std::pair{kVictim, 0}, {0, experts}}) {
    const RanksOptions on{.ranks = kRanks,
                          .faults = Faults{.ends_at_put = 50, .ends_by_signal = false},
                          .faulty_rank = victim};
    on_ranks(on, [&, victim = victim, redundant = redundant](Transport& transport) {
      const auto region = transport.allocate_region(0, 1);
      const auto ready = [&] { others_are_ready(transport, *region, victim, 0); };
      EngineStats stats;
      try {
        run_engine(model, {.redundant = redundant}, transport, ready, stats);
        ADD_FAILURE() << "rank " << transport.rank() << " came to an end";
      } catch (const RankEnded& end) {
        transport.abort(end.what());
      } catch (const TransportError& e) {
        transport.abort(e.what());
      }
    });
  }
}

}  // namespace
}  // namespace ferry
