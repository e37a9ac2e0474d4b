// A model opened once and run on ranks, by run() and rank by rank.
#include "ferry/runtime/model.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "../transport/joining.h"
#include "ferry/core/error.h"
#include "ferry/inproc.h"
#include "ferry/membership.h"
#include "ferry/runtime/kv_memory.h"
#include "support/golden_model.h"
#include "support/ranks.h"

namespace ferry {
namespace {

constexpr const char* kModel = "qwen3_bf16";

ModelOptions options_for(int ranks) {
  return {.model = test::data_dir(kModel),
          .launch = {.transport = "inproc", .ranks = ranks},
          .decoder = {.max_tokens = 32},
          .engine = {.max_sequences_per_rank = 4, .max_tokens_per_step = 32}};
}

std::string refusal(const ModelOptions& options) {
  try {
    static_cast<void>(Model::open(options));
  } catch (const ConfigError& e) {
    return e.what();
  }
  return "accepted";
}

/// The greedy continuation of each golden prompt, as rank 0's engine gives it.
std::vector<std::vector<std::int32_t>> continue_all(Engine& engine) {
  const std::vector<test::GoldenPrompt> prompts = test::golden_prompts(kModel);
  for (const test::GoldenPrompt& p : prompts) {
    static_cast<void>(
        engine.submit({.prompt = p.prompt, .max_new_tokens = static_cast<int>(p.greedy.size())}));
  }
  std::vector<std::vector<std::int32_t>> tokens(prompts.size());
  engine.run([&](const TokenEvent& event) { tokens[event.request].push_back(event.token); });
  return tokens;
}

void expect_golden(const std::vector<std::vector<std::int32_t>>& tokens) {
  const std::vector<test::GoldenPrompt> prompts = test::golden_prompts(kModel);
  for (std::size_t i = 0; i < prompts.size(); ++i) EXPECT_EQ(tokens[i], prompts[i].greedy) << i;
}

/// The same where an expectation would not be heard of: in another process.
bool are_golden(const std::vector<std::vector<std::int32_t>>& tokens) {
  return std::ranges::equal(
      tokens, test::golden_prompts(kModel), {}, {}, &test::GoldenPrompt::greedy);
}

TEST(Model, RunsOnThreadsThatItStarts) {
  ModelOptions options = options_for(3);
  options.weights = WeightType::bf16;
  const Model model = Model::open(options);
  for (int again = 0; again < 2; ++again) {
    std::vector<std::vector<std::int32_t>> tokens;
    const int status = model.run_engine([&](Engine& engine) {
      tokens = continue_all(engine);
      return 7;
    });
    EXPECT_EQ(status, 7);
    expect_golden(tokens);
  }
}

TEST(Model, RunsOnTransportsAndThreadsOfTheCaller) {
  ModelOptions options = options_for(2);
  options.decoder.tp = 2;
  const Model model = Model::open(options);
  for (const bool own_share : {false, true}) {
    const auto dense = own_share ? nullptr : model.load_dense();
    const auto ends = make_inproc(2);
    std::vector<std::vector<std::int32_t>> tokens;
    const auto run = [&](Transport& transport) {
      ThreadPool pool(1);
      Decoder decoder = model.decoder_on(transport, pool, dense);
      Engine engine = model.engine_on(decoder, transport);
      if (transport.rank() == 0)
        tokens = continue_all(engine);
      else
        engine.run({});
    };
    std::thread other([&] { run(*ends[1]); });
    run(*ends[0]);
    other.join();
    expect_golden(tokens);
  }
}

/// Between two runs of an engine: ranks 0, 1, 2; then 0 and 2; then those and a newcomer.
TEST(Model, ServesOnWithOtherRanksInTheNextEpoch) {
  for (const char* transport : {"inproc", "shm"}) {
    const auto heard = in_ranks_of(transport, 4, [&](int index, Store& store) -> std::string {
      const Model model = Model::open(options_for(3));
      const auto dense = model.load_dense();
      ThreadPool pool(1);
      const JoinOptions join{.transport = transport, .rank = index, .size = 3};
      Membership membership =
          index < 3 ? Membership::found(join, store) : Membership::announce(join, store);
      ExpertWeights held;
      std::string answers;
      for (int epoch = index < 3 ? 0 : 2; epoch < 3; ++epoch) {
        if (index == 0 && epoch == 1) membership.publish(std::vector{0, 2}, {});
        if (index == 0 && epoch == 2) {
          while (membership.newcomers().empty())
            std::this_thread::sleep_for(std::chrono::milliseconds(2));
          membership.publish(std::vector{0, 1}, membership.newcomers());
        }
        const auto end = membership.next();
        if (!end) return "left";
        Decoder decoder = model.next_decoder_on(*end, pool, std::move(held), dense);
        Engine engine = model.engine_on(decoder, *end);
        if (index != 0)
          engine.run({});
        else if (!are_golden(continue_all(engine)))
          return "other tokens";
        answers += fmt::format("{}/{} ", end->rank(), end->size());
        held = decoder.sparse_layers().take_experts();
      }
      return answers;
    });
    EXPECT_EQ(heard, (std::vector<std::string>{"0/3 0/2 0/3 ", "left", "2/3 1/2 1/3 ", "2/3 "}))
        << transport;
  }
}

/// A newcomer that has foreseen its rank reads nothing of its experts when the ranks meet; one that
/// has not has the same experts all the same.
TEST(Model, ExpertsThatWereForeseenStayWhereTheyLie) {
  const Model model = Model::open(options_for(1));
  const auto ends = make_inproc(1);
  ThreadPool pool(1);
  for (const Rank foreseen : {0, 1}) {
    const int ranks = foreseen == 0 ? 1 : 2;
    ExpertWeights held = model.experts_of(foreseen, ranks, pool);
    std::vector<const void*> before;
    for (const ExpertWeights::Layer& layer : held.layers)
      for (const GatedFfnWeights& slot : layer.slots) before.push_back(slot.gate_up.data);
    Decoder decoder = model.next_decoder_on(*ends[0], pool, std::move(held));
    const ExpertWeights after = decoder.sparse_layers().take_experts();
    std::vector<const void*> all, stayed;
    for (const ExpertWeights::Layer& layer : after.layers)
      for (const GatedFfnWeights& slot : layer.slots) all.push_back(slot.gate_up.data);
    for (const void* place : all)
      if (std::ranges::find(before, place) != before.end()) stayed.push_back(place);
    EXPECT_FALSE(before.empty());
    EXPECT_EQ(stayed.size(), before.size());
    if (foreseen == 0)
      EXPECT_EQ(all, before);
    else
      EXPECT_GT(all.size(), before.size());
  }
}

TEST(Model, TheNextEpochMustDivideIntoGroupsToo) {
  ModelOptions options = options_for(2);
  options.decoder.tp = 2;
  const Model model = Model::open(options);
  const auto ends = make_inproc(1);
  ThreadPool pool(1);
  try {
    static_cast<void>(model.next_decoder_on(*ends[0], pool, {}));
    FAIL() << "nothing was thrown";
  } catch (const ConfigError& e) {
    EXPECT_STREQ(e.what(),
                 "--tp 2: 1 ranks do not divide into groups of that; choose a divisor of --ep");
  }
}

TEST(Model, RefusesATransportOfOtherRanksThanItWasOpenedFor) {
  const Model model = Model::open(options_for(2));
  const auto ends = make_inproc(1);
  ThreadPool pool(1);
  try {
    static_cast<void>(model.decoder_on(*ends[0], pool));
    FAIL() << "nothing was thrown";
  } catch (const ConfigError& e) {
    EXPECT_STREQ(e.what(), "the model was opened for 2 ranks, the transport has 1");
  }
}

TEST(Model, TellsWhatItLoadsAndChoosesToItsListener) {
  ModelOptions options = options_for(2);
  options.decoder.backend = MoeA2ABackend::automatic;
  options.decoder.deepep_mode = DeepepMode::automatic;
  std::vector<std::string> lines, tasks, ended;
  std::mutex mutex;  // ranks load at the same time
  ModelListener listener{
      .info = [&](const std::string& line) { lines.push_back(line); },
      .warn = {},
      .loading = [&](std::string_view what) -> LoadProgress {
        const std::lock_guard lock(mutex);
        tasks.emplace_back(what);
        // Destroyed with the last copy of the function.
        const std::shared_ptr<std::string> end(new std::string(what), [&](const std::string* task) {
          const std::lock_guard lock_end(mutex);
          ended.push_back(*task);
          delete task;
        });
        return [end](std::uint64_t done, std::uint64_t total) { EXPECT_LE(done, total) << *end; };
      }};
  const Model model = Model::open(options, listener);
  EXPECT_NE(model.options().decoder.backend, MoeA2ABackend::automatic);
  ASSERT_EQ(lines.size(), 1U);
  EXPECT_NE(lines[0].find(backend_name(model.options().decoder.backend)), std::string::npos);
  EXPECT_EQ(model.run([](Decoder&, Transport&) { return 0; }), 0);
  EXPECT_EQ(tasks, (std::vector<std::string>{"dense weights", "experts of rank 0"}));
  EXPECT_EQ(ended, tasks);
}

/// Ranks are launched to measure and once more to run; those of shm are processes.
TEST(Model, ChoosesABackendByTryingThem) {
  for (const char* transport : {"inproc", "shm"}) {
    for (const int slices : {1, 2}) {
      ModelOptions options = options_for(4);
      options.launch.transport = transport;
      options.choose_by = ChooseBy::measured;
      options.decoder.backend = MoeA2ABackend::automatic;
      options.decoder.tp = slices;
      options.decoder.expert_slices = slices;
      std::vector<std::string> lines;
      const Model model =
          Model::open(options, {.info = [&](const std::string& line) { lines.push_back(line); }});
      const DecoderOptions& chosen = model.options().decoder;
      EXPECT_EQ(exchange_options(chosen.backend, chosen.deepep_mode).reduce_at,
                ExchangeOptions::ReduceAt::home);
      ASSERT_EQ(lines.size(), 1U);
      EXPECT_NE(lines[0].find("tokens a rank took"), std::string::npos) << lines[0];
      EXPECT_NE(lines[0].find(transport), std::string::npos) << lines[0];
      EXPECT_EQ(model.run_engine(
                    [&](Engine& engine) { return are_golden(continue_all(engine)) ? 0 : 1; }),
                0);
    }
  }
}

TEST(Model, WhatRanksMustHaveAlikeNamesTheModelAndWhatTheCallerAdds) {
  const auto agreed = [](ModelOptions options, const std::string& name) {
    options.launch.agreement = {{"mine", "1"}};
    const Model model = Model::open(options);
    for (const auto& [key, value] : model.options().launch.agreement)
      if (key == name) return value;
    return std::string("absent");
  };
  const ModelOptions plain = options_for(2);
  EXPECT_EQ(agreed(plain, "mine"), "1");
  EXPECT_EQ(agreed(plain, "--max-tokens"), "32");
  EXPECT_EQ(agreed(plain, "context"), "512");
  ModelOptions other = plain;
  other.model = test::data_dir("qwen3_untied");
  EXPECT_NE(agreed(other, "model files"), agreed(plain, "model files"));
  other = plain;
  other.expert_location.redundant = 2;
  EXPECT_NE(agreed(other, "expert location"), agreed(plain, "expert location"));
  other = plain;
  other.weights = WeightType::int8;
  EXPECT_EQ(agreed(other, "weight type"), "int8");
  // As asked for: what "auto" stands for follows from the rest.
  other = plain;
  other.decoder.backend = MoeA2ABackend::automatic;
  EXPECT_EQ(agreed(other, "--moe-a2a-backend"), "auto");
}

TEST(Model, RefusesWhatCannotBe) {
  ModelOptions options = options_for(1);
  options.launch.transport = "pigeons";
  EXPECT_NE(refusal(options).find("unknown transport \"pigeons\""), std::string::npos);
  options = options_for(1);
  options.engine.max_context = 1 << 20;
  EXPECT_NE(refusal(options).find("1048576 positions"), std::string::npos);
  options = options_for(1);
  options.expert_location.redundant = -1;
  EXPECT_NE(refusal(options).find("-1 redundant"), std::string::npos);
  options = options_for(1);
  options.model = "/nowhere";
  EXPECT_THROW(static_cast<void>(Model::open(options)), ModelError);
  options = options_for(0);
  EXPECT_NE(refusal(options), "accepted");
}

TEST(Model, ATokenizerIsOptional) {
  const test::TempDir dir;
  for (const char* file : {"config.json", "model.safetensors"})
    std::filesystem::create_symlink(test::data_dir(kModel) / file, dir.path() / file);
  ModelOptions options = options_for(1);
  options.model = dir.path();
  const Model without = Model::open(options);
  EXPECT_EQ(without.tokenizer(), nullptr);
  EXPECT_EQ(without.text_of(std::vector<std::int32_t>{1, 2, 3}), "");
  EXPECT_THROW(static_cast<void>(without.need_tokenizer()), ModelError);
  options.model = test::source_dir() / "assets" / "demo-moe";
  const Model with = Model::open(options);
  const std::string text = "12 + 34 =";
  EXPECT_EQ(with.text_of(with.need_tokenizer().encode(text)), text);
  const std::vector<std::int32_t> padding = {with.config().vocab - 1, with.config().vocab + 7};
  EXPECT_NO_THROW(static_cast<void>(with.text_of(padding)));
}

/// With memory measured, all ranks get the same positions, no more than half of what is free holds.
TEST(Model, KeysAndValuesGetTheirPartOfTheMemory) {
  const Model model = Model::open(options_for(2));
  std::vector<std::int64_t> of_half(2), of_quarter(2);
  model.run([&](Decoder& decoder, Transport& transport) {
    const auto rank = static_cast<std::size_t>(transport.rank());
    of_half[rank] = kv_tokens_in_memory(0.5, decoder, 0, std::chrono::seconds(30), transport);
    of_quarter[rank] = kv_tokens_in_memory(0.25, decoder, 0, std::chrono::seconds(30), transport);
    return 0;
  });
  EXPECT_EQ(of_half[0], of_half[1]);
  EXPECT_EQ(of_quarter[0], of_quarter[1]);
  EXPECT_GT(of_quarter[0], 0);
  EXPECT_GT(of_half[0], of_quarter[0]);
}

}  // namespace
}  // namespace ferry
