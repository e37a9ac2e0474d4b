// Ranks that are killed, come back, come new and leave while an engine runs: every token is that of
// a run which nothing disturbed.
#include <fmt/core.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "ferry/core/error.h"
#include "ferry/runtime/elastic_group.h"
#include "ferry/transport/shared_store.h"
#include "support/faulty_transport.h"
#include "support/golden_model.h"

namespace ferry {
namespace {

using namespace std::chrono_literals;

constexpr const char* kElasticModel = "qwen3_bf16";
constexpr const char* kDraftingModel = "deepseek_v3_mtp";  // whose vocabulary is as large

ModelOptions elastic_options(int ranks,
                             MoeA2ABackend backend = MoeA2ABackend::pplx,
                             const char* model = kElasticModel,
                             const DraftOptions& drafts = {}) {
  return {.model = test::data_dir(model),
          .launch = {.transport = "inproc", .ranks = ranks},
          .weights = WeightType::bf16,
          .decoder = {.max_tokens = 16, .backend = backend, .timeout = 10s},
          .engine = {.max_sequences_per_rank = 2,
                     .max_tokens_per_step = 16,
                     .drafts = drafts,
                     .timeout = 10s,
                     .balance = {.record = true, .window = 3}}};
}

/// Sampled, longer than a step, with processors that have a state, with and without log
/// probabilities.
Request elastic_request(std::size_t i) {
  static const std::vector<test::GoldenPrompt> prompts = test::golden_prompts(kElasticModel);
  Request request{.prompt = prompts[i % prompts.size()].prompt,
                  .max_new_tokens = 12 + static_cast<int>(i % 9),
                  .sampling = {.temperature = 0.8, .top_p = 0.95, .seed = i},
                  .stop_ids = {}};
  if (i % 2 == 0)
    request.processors = {{.name = "penalties", .integers = {}, .numbers = {1.5F, 0.5F, 1.2F}}};
  if (i % 3 == 0) request.top_logprobs = 2;
  if (i % 6 == 0) request.prompt_logprobs_from = 1;
  return request;
}

/// What a caller heard of a request.
struct Answer {
  std::vector<std::int32_t> tokens;
  std::vector<std::optional<Logprobs>> logprobs;
  std::vector<Logprobs> of_prompt;
  bool done = false;

  void hear(const TokenEvent& event) {
    EXPECT_FALSE(done) << "a token behind the last one";
    tokens.push_back(event.token);
    logprobs.push_back(event.logprobs);
    if (!event.prompt_logprobs.empty()) of_prompt = event.prompt_logprobs;
    done = event.last;
  }

  bool operator==(const Answer&) const = default;
};

using Answers = std::map<std::uint64_t, Answer>;

/// Of one rank that nothing disturbs.
Answers undisturbed_answers(std::size_t requests, const char* model = kElasticModel) {
  Answers answers;
  Model::open(elastic_options(1, MoeA2ABackend::pplx, model)).run_engine([&](Engine& engine) {
    for (std::size_t i = 0; i < requests; ++i) static_cast<void>(engine.submit(elastic_request(i)));
    engine.run([&](const TokenEvent& event) { answers[event.request].hear(event); });
    return 0;
  });
  return answers;
}

constexpr std::size_t kKinds = 12;  // of requests

/// What the ranks of one group share: threads, or processes through the fork.
struct Shared {
  std::atomic<int> deaths{0};
  std::atomic<bool> over{false};
};

/// Rank 0's part: requests of each kind come again and again until so many ranks have died, and all
/// of them hear what they would have heard. Returns what was wrong.
std::string serve_until(Engine& engine, const Answers& expected, Shared& shared, int deaths) {
  Answers answers;
  const auto submit = [&] {
    const std::size_t kind = answers.size() % kKinds;
    answers[engine.submit(elastic_request(kind)).value()] = {};
  };
  for (std::size_t i = 0; i < kKinds; ++i) submit();
  engine.run([&](const TokenEvent& event) {
    answers[event.request].hear(event);
    if (event.last && shared.deaths < deaths) submit();
  });
  shared.over = true;
  std::string wrong;
  for (const auto& [id, answer] : answers)
    if (answer != expected.at(id % kKinds)) wrong += fmt::format("request {} ", id);
  const EngineStats stats = engine.stats();
  // Some die before they are anybody's member.
  if (stats.ranks_lost < static_cast<std::uint64_t>(deaths / 2)) wrong += "too few ranks lost ";
  return wrong;
}

/// Ends a rank at one of its puts, which may lie behind the end of the epoch.
auto dying(std::uint64_t seed, bool by_signal) {
  return [random = std::mt19937_64(seed), by_signal](std::unique_ptr<Transport> end) mutable {
    const Faults faults{.ends_at_put = static_cast<int>(random() % 400),
                        .ends_by_signal = by_signal};
    return std::unique_ptr<Transport>(std::make_unique<FaultyTransport>(std::move(end), faults));
  };
}

JoinOptions elastic_join(const std::string& transport, Rank rank, int size) {
  return {.transport = transport,
          .rank = rank,
          .size = size,
          .join_timeout = 10s,
          .start_timeout = 10s};
}

constexpr int kGroup = 4;

/// All lives of a rank that is a thread. Its newcomers end with the store.
void live_as_thread(const Model& model, Store& store, Rank rank, Shared& shared) {
  for (std::uint64_t life = 0; !shared.over; ++life) {
    try {
      run_elastic(model,
                  {.join = elastic_join("inproc", rank, kGroup),
                   .founder = life == 0,
                   .look_every = 1ms,
                   .through = dying(life * kGroup + static_cast<std::uint64_t>(rank), false)},
                  store,
                  {});
    } catch (const RankEnded&) {
      ++shared.deaths;
    } catch (const Error& e) {
      if (!shared.over) ADD_FAILURE() << "rank " << rank << ": " << e.what();
      return;
    }
  }
}

/// Threads of which all but the first die again and again, and come back as newcomers.
void die_as_threads(MoeA2ABackend backend,
                    int deaths,
                    const char* name = kElasticModel,
                    const DraftOptions& drafts = {}) {
  const Answers expected = undisturbed_answers(kKinds, name);
  const Model model = Model::open(elastic_options(kGroup, backend, name, drafts));
  LocalStore store;
  Shared shared;
  std::string wrong = "nothing was heard";
  std::vector<std::jthread> others;
  for (Rank rank = 1; rank < kGroup; ++rank)
    others.emplace_back([&, rank] { live_as_thread(model, store, rank, shared); });
  run_elastic(model,
              {.join = elastic_join("inproc", 0, kGroup), .look_every = 1ms},
              store,
              [&](Engine& engine, GroupSize&) {
                wrong = serve_until(engine, expected, shared, deaths);
                return 0;
              });
  store.close(0, "the test is over");
  EXPECT_EQ(wrong, "");
}

TEST(Elastic, NoTokenChangesWhereThreadsDieAndComeBack) {
  die_as_threads(MoeA2ABackend::pplx, slow_run() ? 15 : 120);
}

/// Also where they die in the passes of the layer that drafts, behind a step that has given its
/// tokens.
TEST(Elastic, NoTokenChangesWhereTheModelDrafts) {
  die_as_threads(MoeA2ABackend::pplx,
                 slow_run() ? 10 : 60,
                 kDraftingModel,
                 {.tokens = 2, .source = DraftSource::layer});
}

/// The others go on at once, and close the ranks at the next boundary.
TEST(Elastic, NoTokenChangesWhereTheDeadAreMaskedFirst) {
  die_as_threads(MoeA2ABackend::mooncake, slow_run() ? 5 : 30);
}

/// Of a child of this process; the status is what `body` returns, or 1.
pid_t in_a_process(const std::function<int()>& body) {
  const pid_t pid = fork();
  if (pid != 0) return pid;
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  int status = 1;
  try {
    status = body();
  } catch (const Error& e) {
    fmt::print(stderr, "{}\n", e.what());
  }
  std::fflush(nullptr);
  _exit(status);
}

/// The same with processes, which are killed.
TEST(Elastic, NoTokenChangesWhereProcessesAreKilledAndComeBack) {
  const int deaths = slow_run() ? 6 : 45;
  const Answers expected = undisturbed_answers(kKinds);
  const Model model = Model::open(elastic_options(kGroup));
  SharedStore store;
  void* const memory =
      mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(memory, MAP_FAILED);
  Shared& shared = *new (memory) Shared;
  const auto start = [&](Rank rank, std::uint64_t life) {
    return in_a_process([&] {
      ElasticOptions options{
          .join = elastic_join("shm", rank, kGroup), .founder = life == 0, .look_every = 1ms};
      if (rank > 0) options.through = dying(life * kGroup + static_cast<std::uint64_t>(rank), true);
      std::string wrong;
      run_elastic(model, options, store, [&](Engine& engine, GroupSize&) {
        wrong = serve_until(engine, expected, shared, deaths);
        return 0;
      });
      if (!wrong.empty()) fmt::print(stderr, "{}\n", wrong);
      return wrong.empty() ? 0 : 1;
    });
  };
  std::map<pid_t, std::pair<Rank, std::uint64_t>> running;
  for (Rank rank = 0; rank < kGroup; ++rank) running[start(rank, 0)] = {rank, 0};
  while (!running.empty()) {
    int status = 0;
    const pid_t pid = wait(&status);
    ASSERT_TRUE(running.contains(pid));
    const auto [rank, life] = running[pid];
    running.erase(pid);
    if (WIFSIGNALED(status) && rank > 0 && !shared.over) {
      ++shared.deaths;
      running[start(rank, life + 1)] = {rank, life + 1};
      continue;
    }
    if (rank == 0 || !shared.over) {
      EXPECT_EQ(status, 0) << "rank " << rank;
    }
    if (rank != 0) continue;
    for (const auto& [other, who] : running) kill(other, SIGKILL);  // that wait to be taken in
  }
  EXPECT_GE(shared.deaths, deaths);
  munmap(memory, sizeof(Shared));
}

/// Three ranks; then two, as somebody wants; then four, of which two are new.
TEST(Elastic, AGroupShrinksAndGrowsAsItIsTold) {
  const Answers expected = undisturbed_answers(kKinds);
  const Model model = Model::open(elastic_options(3));
  LocalStore store;
  std::vector<std::string> ends(5, "nothing");
  const auto live = [&](int index) {
    std::string& end = ends[static_cast<std::size_t>(index)];
    try {
      const ElasticOptions options{
          .join = elastic_join("inproc", index, 3), .founder = index < 3, .look_every = 1ms};
      end = fmt::format("{}", run_elastic(model, options, store, {}));
    } catch (const Error& e) {
      end = e.what();
    }
  };
  std::vector<std::jthread> others;
  for (const int index : {1, 2}) others.emplace_back(live, index);
  Answers answers;
  std::vector<std::vector<std::string>> members;
  const auto serve = [&](Engine& engine, GroupSize& size) {
    EXPECT_THROW(size.want(0), ConfigError);
    const auto submit = [&] {
      answers[engine.submit(elastic_request(answers.size() % kKinds)).value()] = {};
    };
    for (std::size_t i = 0; i < kKinds; ++i) submit();
    engine.run([&](const TokenEvent& event) {
      answers[event.request].hear(event);
      const GroupSize::State state = size.state();
      if (members.empty() || members.back() != state.members) {
        members.push_back(state.members);
        if (members.size() == 1) size.want(2);
        if (members.size() == 2) {
          size.want(4);
          for (const int index : {3, 4}) others.emplace_back(live, index);
        }
      }
      if (event.last && members.back().size() < 4) submit();
    });
    return 0;
  };
  run_elastic(model, {.join = elastic_join("inproc", 0, 3), .look_every = 1ms}, store, serve);
  others.clear();
  EXPECT_EQ(MemberBoard::size_with_next(store, JoinOptions{}.group), 4);
  ASSERT_GE(members.size(), 3u);
  EXPECT_EQ(members[0], (std::vector<std::string>{"founder 0", "founder 1", "founder 2"}));
  EXPECT_EQ(members[1], (std::vector<std::string>{"founder 0", "founder 1"}));
  EXPECT_EQ(members.back().size(), 4u);
  for (const auto& [id, answer] : answers) EXPECT_EQ(answer, expected.at(id % kKinds)) << id;
  EXPECT_EQ(ends, (std::vector<std::string>{"nothing", "0", "0", "0", "0"}));
}

}  // namespace
}  // namespace ferry
