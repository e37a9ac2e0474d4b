// All routes over the demo model, as clients use them.
#include "server/routes_fixture.h"

namespace ferry {
namespace {

using test::get_from;
using test::Json;
using test::kPrompt;
using test::MaybeAnswer;
using test::Routes;

TEST_F(Routes, GenerateTakesTheFlatForm) {
  const MaybeAnswer result = post("/generate", R"({"text": "Hello", "max_tokens": 10})");
  ASSERT_EQ(result->status, 200) << result->body;
  const Json json = Json::parse(result->body);
  const auto ids = json.at("output_ids").get<std::vector<std::int32_t>>();
  EXPECT_LE(ids.size(), 10U);
  EXPECT_EQ(json.at("meta_info").at("completion_tokens"), ids.size());
  EXPECT_EQ(json.at("meta_info").at("prompt_tokens"), served->tokenizer().encode("Hello").size());
  EXPECT_EQ(json.at("text"), served->tokenizer().decode(ids, true));
}

TEST_F(Routes, GenerateTakesSglangsForm) {
  const Json params = {{"max_new_tokens", 12}, {"temperature", 0}};
  const Json one = ok("/generate", {{"text", kPrompt}, {"sampling_params", params}});
  EXPECT_EQ(one.at("output_ids").size(), 12U);
  EXPECT_EQ(one.at("meta_info").at("finish_reason"), (Json{{"type", "length"}, {"length", 12}}));
  const Json by_ids =
      ok("/generate",
         {{"input_ids", served->tokenizer().encode(kPrompt)}, {"sampling_params", params}});
  EXPECT_EQ(by_ids.at("output_ids"), one.at("output_ids"));
  const Json batch = ok("/generate", {{"text", {kPrompt, "3 + 4 ="}}, {"sampling_params", params}});
  ASSERT_EQ(batch.size(), 2U);
  EXPECT_EQ(batch[0].at("output_ids"), one.at("output_ids"));
}

TEST_F(Routes, GenerateStreamsTheSameTokens) {
  const Json body = {{"text", kPrompt}, {"max_tokens", 20}, {"temperature", 0.8}, {"seed", 7}};
  const Json whole = ok("/generate", body);
  const std::vector<Json> events = stream("/generate", body);
  ASSERT_FALSE(events.empty());
  EXPECT_EQ(events.back().at("output_ids"), whole.at("output_ids"));
  EXPECT_EQ(events.back().at("text"), whole.at("text"));
  EXPECT_EQ(events.size(), whole.at("output_ids").size()) << "one event a token";
}

TEST_F(Routes, LogprobsComeWithTheTokens) {
  const Json json = ok("/generate",
                       {{"text", kPrompt},
                        {"max_tokens", 4},
                        {"temperature", 0},
                        {"return_logprob", true},
                        {"top_logprobs_num", 3}});
  const Json& meta = json.at("meta_info");
  ASSERT_EQ(meta.at("output_token_logprobs").size(), 4U);
  for (std::size_t i = 0; i < 4; ++i) {
    EXPECT_LE(meta.at("output_token_logprobs")[i][0], 0);
    EXPECT_EQ(meta.at("output_token_logprobs")[i][1], json.at("output_ids")[i]);
    ASSERT_EQ(meta.at("output_top_logprobs")[i].size(), 3U);
    EXPECT_EQ(meta.at("output_top_logprobs")[i][0], meta.at("output_token_logprobs")[i])
        << "greedy takes the most probable";
  }
}

TEST_F(Routes, CompletionsAreAsOpenAiShapesThem) {
  const Json json = ok(
      "/v1/completions",
      {{"model", "demo-moe"}, {"prompt", kPrompt}, {"max_tokens", 8}, {"n", 2}, {"logprobs", 1}});
  EXPECT_EQ(json.at("object"), "text_completion");
  ASSERT_EQ(json.at("choices").size(), 2U);
  EXPECT_EQ(json.at("choices")[1].at("index"), 1);
  EXPECT_EQ(json.at("choices")[0].at("finish_reason"), "length");
  EXPECT_EQ(json.at("choices")[0].at("logprobs").at("tokens").size(), 8U);
  EXPECT_EQ(json.at("usage").at("completion_tokens"), 16);
  EXPECT_EQ(json.at("usage").at("prompt_tokens"), served->tokenizer().encode(kPrompt).size());
}

TEST_F(Routes, CompletionStreamsAddUpToTheWhole) {
  const Json body = {{"prompt", kPrompt}, {"max_tokens", 24}};
  const Json whole = ok("/v1/completions", body);
  Json streamed = body;
  streamed["stream_options"] = {{"include_usage", true}};
  const std::vector<Json> events = stream("/v1/completions", streamed);
  std::string text;
  for (const Json& event : events)
    for (const Json& choice : event.at("choices")) text += choice.at("text").get<std::string>();
  EXPECT_EQ(text, whole.at("choices")[0].at("text"));
  EXPECT_TRUE(events.back().at("choices").empty());
  for (const char* name : {"prompt_tokens", "completion_tokens", "total_tokens"})
    EXPECT_EQ(events.back().at("usage").at(name), whole.at("usage").at(name));
  EXPECT_EQ(events[events.size() - 2].at("choices")[0].at("finish_reason"),
            whole.at("choices")[0].at("finish_reason"));
}

TEST_F(Routes, StopStringsCutTheTextAlsoInStreams) {
  const Json whole = ok("/generate", {{"text", kPrompt}, {"max_tokens", 30}});
  const std::string text = whole.at("text");
  const std::string stop = text.substr(text.size() / 2, 5);
  const std::string wanted = text.substr(0, text.find(stop));
  const Json body = {{"text", kPrompt}, {"max_tokens", 30}, {"stop", {"never there", stop}}};
  const Json cut = ok("/generate", body);
  EXPECT_EQ(cut.at("text"), wanted);
  EXPECT_EQ(cut.at("meta_info").at("finish_reason"), (Json{{"type", "stop"}, {"matched", stop}}));
  EXPECT_LT(cut.at("output_ids").size(), whole.at("output_ids").size());
  const std::vector<Json> events = stream("/generate", body);
  EXPECT_EQ(events.back().at("text"), wanted);
  EXPECT_EQ(events.back().at("output_ids"), cut.at("output_ids"));
}

TEST_F(Routes, StopIdsEndAndAreNotShown) {
  const Json whole = ok("/generate", {{"text", kPrompt}, {"max_tokens", 10}});
  const std::int32_t stop = whole.at("output_ids")[6];
  const Json cut =
      ok("/generate", {{"text", kPrompt}, {"max_tokens", 10}, {"stop_token_ids", {stop}}});
  EXPECT_EQ(cut.at("output_ids").back(), stop);
  EXPECT_EQ(cut.at("meta_info").at("finish_reason"), (Json{{"type", "stop"}, {"matched", stop}}));
  EXPECT_LT(cut.at("text").get<std::string>().size(), whole.at("text").get<std::string>().size());
}

/// Greedy, so that what comes differs by the members alone.
TEST_F(Routes, PenaltiesBiasesAndBansActOnBothApis) {
  const auto by_sglang = [](const Json& members) {
    Json params = {{"temperature", 0}, {"max_new_tokens", 16}, {"ignore_eos", true}};
    params.update(members);
    return ok("/generate", {{"text", kPrompt}, {"sampling_params", params}});
  };
  const auto by_openai = [](const Json& members) {
    Json body = {{"prompt", kPrompt}, {"temperature", 0}, {"max_tokens", 16}, {"ignore_eos", true}};
    body.update(members);
    return ok("/v1/completions", body).at("choices")[0].at("text");
  };
  const Json plain = by_sglang(Json::object());
  const std::int32_t first = plain.at("output_ids")[0];
  const std::int32_t other = first == 40 ? 41 : 40;
  for (const Json& members : {Json{{"logit_bias", {{std::to_string(first), -100}}}},
                              Json{{"suppress_tokens", {first}}},
                              Json{{"allowed_token_ids", {other, other + 1}}},
                              Json{{"presence_penalty", 2}, {"frequency_penalty", 2}},
                              Json{{"repetition_penalty", 3}}}) {
    const Json json = by_sglang(members);
    EXPECT_NE(json.at("output_ids"), plain.at("output_ids")) << members;
    EXPECT_EQ(json.at("text"), by_openai(members)) << members;
  }
  const Json forced = by_sglang({{"logit_bias", {{std::to_string(other), 100}}}});
  EXPECT_EQ(forced.at("output_ids"), std::vector<std::int32_t>(16, other));
  for (const char* name : {"min_tokens", "min_new_tokens"}) {
    const Json stop = {{"stop_token_ids", {first}}, {name, 5}};
    EXPECT_GE(by_sglang(stop).at("output_ids").size(), 5U) << name;
  }
  EXPECT_EQ(by_sglang({{"stop_token_ids", {first}}}).at("output_ids").size(), 1U);
  const Json neutral = {{"logit_bias", Json::object()},
                        {"presence_penalty", 0.0},
                        {"frequency_penalty", nullptr},
                        {"repetition_penalty", 1},
                        {"min_tokens", 0},
                        {"allowed_token_ids", nullptr}};
  EXPECT_EQ(by_sglang(neutral).at("output_ids"), plain.at("output_ids"));
}

TEST_F(Routes, BadBodiesGet400WithOneLine) {
  const std::vector<std::pair<std::string, std::string>> bad = {
      {"/generate", ""},
      {"/generate", "{"},
      {"/generate", "[]"},
      {"/generate", "{}"},
      {"/generate", R"({"text": "a", "input_ids": [1]})"},
      {"/generate", R"({"text": 5})"},
      {"/generate", R"({"text": ""})"},
      {"/generate", R"({"text": []})"},
      {"/generate", R"({"input_ids": [1, 99999999]})"},
      {"/generate", R"({"input_ids": [1, 2.5]})"},
      {"/generate", R"({"text": "a", "max_tokens": -1})"},
      {"/generate", R"({"text": "a", "max_tokens": 1e30})"},
      {"/generate", R"({"text": "a", "temperature": -1})"},
      {"/generate", R"({"text": "a", "temperature": "hot"})"},
      {"/generate", R"({"text": "a", "sampling_params": []})"},
      {"/generate", R"({"text": "a", "top_p": 0})"},
      {"/generate", R"({"text": "a", "repetition_penalty": 0})"},
      {"/generate", R"({"text": "a", "presence_penalty": "much"})"},
      {"/generate", R"({"text": "a", "frequency_penalty": 2.5})"},
      {"/generate", R"({"text": "a", "max_tokens": 3, "min_new_tokens": 4})"},
      {"/generate", R"({"text": "a", "sampling_params": {"min_new_tokens": -1}})"},
      {"/generate", R"({"text": "a", "min_p": 1.1})"},
      {"/generate", R"({"text": "a", "n": 100000})"},
      {"/generate", R"({"text": "a", "stop": 3})"},
      {"/generate", R"({"text": "a", "return_logprob": true, "top_logprobs_num": 999})"},
      {"/v1/completions", R"({})"},
      {"/v1/completions", R"({"prompt": {"a": 1}})"},
      {"/v1/completions", R"({"prompt": "a", "echo": 1})"},
      {"/v1/completions", R"({"prompt": "a", "prompt_logprobs": 21})"},
      {"/v1/completions", R"({"prompt": "a", "prompt_logprobs": 1, "stream": true})"},
      {"/generate", R"({"text": "a", "logprob_start_len": -2})"},
      {"/v1/completions", R"({"prompt": "a", "logit_bias": {"5": 101}})"},
      {"/v1/completions", R"({"prompt": "a", "logit_bias": {"5": 1, "05": 1}})"},
      {"/v1/completions", R"({"prompt": "a", "logit_bias": {"99999999": 1}})"},
      {"/v1/completions", R"({"prompt": "a", "logit_bias": [5]})"},
      {"/v1/completions", R"({"prompt": "a", "n": 2, "best_of": 1})"},
      {"/v1/completions", R"({"prompt": "a", "best_of": 2, "stream": true})"},
      {"/v1/completions", R"({"prompt": "a", "bad_words": [""]})"},
      {"/v1/completions", R"({"prompt": "a", "truncate_prompt_tokens": 0})"},
      {"/v1/completions", R"({"prompt": "a", "response_format": {"type": "xml"}})"},
      {"/v1/completions", R"({"prompt": "a", "allowed_token_ids": [99999999]})"},
      {"/v1/completions", R"({"prompt": "a", "allowed_token_ids": [7], "suppress_tokens": [7]})"},
      {"/v1/chat/completions", R"({"messages": []})"},
      {"/v1/chat/completions", R"({"messages": "hi"})"},
      {"/tokenize", R"({})"},
      {"/detokenize", R"({"tokens": ["a"]})"},
      {"/detokenize", R"({"tokens": [99999999]})"}};
  for (const auto& [path, body] : bad) {
    const MaybeAnswer result = post(path, body);
    EXPECT_EQ(result->status, 400) << path << " " << body << " " << result->body;
    const std::string message = Json::parse(result->body).at("error").at("message");
    EXPECT_FALSE(message.empty());
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
  }
  EXPECT_EQ(post("/v1/completions", R"({"model": "gpt", "prompt": "a"})")->status, 404);
  const std::string too_long(20000, 'a');
  EXPECT_EQ(post("/generate", Json{{"text", too_long}}.dump())->status, 400);
}

TEST_F(Routes, ModelsAndTokens) {
  EXPECT_EQ(get("/v1/models").at("data")[0].at("id"), "demo-moe");
  EXPECT_EQ(get("/v1/models/demo-moe").at("id"), "demo-moe");
  EXPECT_EQ(get_from(*served, "/v1/models/other")->status, 404);
  EXPECT_EQ(get("/get_model_info").at("is_generation"), true);
  EXPECT_EQ(get("/model_info"), get("/get_model_info"));
  EXPECT_EQ(get("/server_info").at("served_model_name"), "demo-moe");
  EXPECT_GT(get("/get_server_info").at("max_total_num_tokens"), 0);
  EXPECT_EQ(get("/get_load")[0].at("num_reqs"), 0);
  EXPECT_EQ(get("/health_generate").at("status"), "ok");
  EXPECT_EQ(get("/health").at("status"), "ok");
  const Json tokens = ok("/tokenize", {{"prompt", kPrompt}});
  EXPECT_EQ(tokens.at("count"), tokens.at("tokens").size());
  EXPECT_EQ(ok("/detokenize", {{"tokens", tokens.at("tokens")}}).at("prompt"), kPrompt);
}

TEST_F(Routes, RecordedLoadIsWhatTheStepsHad) {
  ok("/start_expert_distribution_record", Json::object());
  EXPECT_EQ(post("/dump_expert_distribution_record", "")->status, 400) << "nothing yet";
  ok("/generate", {{"text", kPrompt}, {"max_tokens", 5}, {"ignore_eos", true}});
  ok("/stop_expert_distribution_record", Json::object());
  ok("/generate", {{"text", kPrompt}, {"max_tokens", 5}});
  const Json dump = get("/dump_expert_distribution_record");
  EXPECT_EQ(dump, ok("/dump_expert_distribution_record", Json::object()));
  EXPECT_EQ(dump.at("logical_count").size(), 5U) << "a prompt step and four of one token";
  EXPECT_FALSE(dump.at("physical_to_logical_map").empty());
  ok("/start_expert_distribution_record", Json::object());
}

TEST_F(Routes, MetricsCount) {
  ok("/generate", {{"text", kPrompt}, {"max_tokens", 3}});
  const MaybeAnswer result = get_from(*served, "/metrics");
  ASSERT_EQ(result->status, 200);
  for (const char* name : {"ferry_requests_finished_total ",
                           "ferry_generation_tokens_total ",
                           "ferry_time_to_first_token_seconds_bucket{",
                           "ferry_expert_balancedness{layer=\"0\"}",
                           R"(ferry_exchange_wait_seconds_total{rank="0",source="1"})",
                           R"(ferry_exchange_rows_received_total{rank="1",source="0"})",
                           "ferry_exchange_straggler_rank -1",
                           "ferry_kv_tokens 0",
                           "ferry_requests_running 0"})
    EXPECT_NE(result->body.find(name), std::string::npos) << name << "\n" << result->body;
}

TEST_F(Routes, MetricsTellHowRequestsEnd) {
  const auto metrics = [] { return get_from(*served, "/metrics")->body; };
  const auto value = [&](const std::string& series) {
    const std::string all = metrics();
    const std::size_t at = all.find("\n" + series + " ");
    return at == std::string::npos ? 0.0 : std::stod(all.substr(at + series.size() + 2));
  };
  const std::vector<std::string> counted = {
      "ferry_requests_finished_total",
      R"(ferry_request_success_total{finished_reason="stop"})",
      R"(ferry_request_success_total{finished_reason="length"})",
      "ferry_requests_cancelled_total",
      "ferry_request_duration_seconds_count",
      "ferry_request_queue_seconds_count",
      "ferry_request_generation_tokens_sum",
      R"(ferry_http_responses_total{code="400",route="/generate"})",
      R"(ferry_http_responses_total{code="404",route="other"})"};
  std::vector<double> before;
  for (const std::string& series : counted) before.push_back(value(series));
  const Json whole = ok("/generate", {{"text", kPrompt}, {"max_tokens", 12}, {"ignore_eos", true}});
  const std::string stop = whole.at("text").get<std::string>().substr(2, 4);
  const Json cut = ok("/generate", {{"text", kPrompt}, {"max_tokens", 12}, {"stop", stop}});
  EXPECT_EQ(cut.at("meta_info").at("finish_reason").at("type"), "stop");
  EXPECT_EQ(post("/generate", "{}")->status, 400);
  EXPECT_EQ(get_from(*served, "/no/such")->status, 404);
  const double tokens = 12 + cut.at("output_ids").size();
  const std::vector<double> more = {2, 1, 1, 0, 2, 2, tokens, 1, 1};
  for (std::size_t i = 0; i < counted.size(); ++i)
    EXPECT_EQ(value(counted[i]) - before[i], more[i]) << counted[i];
  EXPECT_NE(metrics().find(R"(ferry_info{model_name="demo-moe")"), std::string::npos);
}

TEST_F(Routes, BalanceIsUnknownWhereNothingIsCounted) {
  constexpr const char* kSeries = "\nferry_expert_balancedness{";
  ok("/generate", {{"text", kPrompt}, {"max_tokens", 3}});
  EXPECT_NE(get_from(*served, "/metrics")->body.find(kSeries), std::string::npos);
  ok("/start_expert_distribution_record", Json::object());
  EXPECT_EQ(get_from(*served, "/metrics")->body.find(kSeries), std::string::npos);
  EXPECT_TRUE(get("/dashboard/state").at("load").at("balancedness").empty());
  ok("/generate", {{"text", kPrompt}, {"max_tokens", 3}});
  EXPECT_NE(get_from(*served, "/metrics")->body.find(kSeries), std::string::npos);
}

TEST_F(Routes, DashboardIsOnePageWithItsState) {
  const MaybeAnswer page = get_from(*served, "/");
  EXPECT_EQ(page->status, 200);
  EXPECT_EQ(page->body.find("http://"), std::string::npos) << "it must work offline";
  EXPECT_EQ(page->body.find("https://"), std::string::npos);
  ok("/generate", {{"text", kPrompt}, {"max_tokens", 3}});
  const Json state = get("/dashboard/state");
  EXPECT_EQ(state.at("running"), 0);
  EXPECT_GT(state.at("generated"), 0);
  EXPECT_GT(state.at("minute").at("tokens_per_s"), 0);
  EXPECT_GT(state.at("minute").at("first_token_s").at("p50"), 0);
  const Json history = get("/dashboard/history");
  EXPECT_EQ(history.at("seconds"), 10);
  ASSERT_FALSE(history.at("tokens_per_s").empty());
  EXPECT_GT(history.at("in_flight")[0], 0);
  EXPECT_EQ(history.at("errors")[0], 0);
  EXPECT_FALSE(state.at("load").at("experts").empty());
  EXPECT_EQ(state.at("load").at("ranks")[0].size(), 2U);
}

}  // namespace
}  // namespace ferry
