// What single members of requests make of replies, over the demo model.
#include <algorithm>
#include <atomic>
#include <thread>

#include "server/routes_fixture.h"

namespace ferry {
namespace {

using test::Json;
using test::kPrompt;
using test::MaybeAnswer;
using test::Routes;

TEST_F(Routes, ChatsAndStreamsTheSame) {
  const Json body = {{"messages", {{{"role", "user"}, {"content", "What is 12 + 7?"}}}},
                     {"max_tokens", 8}};
  const Json whole = ok("/v1/chat/completions", body);
  const Json message = whole.at("choices")[0].at("message");
  EXPECT_EQ(message.at("role"), "assistant");
  EXPECT_EQ(message.at("content"), " 19") << "the demo model can add";
  std::string text;
  for (const Json& event : stream("/v1/chat/completions", body))
    for (const Json& choice : event.at("choices")) text += choice.at("delta").value("content", "");
  EXPECT_EQ(text, message.at("content"));
}

/// Cases in which clients broke, as they sent them.
TEST_F(Routes, NullMembersAndToolHistoriesChat) {
  for (const char* body :
       {R"({"messages":[{"role":"user","content":"Hi"},{"role":"assistant","content":"Fine",
            "refusal":null,"tool_calls":null,"function_call":null},{"role":"user","content":"Again"}],
            "max_tokens":1})",
        R"({"messages":[{"role":"user","content":"Weather in Bern?"},{"role":"assistant",
            "content":null,"tool_calls":[{"id":"call_1","type":"function","function":
            {"name":"get_weather","arguments":"{\"place\": \"Bern\", \"days\": 2}"}}]},
            {"role":"tool","tool_call_id":"call_1","content":"{\"t\": 21.5}"}],"max_tokens":1})"})
    EXPECT_EQ(post("/v1/chat/completions", body)->status, 200) << body;
}

TEST_F(Routes, TokensOfOneNameDoNotOverwriteEachOther) {
  const Json json =
      ok("/v1/completions",
         {{"prompt", {111, 106}}, {"max_tokens", 2}, {"temperature", 0}, {"logprobs", 20}});
  for (const Json& top : json.at("choices")[0].at("logprobs").at("top_logprobs"))
    EXPECT_EQ(top.size(), 20U) << top;
}

TEST_F(Routes, TextOffsetsCountCharacters) {
  const Json json = ok("/v1/completions",
                       {{"prompt", "Once upon a time \u00e9 \u6e21"},
                        {"max_tokens", 60},
                        {"temperature", 3.0},
                        {"logprobs", 1},
                        {"seed", 1},
                        {"ignore_eos", true}});
  const Json choice = json.at("choices")[0];
  const Json logprobs = choice.at("logprobs");
  const std::string text = choice.at("text");
  const auto characters = [&](std::size_t from) {
    return static_cast<std::size_t>(std::count_if(text.begin() + static_cast<std::ptrdiff_t>(from),
                                                  text.end(),
                                                  [](char c) { return (c & 0xc0) != 0x80; }));
  };
  EXPECT_LT(characters(0), text.size()) << "the test needs others than ASCII";
  std::size_t last = 0;
  for (const Json& offset : logprobs.at("text_offset")) {
    EXPECT_GE(offset.get<std::size_t>(), last);
    last = offset;
  }
  EXPECT_LE(last, characters(0));
  // Where a token is text of its own it stands at its offset.
  std::vector<std::string> all;
  for (const char c : text) {
    if ((c & 0xc0) != 0x80) all.emplace_back();
    all.back() += c;
  }
  for (std::size_t i = 0; i < logprobs.at("tokens").size(); ++i) {
    const std::string token = logprobs.at("tokens")[i];
    if (token.size() != 1) continue;
    EXPECT_EQ(all.at(logprobs.at("text_offset")[i]), token) << i;
  }
}

TEST_F(Routes, StopStringsCanStay) {
  const Json whole = ok("/generate", {{"text", kPrompt}, {"max_tokens", 30}});
  const std::string text = whole.at("text");
  const std::string stop = text.substr(text.size() / 2, 5);
  const std::string wanted = text.substr(0, text.find(stop) + stop.size());
  const Json sglang = {
      {"text", kPrompt}, {"max_tokens", 30}, {"stop", stop}, {"no_stop_trim", true}};
  EXPECT_EQ(ok("/generate", sglang).at("text"), wanted);
  EXPECT_EQ(stream("/generate", sglang).back().at("text"), wanted);
  EXPECT_EQ(ok("/v1/completions",
               {{"prompt", kPrompt},
                {"max_tokens", 30},
                {"stop", stop},
                {"include_stop_str_in_output", true}})
                .at("choices")[0]
                .at("text"),
            wanted);
}

TEST_F(Routes, BadWordsDoNotCome) {
  const Json body = {{"prompt", kPrompt}, {"max_tokens", 20}, {"temperature", 0}};
  const std::string text = ok("/v1/completions", body).at("choices")[0].at("text");
  const std::size_t begin = text.find(' ', 3) + 1;
  const std::string word = text.substr(begin, text.find(' ', begin) - begin);
  Json without = body;
  without["bad_words"] = {word};
  const std::string other = ok("/v1/completions", without).at("choices")[0].at("text");
  EXPECT_EQ(other.find(" " + word + " "), std::string::npos) << word << ": " << other;
  EXPECT_NE(other, text);
}

TEST_F(Routes, EachPromptOfABatchCanHaveItsOwnParameters) {
  const Json params = {{{"max_new_tokens", 3}, {"temperature", 0}},
                       {{"max_new_tokens", 5.0}, {"temperature", 1}, {"seed", 4}}};
  const Json batch =
      ok("/generate", {{"text", {kPrompt, "Question:"}}, {"sampling_params", params}});
  ASSERT_EQ(batch.size(), 2U);
  EXPECT_EQ(batch[0].at("output_ids"),
            ok("/generate", {{"text", kPrompt}, {"sampling_params", params[0]}}).at("output_ids"));
  EXPECT_EQ(
      batch[1].at("output_ids"),
      ok("/generate", {{"text", "Question:"}, {"sampling_params", params[1]}}).at("output_ids"));
  EXPECT_EQ(post("/generate", Json{{"text", kPrompt}, {"sampling_params", params}}.dump())->status,
            400);
}

TEST_F(Routes, TheBestOfManyAreShown) {
  Json body = {{"prompt", kPrompt},
               {"max_tokens", 6},
               {"temperature", 1.5},
               {"seed", 3},
               {"ignore_eos", true}};
  Json many = body;
  many["n"] = 6;
  many["logprobs"] = 0;
  std::vector<std::pair<double, std::string>> all;
  const Json made = ok("/v1/completions", many);
  for (const Json& choice : made.at("choices")) {
    double sum = 0;
    for (const Json& l : choice.at("logprobs").at("token_logprobs")) sum += l.get<double>();
    all.emplace_back(-sum, choice.at("text"));
  }
  std::stable_sort(all.begin(), all.end(), [](auto& a, auto& b) { return a.first < b.first; });
  body["n"] = 2;
  body["best_of"] = 6;
  const Json best = ok("/v1/completions", body);
  ASSERT_EQ(best.at("choices").size(), 2U);
  EXPECT_EQ(best.at("choices")[0].at("text"), all[0].second);
  EXPECT_EQ(best.at("choices")[1].at("text"), all[1].second);
  EXPECT_EQ(best.at("choices")[0].at("logprobs"), nullptr);
  EXPECT_EQ(best.at("usage").at("completion_tokens"), 36) << "of all that were made";
}

TEST_F(Routes, CallsEndWhenTheyAreAborted) {
  for (const bool streams : {false, true}) {
    std::string answer;
    std::thread client([&] {
      answer = post("/generate",
                    Json{{"text", kPrompt},
                         {"max_tokens", 900},
                         {"ignore_eos", true},
                         {"rid", "mine"},
                         {"stream", streams},
                         {"n", 4}}
                        .dump())
                   ->body;
    });
    std::atomic<bool> over = false;
    std::thread aborter([&] {
      while (!over) ok("/abort_request", {{"rid", "mine"}});
    });
    client.join();
    over = true;
    aborter.join();
    EXPECT_NE(answer.find(R"("type":"abort")"), std::string::npos) << streams << answer;
  }
  EXPECT_EQ(ok("/abort_request", {{"rid", "nobody's"}}), Json::object());
  EXPECT_EQ(ok("/abort_request", {{"abort_all", true}}), Json::object());
  EXPECT_EQ(post("/abort_request", "{}")->status, 400);
}

TEST_F(Routes, PromptsThatAreTooLongSayWhatClientsLookFor) {
  const std::string text(3000, 'a');
  for (const auto& [path, name] : {std::pair("/v1/completions", "prompt"), {"/generate", "text"}}) {
    const MaybeAnswer result = post(path, Json{{name, text}}.dump());
    EXPECT_EQ(result->status, 400);
    const Json error = Json::parse(result->body).at("error");
    EXPECT_EQ(error.at("code"), "context_length_exceeded");
    EXPECT_NE(error.at("message").get<std::string>().find("maximum context length is 1024"),
              std::string::npos)
        << error;
  }
  const Json cut =
      ok("/v1/completions", {{"prompt", text}, {"truncate_prompt_tokens", 5}, {"max_tokens", 1}});
  EXPECT_EQ(cut.at("usage").at("prompt_tokens"), 5);
}

TEST_F(Routes, TokenIdsAreShownWhereWanted) {
  const std::vector<std::int32_t> prompt = served->tokenizer().encode(kPrompt);
  Json body = {{"prompt", {kPrompt, "Question:"}},
               {"max_tokens", 5},
               {"temperature", 0},
               {"return_token_ids", true}};
  const Json whole = ok("/v1/completions", body).at("choices");
  EXPECT_EQ(whole[0].at("prompt_token_ids"), prompt);
  EXPECT_EQ(whole[1].at("prompt_token_ids"), served->tokenizer().encode("Question:"));
  EXPECT_EQ(
      whole[0].at("token_ids"),
      ok("/generate", {{"text", kPrompt}, {"max_tokens", 5}, {"temperature", 0}}).at("output_ids"));
  std::vector<Json> ids(2, Json::array());
  std::vector<Json> prompts;
  for (const Json& event : stream("/v1/completions", body)) {
    const Json& choice = event.at("choices")[0];
    for (const Json& id : choice.at("token_ids"))
      ids[choice.at("index").get<std::size_t>()].push_back(id);
    if (choice.contains("prompt_token_ids")) prompts.push_back(choice.at("prompt_token_ids"));
  }
  for (std::size_t i = 0; i < 2; ++i) EXPECT_EQ(ids[i], whole[i].at("token_ids")) << i;
  EXPECT_EQ(prompts.size(), 2U) << "each prompt once";

  Json chat = {{"messages", {{{"role", "user"}, {"content", "Hi"}}}},
               {"max_tokens", 5},
               {"temperature", 0},
               {"return_token_ids", true}};
  const Json answer = ok("/v1/chat/completions", chat);
  EXPECT_FALSE(answer.at("prompt_token_ids").empty());
  EXPECT_EQ(answer.at("choices")[0].at("token_ids").size(),
            answer.at("usage").at("completion_tokens"));
  const std::vector<Json> events = stream("/v1/chat/completions", chat);
  EXPECT_EQ(events.front().at("prompt_token_ids"), answer.at("prompt_token_ids"));
  Json streamed = Json::array();
  for (std::size_t i = 1; i < events.size(); ++i)
    for (const Json& id : events[i].at("choices")[0].at("token_ids")) streamed.push_back(id);
  EXPECT_EQ(streamed, answer.at("choices")[0].at("token_ids"));
}

/// What lm-eval and SGLang's front-end choose answers by.
TEST_F(Routes, PromptsAreToldTheLogprobsThatTheirTokensHad) {
  const Json same = {{"max_new_tokens", 9}, {"temperature", 0}, {"ignore_eos", true}};
  Json body = {{"text", kPrompt},
               {"sampling_params", same},
               {"return_logprob", true},
               {"top_logprobs_num", 2}};
  const Json generated = ok("/generate", body);
  EXPECT_TRUE(generated.at("meta_info").at("input_token_logprobs").empty());
  std::vector<std::int32_t> ids = served->tokenizer().encode(kPrompt);
  const std::size_t before = ids.size();
  for (const Json& id : generated.at("output_ids")) ids.push_back(id);

  Json again = {{"input_ids", ids},
                {"max_new_tokens", 0},
                {"return_logprob", true},
                {"top_logprobs_num", 2},
                {"logprob_start_len", before - 1}};
  const Json meta = ok("/generate", again).at("meta_info");
  const Json input = meta.at("input_token_logprobs");
  ASSERT_EQ(input.size(), 10U);
  EXPECT_EQ(input[0][0], nullptr);
  EXPECT_EQ(Json(input.begin() + 1, input.end()),
            generated.at("meta_info").at("output_token_logprobs"));
  EXPECT_EQ(meta.at("completion_tokens"), 0);
  EXPECT_EQ(meta.at("finish_reason").at("type"), "length");
  EXPECT_EQ(meta.at("input_top_logprobs").size(), 10U);

  const Json echo =
      ok("/v1/completions", {{"prompt", ids}, {"max_tokens", 0}, {"echo", true}, {"logprobs", 1}});
  const Json logprobs = echo.at("choices")[0].at("logprobs");
  ASSERT_EQ(logprobs.at("token_logprobs").size(), ids.size());
  EXPECT_EQ(logprobs.at("token_logprobs")[0], nullptr);
  for (std::size_t i = 0; i < 9; ++i) {
    EXPECT_EQ(logprobs.at("token_logprobs")[before + i], input[i + 1][0]);
    // They were the most probable ones.
    EXPECT_EQ(logprobs.at("top_logprobs")[before + i].begin().value(), input[i + 1][0]);
  }
  EXPECT_EQ(echo.at("choices")[0].at("text"), kPrompt + generated.at("text").get<std::string>());
  EXPECT_EQ(echo.at("usage").at("completion_tokens"), 0);

  const Json told =
      ok("/v1/completions", {{"prompt", ids}, {"max_tokens", 1}, {"prompt_logprobs", 1}})
          .at("choices")[0]
          .at("prompt_logprobs");
  ASSERT_EQ(told.size(), ids.size());
  EXPECT_EQ(told[0], nullptr);
  EXPECT_EQ(told[before].at(std::to_string(ids[before])).at("logprob"), input[1][0]);
  EXPECT_EQ(told[before].at(std::to_string(ids[before])).at("rank"), 1);
}

TEST_F(Routes, EchoStreamsWhatItGivesWhole) {
  for (const int tokens : {0, 1, 7}) {
    const Json body = {{"prompt", {kPrompt, "Two"}},
                       {"max_tokens", tokens},
                       {"temperature", 0},
                       {"echo", true},
                       {"logprobs", 1},
                       {"ignore_eos", true}};
    const Json whole = ok("/v1/completions", body);
    std::vector<std::string> texts(2);
    std::vector<Json> logprobs(2, Json::array());
    for (const Json& event : stream("/v1/completions", body)) {
      for (const Json& choice : event.at("choices")) {
        const std::size_t index = choice.at("index");
        texts[index] += choice.at("text");
        if (choice.at("logprobs").is_null()) continue;
        for (const Json& l : choice.at("logprobs").at("token_logprobs"))
          logprobs[index].push_back(l);
      }
    }
    for (std::size_t i = 0; i < 2; ++i) {
      const Json& choice = whole.at("choices")[i];
      EXPECT_EQ(texts[i], choice.at("text")) << tokens;
      EXPECT_EQ(logprobs[i], choice.at("logprobs").at("token_logprobs")) << tokens;
    }
  }
}

}  // namespace
}  // namespace ferry
