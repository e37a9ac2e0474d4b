// OpenAI's responses: what of a request becomes a chat, and what of a chat's answer becomes items.
#include <nlohmann/json.hpp>

#include "ferry/core/error.h"
#include "ferry/server/responses_call.h"
#include "ferry/text/answer/answer_parser.h"
#include "ferry/text/grammars.h"
#include "server/named_events.h"
#include "server/offline_routes.h"
#include "server/routes_fixture.h"

namespace ferry {
namespace {

using Json = nlohmann::ordered_json;
using test::MaybeAnswer;
using test::Routes;

std::string refusal_of(const std::string& body) {
  try {
    static_cast<void>(chat_of_responses(Json::parse(body)));
  } catch (const ConfigError& e) {
    return e.what();
  }
  return "";
}

/// The items that a stream's small events make up; each must be what its own end and the response
/// say.
Json output_of(const std::vector<Json>& events) {
  Json texts = Json::array();
  Json items = Json::array();
  for (std::size_t i = 0; i < events.size(); ++i) {
    const Json& event = events[i];
    EXPECT_EQ(event["sequence_number"], i);
    const std::string type = event["type"];
    if (type == "response.output_item.added") {
      EXPECT_EQ(event["output_index"], texts.size());
      texts.push_back("");
    } else if (type.ends_with(".delta")) {
      Json& text = texts.at(event["output_index"].get<std::size_t>());
      text = text.get<std::string>() + event["delta"].get<std::string>();
    } else if (type == "response.output_text.done" || type == "response.reasoning_text.done") {
      EXPECT_EQ(event["text"], texts.at(event["output_index"].get<std::size_t>()));
    } else if (type == "response.function_call_arguments.done") {
      EXPECT_EQ(event["arguments"], texts.at(event["output_index"].get<std::size_t>()));
    } else if (type == "response.output_item.done") {
      items.push_back(event["item"]);
    }
  }
  EXPECT_EQ(events.front()["type"], "response.created");
  EXPECT_EQ(events.front()["response"]["status"], "in_progress");
  const Json& last = events.back()["response"];
  EXPECT_EQ(events.back()["type"], "response." + last["status"].get<std::string>());
  EXPECT_EQ(items.size(), last["output"].size());
  for (std::size_t i = 0; i < items.size(); ++i) {
    items[i]["status"] = last["output"][i]["status"];  // the last one may be incomplete
    EXPECT_EQ(items[i], last["output"][i]);
  }
  return items;
}

/// In any order of members.
test::Json without_ids(Json items) {
  for (Json& item : items)
    for (const char* name : {"id", "call_id"}) item.erase(name);
  return items;
}

TEST(Responses, BecomeTheChatThatTheyMean) {
  const Json chat = chat_of_responses(Json::parse(R"({
    "model": "m", "max_output_tokens": 9, "temperature": 0.5, "top_p": 0.9, "min_p": 0.1,
    "stream": true, "store": true, "user": "u", "instructions": "Be brief.",
    "reasoning": {"effort": "low", "summary": "auto"},
    "include": ["reasoning.encrypted_content", "message.output_text.logprobs"], "top_logprobs": 2,
    "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}},
    "tools": [{"type": "function", "name": "f", "description": "d", "parameters": {"type": "object"}}],
    "tool_choice": {"type": "function", "name": "f"}, "parallel_tool_calls": false,
    "input": [
      {"role": "developer", "content": "Rules."},
      {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
      {"type": "reasoning", "id": "r", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
      {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look.",
        "annotations": []}]},
      {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{\"a\":1}"},
      {"type": "function_call", "call_id": "c2", "name": "f", "arguments": "{}"},
      {"type": "function_call_output", "call_id": "c1", "output": "1"},
      {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "2"}]},
      {"role": "assistant", "content": "One."}, {"role": "assistant", "content": "Two."}]})"));
  EXPECT_EQ(chat["messages"], Json::parse(R"([
    {"role": "system", "content": "Be brief."},
    {"role": "developer", "content": "Rules."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "I look.", "reasoning_content": "Hm.", "tool_calls": [
      {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"a\":1}"}},
      {"id": "c2", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
    {"role": "tool", "tool_call_id": "c1", "content": "1"},
    {"role": "tool", "tool_call_id": "c2", "content": "2"},
    {"role": "assistant", "content": "One."}, {"role": "assistant", "content": "Two."}])"));
  EXPECT_EQ(chat["tools"], Json::parse(R"([{"type": "function", "function":
    {"name": "f", "description": "d", "parameters": {"type": "object"}}}])"));
  EXPECT_EQ(chat["tool_choice"], Json::parse(R"({"type": "function", "function": {"name": "f"}})"));
  EXPECT_EQ(chat["max_completion_tokens"], 9);
  EXPECT_EQ(chat["reasoning_effort"], "low");
  EXPECT_EQ(chat["response_format"]["schema"]["type"], "object");
  EXPECT_EQ(chat["logprobs"], true);
  for (const char* name : {"model",
                           "temperature",
                           "top_p",
                           "min_p",
                           "stream",
                           "user",
                           "top_logprobs",
                           "parallel_tool_calls"})
    EXPECT_TRUE(chat.contains(name)) << name;
}

TEST(Responses, SayWhatTheyCannotBe) {
  const auto with = [](const std::string& members) { return R"({"input": "x", )" + members + "}"; };
  const auto of = [](const std::string& item) { return R"({"input": [)" + item + "]}"; };
  for (const auto& [body, part] : std::vector<std::pair<std::string, std::string>>{
           {"{}", "input"},
           {R"({"input": []})", "input"},
           {R"({"input": 7})", "input"},
           {of("7"), "object"},
           {of(R"({"role": "user"})"), "content"},
           {of(R"({"role": "user", "content": [{"type": "input_image", "image_url": "x"}]})"),
            "input_image"},
           {of(R"({"type": "function_call_output", "call_id": "1"})"), "output"},
           {of(R"({"type": "item_reference", "id": "x"})"), "item_reference"},
           {of(R"({"type": "web_search_call", "id": "x"})"), "web_search_call"},
           {with(R"("tools": [{"type": "web_search"}])"), "web_search"},
           {with(R"("tools": {"type": "function"})"), "tools"},
           {with(R"("tool_choice": {"type": "allowed_tools", "mode": "auto"})"), "allowed_tools"},
           {with(R"("text": {"verbosity": "low"})"), "verbosity"},
           {with(R"("text": {"format": 7})"), "object"},
           {with(R"("previous_response_id": "resp_1")"), "previous_response_id"},
           {with(R"("conversation": "c")"), "conversation"},
           {with(R"("background": true)"), "background"},
           {with(R"("max_tokens": 7)"), "max_tokens"}}) {
    EXPECT_NE(refusal_of(body).find(part), std::string::npos) << body << ": " << refusal_of(body);
  }
}

TEST_F(Routes, ResponsesAnswerAndStreamTheSame) {
  test::Json body = {{"model", "demo-moe"},
                     {"input", "What is 12 + 7?"},
                     {"include", {"message.output_text.logprobs"}},
                     {"metadata", {{"a", "b"}}}};
  const test::Json whole = ok("/v1/responses", body);
  EXPECT_EQ(whole.at("object"), "response");
  EXPECT_EQ(whole.at("status"), "completed");
  EXPECT_EQ(whole.at("metadata"), (test::Json{{"a", "b"}}));
  EXPECT_EQ(whole.at("store"), false);
  ASSERT_EQ(whole.at("output").size(), 1U);
  const test::Json& item = whole.at("output")[0];
  EXPECT_EQ(item.at("type"), "message");
  EXPECT_EQ(item.at("role"), "assistant");
  EXPECT_EQ(item.at("content")[0].at("type"), "output_text");
  EXPECT_EQ(item.at("content")[0].at("text"), " 19");
  const test::Json& usage = whole.at("usage");
  EXPECT_EQ(usage.at("total_tokens"),
            usage.at("input_tokens").get<int>() + usage.at("output_tokens").get<int>());
  EXPECT_EQ(item.at("content")[0].at("logprobs").size(), usage.at("output_tokens"));
  body["stream"] = true;
  const MaybeAnswer stream = post("/v1/responses", body.dump());
  EXPECT_EQ(stream->content_type, "text/event-stream");
  const Json items = output_of(test::named_events(stream->body));
  EXPECT_EQ(without_ids(items), without_ids(Json::parse(whole.at("output").dump())));
}

TEST_F(Routes, ResponsesThatAreCutOffAreIncomplete) {
  const test::Json cut =
      ok("/v1/responses", {{"input", "What is 12 + 7?"}, {"max_output_tokens", 1}});
  EXPECT_EQ(cut.at("status"), "incomplete");
  EXPECT_EQ(cut.at("incomplete_details").at("reason"), "max_output_tokens");
  EXPECT_EQ(cut.at("usage").at("output_tokens"), 1);
  EXPECT_EQ(post("/v1/responses", R"({"input": "x", "model": "gpt"})")->status, 404);
  EXPECT_EQ(post("/v1/responses", R"({"input": "x", "background": true})")->status, 400);
}

class ResponsesOffline : public testing::Test {
 protected:
  static std::string post(const test::OfflineRoutes& routes, Json body) {
    body["input"] = "x";
    body["max_output_tokens"] = 120;
    return test::text_of(routes.post("/v1/responses", body.dump()));
  }
};

TEST_F(ResponsesOffline, CallsAreItemsOfTheirOwn) {
  if (!Grammars::built_in()) GTEST_SKIP() << "this build has no grammars";
  const test::OfflineRoutes routes(256);
  Json body{{"temperature", 2}, {"tool_choice", "required"}, {"tools", Json::parse(R"([
    {"type": "function", "name": "weather", "parameters": {"type": "object", "properties":
      {"place": {"enum": ["Bern", "Rome"]}}, "required": ["place"], "additionalProperties": false}}])")}};
  int whole = 0;
  for (int seed = 0; seed < 32 && whole < 2; ++seed) {  // not all come to an end
    body["seed"] = seed;
    body["stream"] = false;
    const Json response = Json::parse(post(routes, body));
    body["stream"] = true;
    EXPECT_EQ(without_ids(output_of(test::named_events(post(routes, body)))),
              without_ids(response["output"]));
    if (response["status"] != "completed") continue;
    ++whole;
    for (const Json& item : response["output"]) {
      EXPECT_EQ(item["type"], "function_call");
      EXPECT_EQ(item["name"], "weather");
      const Json place = Json::parse(item["arguments"].get<std::string>())["place"];
      EXPECT_TRUE(place == "Bern" || place == "Rome") << item;
    }
  }
  EXPECT_GT(whole, 0);
}

TEST_F(ResponsesOffline, ThoughtsAreItemsOfTheirOwn) {
  const test::OfflineRoutes routes(256, find_thinking_style("deepseek_r1", ""));
  const Json response = Json::parse(post(routes, {{"temperature", 0}}));
  ASSERT_EQ(response["output"].size(), 1U);  // it never ends its thought
  EXPECT_EQ(response["output"][0]["type"], "reasoning");
  EXPECT_EQ(response["output"][0]["content"][0]["type"], "reasoning_text");
  EXPECT_GT(response["usage"]["output_tokens_details"]["reasoning_tokens"], 0);
  const std::string stream = post(routes, {{"temperature", 0}, {"stream", true}});
  EXPECT_EQ(without_ids(output_of(test::named_events(stream))), without_ids(response["output"]));
}

}  // namespace
}  // namespace ferry
