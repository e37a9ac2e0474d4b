// A rank dies while requests run, at one put after the other: what callers of rank 0 hear.
#include "ferry/engine/survivors.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <string>

#include "ferry/engine/engine.h"
#include "ferry/runtime/model.h"
#include "support/golden_model.h"
#include "support/ranks.h"

namespace ferry {
namespace {

constexpr const char* kModel = "qwen3_bf16";
constexpr int kExperts = 6;  // of the model
constexpr int kRanks = 3;
constexpr Rank kVictim = 1;
constexpr int kMaxTokens = 16;

using Tokens = std::vector<std::vector<std::int32_t>>;  // of each request

/// More than run at once, sampled, some of them with prompts that take several steps, and with
/// penalties, whose state has to come back with the tokens given so far.
std::vector<Request> requests() {
  std::vector<Request> all;
  const std::vector<test::GoldenPrompt> prompts = test::golden_prompts(kModel);
  for (std::size_t i = 0; i < 10; ++i) {
    all.push_back({.prompt = prompts[i % prompts.size()].prompt,
                   .max_new_tokens = 12 + static_cast<int>(i),
                   .sampling = {.temperature = 0.8, .top_p = 0.95, .seed = i},
                   .stop_ids = {}});
    if (i % 2 == 0) {
      all.back().processors = {
          {.name = "penalties", .integers = {}, .numbers = {1.5F, 0.5F, 1.2F}}};
    } else {
      // So few that drafts find much.
      all.back().processors = {{.name = "allowed_tokens", .integers = {2, 5, 9}, .numbers = {}}};
    }
  }
  return all;
}

struct Group {
  MoeA2ABackend backend = MoeA2ABackend::mooncake;
  int redundant = 0;
  bool overlap = false;
  RebalanceOptions rebalance = {};
  DraftOptions drafts = {};
  const char* model = kModel;
};

/// What every rank has before it knows of the others. Made before processes are forked.
struct Opened {
  Opened(const Group& group, int ranks)
      : model(Model::open(
            {.model = test::data_dir(group.model),
             .launch = {.ranks = ranks},
             .weights = WeightType::bf16,
             .decoder = {.max_tokens = kMaxTokens,
                         .backend = group.backend,
                         .two_batch_overlap = group.overlap},
             .engine = {.max_sequences_per_rank = 2,
                        .max_tokens_per_step = kMaxTokens,
                        .drafts = group.drafts,
                        .balance = {.record = true, .window = 3, .rebalance = group.rebalance}},
             .expert_location = {.redundant = group.redundant}})) {}

  Model model;
  std::shared_ptr<const DenseWeights> dense = model.load_dense();
};

/// What a rank's run ended with.
enum class End { all_requests, fault, error };

struct Outcome {
  End end = End::all_requests;
  std::string error = {};
  Tokens tokens = Tokens(requests().size());  // also those before an error
  EngineStats stats = {};
};

/// Runs all requests. `ready`: when this rank's engine has been made.
void run_engine(const Opened& opened,
                Transport& transport,
                const std::function<void()>& ready,
                Outcome& outcome) {
  ThreadPool pool(1);
  Decoder decoder = opened.model.decoder_on(transport, pool, opened.dense);
  Engine engine = opened.model.engine_on(decoder, transport);
  ready();
  if (transport.rank() == 0)
    for (const Request& request : requests()) static_cast<void>(engine.submit(request));
  engine.run(
      [&](const TokenEvent& event) { outcome.tokens.at(event.request).push_back(event.token); });
  outcome.stats = engine.stats();
}

Tokens run_alone(const char* model = kModel) {
  const Opened opened({.backend = MoeA2ABackend::pplx, .model = model}, 1);
  Outcome outcome;
  on_ranks({}, [&](Transport& transport) {
    run_engine(
        opened, transport, [] {}, outcome);
  });
  return outcome.tokens;
}

/// Runs all requests on ranks of which one ends as `on` says, once all have an engine, and calls
/// `check` on every rank that still can.
void lose_a_rank(const RanksOptions& on,
                 const Opened& opened,
                 const std::function<void(Rank, const Outcome&)>& check) {
  on_ranks(on, [&](Transport& transport) {
    const auto region = transport.allocate_region(0, 1);
    const auto ready = [&] { others_are_ready(transport, *region, on.faulty_rank, 0); };
    Outcome outcome;
    const auto ended = [&](End end, const std::exception& e) {
      outcome.end = end;
      outcome.error = e.what();
      transport.abort(e.what());
    };
    try {
      run_engine(opened, transport, ready, outcome);
    } catch (const RankEnded& e) {
      ended(End::fault, e);
    } catch (const TransportError& e) {
      ended(End::error, e);
    }
    check(transport.rank(), outcome);
  });
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
  const Tokens expected = run_alone();
  const Opened opened({.redundant = kExperts, .overlap = GetParam().overlap}, kRanks);
  // A step has some twenty puts of a rank: the numbers come by all of them.
  for (int put = 0; put < 13 * 12; put += 13) {
    const RanksOptions on{
        .kind = kind,
        .ranks = kRanks,
        .faults = Faults{.ends_at_put = put, .ends_by_signal = kind.processes()},
        .faulty_rank = kVictim,
        .killed_rank = kind.processes() ? kVictim : Rank{-1},
    };
    lose_a_rank(on, opened, [&](Rank rank, const Outcome& outcome) {
      ASSERT_EQ(outcome.end, rank == kVictim ? End::fault : End::all_requests) << outcome.error;
      if (rank != 0) return;
      EXPECT_EQ(outcome.tokens, expected);
      EXPECT_EQ(outcome.stats.ranks_lost, 1U);
    });
    ASSERT_FALSE(HasFailure()) << "put " << put;
  }
}

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const std::string_view transport : built_transports()) {
    if (transport == "mpi") continue;
    all.push_back({std::string(transport)});
    if (transport != "fabric") all.push_back({std::string(transport), /*overlap=*/true});
  }
  return all;
}

INSTANTIATE_TEST_SUITE_P(All,
                         SurvivorsOfAnyDeath,
                         testing::ValuesIn(cases()),
                         [](const auto& test) { return testing::PrintToString(test.param); });

/// A rank dies at one put after the other; `drafts` says whether a run had such as were meant.
void expect_tokens_with_drafts(const Opened& opened,
                               const Tokens& expected,
                               int puts,
                               int apart,
                               bool (*drafts)(const EngineStats&)) {
  for (int put = 20; put < 20 + apart * puts; put += apart) {
    const RanksOptions on{.ranks = kRanks,
                          .faults = Faults{.ends_at_put = put, .ends_by_signal = false},
                          .faulty_rank = kVictim};
    lose_a_rank(on, opened, [&](Rank rank, const Outcome& outcome) {
      if (rank != 0) return;
      EXPECT_EQ(outcome.tokens, expected);
      EXPECT_EQ(outcome.stats.ranks_lost, 1U);
      EXPECT_TRUE(drafts(outcome.stats));
    });
    ASSERT_FALSE(testing::Test::HasFailure()) << "put " << put;
  }
}

/// A step that is lost runs again with the same drafts.
TEST(Survivors, GiveTheSameTokensWithDrafts) {
  const Opened opened({.redundant = kExperts, .drafts = {.tokens = 4, .shortest_run = 1}}, kRanks);
  expect_tokens_with_drafts(opened, run_alone(), 6, 23, [](const EngineStats& stats) {
    return stats.accepted_tokens > 0;
  });
}

/// Also where a rank dies while the others draft: a pass of the layer that drafts has its exchange
/// as every layer has, and what a draft lost is no token.
TEST(Survivors, GiveTheSameTokensWithDraftsByTheModel) {
  constexpr const char* kDrafting = "deepseek_v3_mtp";
  const Opened opened({.redundant = kExperts,
                       .drafts = {.tokens = 3, .source = DraftSource::layer},
                       .model = kDrafting},
                      kRanks);
  expect_tokens_with_drafts(opened, run_alone(kDrafting), 12, 13, [](const EngineStats& stats) {
    return stats.drafted_tokens > 0;
  });
}

/// A plan may have left an expert without a second replica, so that they may have to end. What
/// callers have heard until then is right.
TEST(Survivors, NeverGiveAWrongTokenWhereExpertsMove) {
  const Tokens expected = run_alone();
  const Opened opened(
      {.redundant = kExperts,
       .rebalance =
           {.enabled = true, .every = 3, .least_gain = 0, .step_bytes = 4096, .canary = true}},
      kRanks);
  for (int put = 40; put < 40 + 17 * 16; put += 17) {
    const RanksOptions on{.kind = {.transport = "shm"},
                          .ranks = kRanks,
                          .faults = Faults{.ends_at_put = put, .ends_by_signal = true},
                          .faulty_rank = kVictim,
                          .killed_rank = kVictim};
    lose_a_rank(on, opened, [&](Rank rank, const Outcome& outcome) {
      for (std::size_t i = 0; i < expected.size() && rank == 0; ++i) {
        const auto& heard = outcome.tokens[i];
        ASSERT_LE(heard.size(), expected[i].size());
        EXPECT_TRUE(std::equal(heard.begin(), heard.end(), expected[i].begin())) << "request " << i;
      }
    });
    ASSERT_FALSE(HasFailure()) << "put " << put;
  }
}

/// Without replicas, and without rank 0, nobody can go on.
TEST(Survivors, EndWithAnErrorWhereTheyCannotGoOn) {
  for (const auto& [victim, redundant] : {std::pair{kVictim, 0}, {0, kExperts}}) {
    const Opened opened({.redundant = redundant}, kRanks);
    const RanksOptions on{.ranks = kRanks,
                          .faults = Faults{.ends_at_put = 50, .ends_by_signal = false},
                          .faulty_rank = victim};
    lose_a_rank(on, opened, [](Rank rank, const Outcome& outcome) {
      EXPECT_NE(outcome.end, End::all_requests) << "rank " << rank;
    });
  }
}

}  // namespace
}  // namespace ferry
