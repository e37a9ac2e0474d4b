// Log probabilities of prompts: the same bits as those of generated tokens, however a prompt is
// run.
#include <gtest/gtest.h>

#include <map>

#include "ferry/core/error.h"
#include "ferry/engine/engine.h"
#include "ferry/runtime/model.h"
#include "support/golden_model.h"
#include "support/paths.h"

namespace ferry {
namespace {

constexpr const char* kModel = "qwen2_untied";

struct Told {
  std::vector<std::int32_t> tokens;
  std::vector<Logprobs> logprobs;
  std::vector<Logprobs> prompt;

  bool operator==(const Told&) const = default;
};

struct Run {
  int ranks = 1;
  int threads = 1;
  int max_tokens = 64;
  std::int64_t max_kv_tokens = 0;
};

std::vector<Told> tell(const std::vector<Request>& requests, const Run& run, bool evicts = false) {
  const Model model = Model::open(
      {.model = test::data_dir(kModel),
       .launch = {.transport = "inproc", .ranks = run.ranks},
       .threads = run.threads,
       .weights = WeightType::bf16,
       .decoder = {.max_tokens = run.max_tokens},
       .engine = {.max_tokens_per_step = run.max_tokens, .max_kv_tokens = run.max_kv_tokens}});
  std::vector<Told> told(requests.size());
  model.run([&](Decoder& decoder, Transport& transport) {
    Engine engine = model.engine_on(decoder, transport);
    if (transport.rank() != 0) {
      engine.run([](const TokenEvent&) {});
      return 0;
    }
    for (const Request& request : requests) static_cast<void>(engine.submit(request));
    engine.run([&](const TokenEvent& event) {
      Told& one = told.at(event.request);
      if (!one.tokens.empty()) {
        EXPECT_TRUE(event.prompt_logprobs.empty()) << "they come with the first token";
      }
      if (one.tokens.empty()) one.prompt = event.prompt_logprobs;
      one.tokens.push_back(event.token);
      if (event.logprobs) one.logprobs.push_back(*event.logprobs);
    });
    EXPECT_TRUE(!evicts || engine.stats().evictions > 0) << "the test needs one that starts over";
    return 0;
  });
  return told;
}

Request request_of(std::vector<std::int32_t> prompt, int new_tokens, std::optional<int> from) {
  return {.prompt = std::move(prompt),
          .max_new_tokens = new_tokens,
          .sampling = {},
          .stop_ids = {},
          .top_logprobs = 3,
          .prompt_logprobs_from = from};
}

TEST(PromptLogprobs, AreThoseOfTheTokensWhenTheyWereGenerated) {
  for (const test::GoldenPrompt& p : test::golden_prompts(kModel)) {
    const Told generated = tell({request_of(p.prompt, 12, {})}, {}).at(0);
    EXPECT_TRUE(generated.prompt.empty()) << "nobody has asked";
    std::vector<std::int32_t> all = p.prompt;
    all.insert(all.end(), generated.tokens.begin(), generated.tokens.end());
    const Told again = tell({request_of(all, 1, 0)}, {}).at(0);
    ASSERT_EQ(again.prompt.size(), all.size() - 1);
    EXPECT_EQ(std::vector(again.prompt.end() - 12, again.prompt.end()), generated.logprobs);
  }
}

TEST(PromptLogprobs, AreTheSameBitsHoweverThePromptIsRun) {
  std::vector<Request> requests;
  for (const test::GoldenPrompt& p : test::golden_prompts(kModel)) {
    for (const int from : {0, 1, 2, 13, static_cast<int>(p.prompt.size()), 1000})
      requests.push_back(request_of(p.prompt, 30, from));
  }
  std::vector<Told> alone;
  for (const Request& request : requests) {
    alone.push_back(tell({request}, {}).at(0));
    const std::size_t from = std::max(1, *request.prompt_logprobs_from);
    EXPECT_EQ(alone.back().prompt.size(),
              request.prompt.size() - std::min(request.prompt.size(), from));
  }
  EXPECT_EQ(tell(requests, {.ranks = 2, .threads = 2}), alone);
  EXPECT_EQ(tell(requests, {.ranks = 3, .max_tokens = 5}), alone);
  EXPECT_EQ(tell(requests, {.max_tokens = 7, .max_kv_tokens = 128}, /*evicts=*/true), alone);
}

TEST(PromptLogprobs, GivenIdsAreToldTheSameBitsWhereverTheyRun) {
  std::vector<Request> requests;
  for (const test::GoldenPrompt& p : test::golden_prompts(kModel)) {
    for (int i = 0; i < 4; ++i) {
      Request request = request_of(p.prompt, 30, 2);
      const auto from = static_cast<std::ptrdiff_t>(requests.size() % p.prompt.size());
      request.logprob_ids.assign(p.prompt.begin() + from, p.prompt.end());
      request.logprob_ids.resize(std::min<std::size_t>(request.logprob_ids.size(), kMaxLogprobIds));
      requests.push_back(std::move(request));
    }
  }
  std::vector<Told> alone;
  for (const Request& request : requests) {
    alone.push_back(tell({request}, {}).at(0));
    EXPECT_EQ(alone.back().prompt.size(),
              request.prompt.size() - std::min<std::size_t>(request.prompt.size(), 2));
    EXPECT_FALSE(alone.back().logprobs.empty());
    for (const std::vector<Logprobs>* all : {&alone.back().prompt, &alone.back().logprobs}) {
      for (const Logprobs& l : *all) {
        ASSERT_EQ(l.asked.size(), request.logprob_ids.size());
        for (std::size_t i = 0; i < l.asked.size(); ++i) {
          EXPECT_EQ(l.asked[i].id, request.logprob_ids[i]);
          for (const TokenLogprob& top : l.top) {
            if (top.id != l.asked[i].id) continue;
            EXPECT_EQ(top.logprob, l.asked[i].logprob);
          }
        }
      }
    }
  }
  EXPECT_EQ(tell(requests, {.ranks = 3, .max_tokens = 5}), alone);
  EXPECT_EQ(tell(requests, {.max_tokens = 7, .max_kv_tokens = 128}, /*evicts=*/true), alone);
}

TEST(PromptLogprobs, BadRequestsAreRefused) {
  Request request = request_of({1, 2}, 1, -1);
  EXPECT_THROW(check_request(request, 10, 10), ConfigError);
  request.prompt_logprobs_from = 0;
  EXPECT_NO_THROW(check_request(request, 10, 10));
  request.logprob_ids = {0, 9};
  EXPECT_NO_THROW(check_request(request, 10, 10));
  for (const std::int32_t id : {-1, 10}) {
    request.logprob_ids = {0, id};
    EXPECT_THROW(check_request(request, 10, 10), ConfigError) << id;
  }
  request.logprob_ids.assign(kMaxLogprobIds + 1, 0);
  EXPECT_THROW(check_request(request, 10, 10), ConfigError);
  request.logprob_ids = {};
  request.top_logprobs.reset();
  EXPECT_THROW(check_request(request, 10, 10), ConfigError);
  request.prompt_logprobs_from.reset();
  EXPECT_NO_THROW(check_request(request, 10, 10));
  request.logprob_ids = {0};
  EXPECT_THROW(check_request(request, 10, 10), ConfigError);
}

}  // namespace
}  // namespace ferry
