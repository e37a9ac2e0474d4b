// A model in one's own process, called as a library user would.
#include "ferry/generator.h"

#include <dirent.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <stdexcept>
#include <thread>

#include "ferry/core/error.h"
#include "ferry/core/threads.h"
#include "ferry/model/checkpoint.h"
#include "ferry/model/packed_checkpoint.h"
#include "ferry/refused.h"
#include "support/files.h"
#include "support/golden_model.h"
#include "support/paths.h"

namespace ferry {
namespace {

using namespace std::chrono_literals;

constexpr const char* kModel = "qwen3_bf16";

GeneratorOptions golden(int ranks) {
  return {.model = test::data_dir(kModel), .ranks = ranks, .threads = 1, .max_tokens_per_step = 32};
}

GeneratorOptions demo() {
  return {.model = (test::source_dir() / "assets" / "demo-moe").string(), .ranks = 2, .threads = 1};
}

GenerationSettings greedy(int tokens) {
  return {.sampling = {.temperature = 0}, .max_new_tokens = tokens, .ignore_eos = true};
}

int threads_of_this_process() {
  int count = 0;
  DIR* tasks = opendir("/proc/self/task");
  while (const dirent* entry = readdir(tasks)) count += entry->d_name[0] != '.' ? 1 : 0;
  closedir(tasks);
  return count;
}

TEST(Generator, ContinuesPromptsAsTransformersDoes) {
  const std::vector<test::GoldenPrompt> golden_prompts = test::golden_prompts(kModel);
  Generator::Prompts prompts;
  for (const test::GoldenPrompt& p : golden_prompts) prompts.push_back(p.prompt);
  for (const int ranks : {1, 3}) {
    Generator generator(golden(ranks));
    std::vector<std::vector<std::int32_t>> heard(prompts.size());
    const std::vector<Choice> choices =
        generator.generate(prompts, greedy(32), [&](const GeneratedToken& token) {
          heard.at(token.choice).push_back(token.id);
          EXPECT_EQ(token.finish.empty(), heard[token.choice].size() < 32);
        });
    ASSERT_EQ(choices.size(), prompts.size());
    for (std::size_t i = 0; i < prompts.size(); ++i) {
      EXPECT_EQ(choices[i].ids, golden_prompts[i].greedy) << i;
      EXPECT_EQ(heard[i], golden_prompts[i].greedy) << i;
      EXPECT_EQ(choices[i].prompt_tokens, prompts[i].size());
      EXPECT_EQ(choices[i].finish, "length");
    }
  }
}

TEST(Generator, GroupsOfRanksGiveTheSameTokens) {
  const test::GoldenPrompt p = test::golden_prompts(kModel).at(1);
  GeneratorOptions options = golden(0);
  options.tp = 2;
  EXPECT_EQ(Generator(options).generate({p.prompt}, greedy(32)).at(0).ids, p.greedy);
  options.expert_slices = 2;
  EXPECT_EQ(Generator(options).generate({p.prompt}, greedy(32)).at(0).ids, p.greedy);
  options.expert_slices = 3;
  EXPECT_THROW(Generator{options}, ConfigError);
}

TEST(Generator, APackedModelIsReadOrMapped) {
  const test::GoldenPrompt p = test::golden_prompts(kModel).at(0);
  const test::TempDir out;
  ThreadPool pool(1);
  write_packed(Checkpoint::open(test::data_dir(kModel)),
               std::nullopt,
               Activations::automatic,
               out.path(),
               pool,
               {});
  GeneratorOptions options = golden(2);
  options.model = out.path().string();
  std::vector<std::string> lines;
  options.log = [&](const std::string& line) { lines.push_back(line); };
  for (const char* load : {"read", "mapped"}) {
    options.load = load;
    EXPECT_EQ(Generator(options).generate({p.prompt}, greedy(32)).at(0).ids, p.greedy) << load;
  }
  EXPECT_EQ(lines.size(), 0U);
  options.model = test::data_dir(kModel);  // not packed
  EXPECT_EQ(Generator(options).generate({p.prompt}, greedy(32)).at(0).ids, p.greedy);
  ASSERT_EQ(lines.size(), 1U);
  EXPECT_NE(lines[0].find("is not packed, so its weights are read"), std::string::npos);
  options.load = "carried";
  EXPECT_THROW(Generator{options}, ConfigError);
}

TEST(Generator, DraftsChangeNoChoice) {
  GeneratorOptions options = demo();
  const Generator::Prompts prompts = {{5, 6, 7, 5, 6, 7, 5, 6}, {9, 9, 9, 9}};
  GenerationSettings settings{
      .seeded = true, .max_new_tokens = 30, .ignore_eos = true, .choices = 3};
  const auto ids = [&] {
    std::vector<std::vector<std::int32_t>> all;
    Generator generator(options);
    for (const Choice& choice : generator.generate(prompts, settings)) all.push_back(choice.ids);
    return all;
  };
  const auto expected = ids();
  options.draft_tokens = 5;
  options.draft_ngram_min = 1;
  EXPECT_EQ(ids(), expected);
  options.draft_ngram_max = 0;
  EXPECT_THROW(Generator{options}, ConfigError);
  options.draft_ngram_max = 8;
  options.draft_method = "mtp";
  EXPECT_THROW(Generator{options}, ConfigError) << "the demo model has no such layer";
  options.model = test::data_dir("glm4_moe_mtp").string();
  const auto drafted = ids();
  options.draft_tokens = 0;
  EXPECT_EQ(ids(), drafted);
}

TEST(Generator, ConversationsAreWhatTheTemplateMakesOfThem) {
  const Generator generator(demo());
  const auto refusal = [&](const std::string& request) -> std::string {
    try {
      static_cast<void>(generator.encode_chat(request));
    } catch (const ConfigError& e) {
      return e.what();
    }
    return "";
  };
  const std::string question = R"({"role": "user", "content": "12+34="})";
  const std::string asked =
      generator.decode(generator.encode_chat(fmt::format(R"({{"messages": [{}]}})", question)));
  EXPECT_NE(asked.find("12+34="), std::string::npos);
  const std::string begun = generator.decode(generator.encode_chat(fmt::format(
      R"({{"messages": [{}, {{"role": "assistant", "content": "It"}}], "continue_final_message": true}})",
      question)));
  EXPECT_TRUE(begun.ends_with("It")) << begun;
  EXPECT_NE(refusal(R"({"messages": []})").find("at least one message"), std::string::npos);
  EXPECT_NE(refusal("[").find("no JSON"), std::string::npos);
  EXPECT_NE(refusal(fmt::format(R"({{"messages": [{}], "tools": 1}})", question)).find("tools"),
            std::string::npos);
  EXPECT_NE(refusal(fmt::format(R"({{"messages": [{}], "tools": [{{"type": "function", "function":)"
                                R"({{"name": "f"}}}}]}})",
                                question))
                .find("passes over \"tools\""),
            std::string::npos)
      << "the demo model knows none";
  EXPECT_EQ(refusal(fmt::format(R"({{"messages": [{}], "tools": []}})", question)), "");
  EXPECT_EQ(refusal(fmt::format(R"({{"messages": [{}], "top_k": 1}})", question)),
            "\"top_k\" is not known here");
  EXPECT_THROW(static_cast<void>(Generator(golden(1)).encode_chat(
                   fmt::format(R"({{"messages": [{}]}})", question))),
               ConfigError)
      << "it has no template";
}

TEST(Generator, SettingsAreReadFromJson) {
  const Generator generator(demo());
  GenerationSettings settings = greedy(8);
  generator.read_settings(R"({"temperature": 0.5, "top_k": -1, "seed": 7, "n": 3, "stop": "x"})",
                          settings);
  EXPECT_EQ(settings.sampling.temperature, 0.5);
  EXPECT_EQ(settings.sampling.seed, 7U);
  EXPECT_TRUE(settings.seeded);
  EXPECT_EQ(settings.choices, 3);
  EXPECT_EQ(settings.stop, std::vector<std::string>{"x"});
  EXPECT_EQ(settings.max_new_tokens, 8) << "what is not named stays";
  EXPECT_TRUE(settings.processors.empty());
  generator.read_settings(R"({"min_tokens": 2, "logit_bias": {"5": -3}, "bad_words": "46"})",
                          settings);
  EXPECT_EQ(settings.processors.size(), 3U);
  EXPECT_THROW(generator.read_settings(R"({"n": 0})", settings), ConfigError);
  EXPECT_THROW(generator.read_settings(R"({"max_tokens": 3})", settings), ConfigError)
      << "nobody reads it here";
}

TEST(Generator, CallsOfManyThreadsShareTheStepsAndGetTheirOwnTokens) {
  const std::vector<test::GoldenPrompt> golden_prompts = test::golden_prompts(kModel);
  Generator generator(golden(2));
  std::vector<std::thread> callers;
  for (std::size_t c = 0; c < 6; ++c) {
    callers.emplace_back([&, c] {
      const test::GoldenPrompt& p = golden_prompts[c % golden_prompts.size()];
      for (int i = 0; i < 3; ++i)
        EXPECT_EQ(generator.generate({p.prompt}, greedy(32)).at(0).ids, p.greedy) << c;
    });
  }
  for (std::thread& caller : callers) caller.join();
}

TEST(Generator, TextStopsChoicesAndLogprobs) {
  Generator generator(demo());
  const std::vector<std::int32_t> prompt = generator.encode("12+34=");
  const Choice whole = generator.generate({prompt}, greedy(8)).at(0);
  EXPECT_EQ(whole.text, generator.decode(whole.ids));
  ASSERT_GT(whole.text.size(), 1U);

  GenerationSettings settings = greedy(8);
  settings.stop = {whole.text.substr(1, 1)};
  settings.top_logprobs = 2;
  std::string text;
  const Choice stopped =
      generator.generate({prompt}, settings, [&](const GeneratedToken& t) { text += t.text; })
          .at(0);
  EXPECT_EQ(stopped.text, whole.text.substr(0, whole.text.find(settings.stop[0])));
  EXPECT_EQ(text, stopped.text);
  EXPECT_EQ(stopped.finish, "stop");
  EXPECT_EQ(stopped.matched, settings.stop[0]);
  ASSERT_EQ(stopped.logprobs.size(), stopped.ids.size());
  EXPECT_EQ(stopped.logprobs[0].top.size(), 2U);

  settings = {.seeded = true, .max_new_tokens = 8, .choices = 3};
  settings.sampling.seed = 5;
  const auto drawn = generator.generate({prompt, prompt}, settings);
  ASSERT_EQ(drawn.size(), 6U);
  for (std::size_t i = 0; i < 3; ++i) EXPECT_EQ(drawn[i].ids, drawn[i + 3].ids) << i;
  EXPECT_FALSE(drawn[0].ids == drawn[1].ids && drawn[1].ids == drawn[2].ids);
}

/// So much that it is still there when it is to be ended.
Generator::Prompts much() {
  return Generator::Prompts(100, test::golden_prompts(kModel).at(0).prompt);
}

/// Waits for a first token.
void hear_one(Generator::Stream& stream) {
  while (!stream.next(10s)) ASSERT_FALSE(stream.done());
}

void hear_all(Generator::Stream& stream) {
  while (!stream.done()) static_cast<void>(stream.next(10s));
}

TEST(Generator, StreamsCanBeCancelledAndDropped) {
  GeneratorOptions options = golden(1);
  options.max_sequences_per_rank = 1;
  options.max_waiting = 99;
  Generator generator(options);
  const test::GoldenPrompt p = test::golden_prompts(kModel).at(0);
  {
    Generator::Stream stream = generator.start(much(), greedy(400));
    hear_one(stream);
    EXPECT_THROW(static_cast<void>(generator.start(much(), greedy(4))), Refused);
    for (std::size_t i = 0; i < 99; ++i) stream.cancel(i);
    EXPECT_EQ(stream.choices()[98].finish, "cancelled");
    EXPECT_FALSE(stream.done());
    std::optional<GeneratedToken> token;
    while (!(token = stream.next(10s))) ASSERT_FALSE(stream.done());
    EXPECT_EQ(token->choice, 99U);
    EXPECT_THROW(stream.cancel(100), ConfigError);
  }
  // All have left, or soon do.
  for (;;) {
    try {
      const auto choices = generator.generate(much(), greedy(4));
      EXPECT_TRUE(std::equal(
          choices[99].ids.begin(), choices[99].ids.end(), p.greedy.begin(), p.greedy.begin() + 4));
      break;
    } catch (const Refused& e) {
      ASSERT_EQ(e.reason(), Refused::Reason::full);
      std::this_thread::sleep_for(1ms);
    }
  }
}

TEST(Generator, AnErrorOfTheCallbackCancelsTheCallAndLeaves) {
  GeneratorOptions options = golden(1);
  options.max_sequences_per_rank = 1;
  options.max_waiting = 99;
  Generator generator(options);
  const auto angry = [](const GeneratedToken&) { throw std::runtime_error("no more"); };
  EXPECT_THROW(static_cast<void>(generator.generate(much(), greedy(400), angry)),
               std::runtime_error);
  std::optional<Generator::Stream> next;
  while (!next) {  // at once, were it not for the loop that has to hear of it
    try {
      next.emplace(generator.start(much(), greedy(1)));
    } catch (const Refused&) {
      std::this_thread::sleep_for(1ms);
    }
  }
  hear_all(*next);
}

TEST(Generator, ClosingEndsCallsAndThreads) {
  const int before = threads_of_this_process();
  for (int again = 0; again < 3; ++again) {
    Generator generator(golden(3));
    Generator::Stream stream = generator.start(much(), greedy(400));
    hear_one(stream);
    EXPECT_GE(threads_of_this_process(), before + 3);
    generator.close();
    generator.close();
    EXPECT_THROW(hear_all(stream), Refused);
    try {
      static_cast<void>(generator.start(much(), greedy(4)));
      ADD_FAILURE() << "a closed one took a call";
    } catch (const Refused& e) {
      EXPECT_EQ(e.reason(), Refused::Reason::ended);
      EXPECT_STREQ(e.what(), "the generator is closed");
    }
    // A thread that has been joined may stand in /proc for a moment.
    const auto deadline = std::chrono::steady_clock::now() + 10s;
    while (threads_of_this_process() > before && std::chrono::steady_clock::now() < deadline)
      std::this_thread::sleep_for(1ms);
    EXPECT_EQ(threads_of_this_process(), before);
  }
}

TEST(Generator, AStreamMayOutliveItsGenerator) {
  std::optional<Generator::Stream> stream;
  {
    Generator generator(golden(2));
    Generator moved = std::move(generator);
    stream.emplace(moved.start(much(), greedy(400)));
  }
  EXPECT_THROW(hear_all(*stream), Refused);
}

TEST(Generator, RefusesWhatCannotBeInOneLine) {
  const auto refuses = [](const GeneratorOptions& options) {
    try {
      const Generator generator(options);
      ADD_FAILURE() << "accepted";
    } catch (const Error& e) {
      EXPECT_EQ(std::string(e.what()).find('\n'), std::string::npos) << e.what();
      return std::string(e.what());
    }
    return std::string();
  };
  GeneratorOptions options = golden(1);
  options.model = "/nowhere";
  EXPECT_NE(refuses(options).find("/nowhere"), std::string::npos);
  options = golden(1);
  options.backend = "pigeons";
  EXPECT_NE(refuses(options).find("pigeons"), std::string::npos);
  options = golden(1);
  options.weights = "f7";
  EXPECT_NE(refuses(options).find("f7"), std::string::npos);
  options = golden(-1);
  refuses(options);
  options = golden(3);
  options.tp = 2;
  EXPECT_NE(refuses(options).find("3 ranks do not divide"), std::string::npos);
  options = golden(1);
  options.max_context = 1 << 20;
  refuses(options);
  options = golden(1);
  options.kv_memory_fraction = 0;
  refuses(options);
  options = golden(1);
  options.max_tokens_per_step = 0;
  refuses(options);

  Generator generator(golden(1));
  EXPECT_THROW(static_cast<void>(generator.start({})), ConfigError);
  EXPECT_THROW(static_cast<void>(generator.start({{}})), ConfigError);
  EXPECT_THROW(static_cast<void>(generator.start({{-1}})), ConfigError);
  EXPECT_THROW(static_cast<void>(generator.start({{generator.vocab()}})), ConfigError);
  EXPECT_THROW(static_cast<void>(generator.start({{1}}, {.choices = 0})), ConfigError);
  EXPECT_THROW(static_cast<void>(generator.start({{1}}, {.max_new_tokens = -1})), ConfigError);
  EXPECT_THROW(static_cast<void>(generator.start({{1}}, {.sampling = {.temperature = -1}})),
               ConfigError);
  const std::vector<std::int32_t> too_long(static_cast<std::size_t>(generator.max_context()) + 1,
                                           1);
  EXPECT_THROW(static_cast<void>(generator.start({too_long})), ConfigError);
  EXPECT_EQ(generator.generate({{1}}, greedy(1)).at(0).ids.size(), 1U);  // and it still runs
}

}  // namespace
}  // namespace ferry
