// Anthropic's API: what of a request becomes a chat, and what of a chat's answer becomes a message.
#include <nlohmann/json.hpp>

#include "ferry/core/error.h"
#include "ferry/server/messages_call.h"
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
    static_cast<void>(chat_of_messages(Json::parse(body), /*counts=*/false));
  } catch (const ConfigError& e) {
    return e.what();
  }
  return "";
}

Json whole_or_cut(const std::string& input) {
  const Json whole = Json::parse(input, nullptr, /*allow_exceptions=*/false);
  return whole.is_discarded() ? Json{{"INVALID_JSON", input}} : whole;
}

/// The message that a stream makes up, as Anthropic's clients put it together.
Json message_of(const std::vector<Json>& events) {
  Json message;
  std::vector<std::string> inputs;
  std::vector<std::string> order;
  for (const Json& event : events) {
    const std::string type = event["type"];
    order.push_back(type);
    if (type == "message_start") {
      message = event["message"];
    } else if (type == "content_block_start") {
      EXPECT_EQ(event["index"], message["content"].size());
      message["content"].push_back(event["content_block"]);
      inputs.emplace_back();
    } else if (type == "content_block_delta") {
      Json& block = message["content"].at(event["index"].get<std::size_t>());
      const Json& delta = event["delta"];
      if (delta["type"] == "input_json_delta") {
        inputs.at(event["index"].get<std::size_t>()) += delta["partial_json"].get<std::string>();
      } else {
        const char* name = delta["type"] == "text_delta" ? "text" : "thinking";
        block[name] = block[name].get<std::string>() + delta[name].get<std::string>();
      }
    } else if (type == "message_delta") {
      message.update(event["delta"]);
      message["usage"] = event["usage"];
    }
  }
  EXPECT_EQ(order.front(), "message_start");
  EXPECT_EQ(order.back(), "message_stop");
  for (std::size_t i = 0; i < inputs.size(); ++i)
    if (!inputs[i].empty()) message["content"][i]["input"] = whole_or_cut(inputs[i]);
  return message;
}

/// What two messages of the same request share, in any order of members.
test::Json without_ids(Json message) {
  message.erase("id");
  for (Json& block : message["content"]) block.erase("id");
  message["usage"].erase("cache_read_input_tokens");
  message["usage"].erase("input_tokens");
  return message;
}

TEST(Messages, BecomeTheChatThatTheyMean) {
  const Json chat = chat_of_messages(Json::parse(R"({
    "model": "m", "max_tokens": 9, "temperature": 0.5, "top_k": 4, "top_p": 0.9, "min_p": 0.1,
    "stream": true, "stop_sequences": ["a"], "metadata": {"user_id": "u"},
    "system": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief.",
                "cache_control": {"type": "ephemeral"}}],
    "thinking": {"type": "enabled", "budget_tokens": 2048},
    "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": {"type": "object"}}},
    "tools": [{"name": "f", "description": "d", "input_schema": {"type": "object"}}],
    "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": true},
    "messages": [
      {"role": "user", "content": "Hi"},
      {"role": "assistant", "content": [
        {"type": "thinking", "thinking": "Hm.", "signature": ""}, {"type": "redacted_thinking", "data": "x"},
        {"type": "text", "text": "I look."}, {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}}]},
      {"role": "user", "content": [
        {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "no"}], "is_error": true},
        {"type": "text", "text": "And "}, {"type": "text", "text": "now?"}]}]})"),
                                     /*counts=*/false);
  EXPECT_EQ(chat["messages"], Json::parse(R"([
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "I look.", "reasoning_content": "Hm.", "tool_calls": [
      {"id": "t1", "type": "function", "function": {"name": "f", "arguments": "{\"a\":1}"}}]},
    {"role": "tool", "tool_call_id": "t1", "content": "Error: no"},
    {"role": "user", "content": "And now?"}])"));
  EXPECT_EQ(chat["tools"], Json::parse(R"([{"type": "function", "function":
    {"name": "f", "description": "d", "parameters": {"type": "object"}}}])"));
  EXPECT_EQ(chat["tool_choice"], Json::parse(R"({"type": "function", "function": {"name": "f"}})"));
  EXPECT_EQ(chat["parallel_tool_calls"], false);
  EXPECT_EQ(chat["chat_template_kwargs"], (Json{{"enable_thinking", true}, {"thinking", true}}));
  EXPECT_EQ(chat["reasoning_effort"], "low");
  EXPECT_EQ(chat["response_format"]["type"], "json_schema");
  EXPECT_EQ(chat_of_messages(
                Json::parse(R"({"max_tokens": 1, "messages": [{"role": "user", "content": "Hi"}],
                "output_format": {"type": "json_schema", "schema": {"type": "object"}}})"),
                /*counts=*/false)["response_format"],
            chat["response_format"]);
  EXPECT_EQ(chat["stop"], Json::array({"a"}));
  EXPECT_EQ(chat["user"], "u");
  for (const char* name :
       {"model", "max_tokens", "temperature", "top_k", "top_p", "min_p", "stream"})
    EXPECT_TRUE(chat.contains(name)) << name;
  EXPECT_FALSE(chat.contains("continue_final_message"));
}

TEST(Messages, SayWhatTheyCannotBe) {
  const std::string image = R"({"type": "image", "source": {"type": "url", "url": "x"}})";
  const auto with = [](const std::string& members) {
    return R"({"max_tokens": 4, "messages": [{"role": "user", "content": "x"}], )" + members + "}";
  };
  const auto saying = [](const std::string& role, const std::string& content) {
    return R"({"max_tokens": 4, "messages": [{"role": ")" + role + R"(", "content": )" + content +
           "}]}";
  };
  for (const auto& [body, part] : std::vector<std::pair<std::string, std::string>>{
           {R"({"messages": [{"role": "user", "content": "x"}]})", "max_tokens"},
           {R"({"max_tokens": 4})", "messages"},
           {R"({"max_tokens": 4, "messages": []})", "messages"},
           {saying("critic", R"("x")"), "critic"},
           {saying("user", "7"), "content"},
           {saying("user", "[" + image + "]"), "image"},
           {saying("user",
                   R"([{"type": "tool_result", "tool_use_id": "1", "content": [)" + image + "]}]"),
            "image"},
           {saying("user", R"([{"type": "tool_use", "id": "1", "name": "f", "input": {}}])"),
            "tool_use"},
           {saying("assistant", R"([{"type": "tool_use", "id": "1", "name": "f", "input": {}}])"),
            "last message"},
           {saying("assistant", R"(" ")"), "last message"},
           {with(R"("system": 7)"), "system"},
           {with(R"("tools": [{"type": "web_search_20250305", "name": "web_search"}])"),
            "web_search"},
           {with(R"("tool_choice": {"type": "sometimes"})"), "sometimes"},
           {with(R"("thinking": {"type": "much"})"), "much"},
           {with(R"("thinking": {"type": "enabled"}, "chat_template_kwargs": 7)"), "object"},
           {with(R"("output_config": {"format": {"type": "xml"}})"), "xml"},
           {with(R"("output_format": {"type": "xml"})"), "output_format"},
           {with(R"("output_format": {"type": "json_schema", "schema": {}},
                    "output_config": {"format": {"type": "json_schema", "schema": {}}})"),
            "give one"},
           {with(R"("mcp_servers": [{"url": "x"}])"), "mcp_servers"}}) {
    EXPECT_NE(refusal_of(body).find(part), std::string::npos) << body << ": " << refusal_of(body);
  }
}

TEST_F(Routes, MessagesAnswerAndStreamTheSame) {
  const test::Json body = {{"model", "demo-moe"},
                           {"max_tokens", 8},
                           {"messages", {{{"role", "user"}, {"content", "What is 12 + 7?"}}}}};
  const test::Json whole = ok("/v1/messages", body);
  EXPECT_EQ(whole.at("type"), "message");
  EXPECT_EQ(whole.at("role"), "assistant");
  EXPECT_TRUE(whole.at("id").get<std::string>().starts_with("msg_"));
  EXPECT_EQ(whole.at("content"), (test::Json::array({{{"type", "text"}, {"text", " 19"}}})));
  EXPECT_EQ(whole.at("stop_reason"), "end_turn");
  EXPECT_TRUE(whole.at("stop_sequence").is_null());
  const auto total = [](const auto& usage) {
    return usage["input_tokens"].template get<int>() +
           usage["cache_read_input_tokens"].template get<int>();
  };
  test::Json streams = body;
  streams["stream"] = true;
  const MaybeAnswer stream = post("/v1/messages", streams.dump());
  EXPECT_EQ(stream->content_type, "text/event-stream");
  const Json message = message_of(test::named_events(stream->body));
  EXPECT_EQ(without_ids(message), without_ids(Json::parse(whole.dump())));
  EXPECT_EQ(total(message["usage"]), total(whole["usage"]));
  test::Json counts = body;
  counts.erase("max_tokens");
  EXPECT_EQ(ok("/v1/messages/count_tokens", counts),
            (test::Json{{"input_tokens", total(whole["usage"])}}));
}

TEST_F(Routes, MessagesEndForTheReasonThatTheyTell) {
  const auto ask = [&](test::Json body) {
    body["messages"] = {{{"role", "user"}, {"content", "What is 12 + 7?"}}};
    return ok("/v1/messages", body);
  };
  EXPECT_EQ(ask({{"max_tokens", 1}}).at("stop_reason"), "max_tokens");
  const test::Json stopped = ask({{"max_tokens", 8}, {"stop_sequences", {"9"}}});
  EXPECT_EQ(stopped.at("stop_reason"), "stop_sequence");
  EXPECT_EQ(stopped.at("stop_sequence"), "9");
  EXPECT_EQ(stopped.at("content")[0].at("text"), " 1");
  EXPECT_EQ(ask({{"max_tokens", 100000}, {"ignore_eos", true}}).at("stop_reason"),
            "model_context_window_exceeded");
}

TEST_F(Routes, MessagesGoOnWithWhatTheAssistantHasBegun) {
  const test::Json message = ok("/v1/messages",
                                {{"max_tokens", 8},
                                 {"messages",
                                  {{{"role", "user"}, {"content", "What is 12 + 7?"}},
                                   {{"role", "assistant"}, {"content", " 1"}}}}});
  EXPECT_EQ(message.at("content")[0].at("text"), "9");
}

TEST_F(Routes, MessagesAreRefusedInAnthropicsShape) {
  const auto error = [&](const std::string& path, const std::string& body, int status) {
    const MaybeAnswer answer = post(path, body);
    EXPECT_EQ(answer->status, status) << answer->body;
    const test::Json json = test::Json::parse(answer->body);
    EXPECT_EQ(json.at("type"), "error");
    EXPECT_FALSE(json.at("error").at("message").get<std::string>().empty());
    return json.at("error").at("type").get<std::string>();
  };
  EXPECT_EQ(error("/v1/messages", "{", 400), "invalid_request_error");
  EXPECT_EQ(error("/v1/messages/count_tokens", "{}", 400), "invalid_request_error");
  const std::string message = R"("messages": [{"role": "user", "content": "x"}])";
  EXPECT_EQ(error("/v1/messages", R"({"model": "claude", "max_tokens": 1, )" + message + "}", 404),
            "not_found_error");
  const std::string too_many(4000, '1');
  const std::string too_long =
      R"({"max_tokens": 1, "messages": [{"role": "user", "content": ")" + too_many + R"("}]})";
  EXPECT_EQ(error("/v1/messages", too_long, 400), "invalid_request_error");
  EXPECT_EQ(post("/v1/messages/count_tokens", too_long)->status, 200);
}

class MessagesOffline : public testing::Test {
 protected:
  static std::string post(const test::OfflineRoutes& routes, Json body) {
    body["messages"] = {{{"role", "user"}, {"content", "x"}}};
    body["max_tokens"] = 120;
    return test::text_of(routes.post("/v1/messages", body.dump()));
  }
};

TEST_F(MessagesOffline, CallsAreBlocksOfTheirOwn) {
  if (!Grammars::built_in()) GTEST_SKIP() << "this build has no grammars";
  const test::OfflineRoutes routes(256);
  Json body{{"temperature", 2}, {"tool_choice", {{"type", "any"}}}, {"tools", Json::parse(R"([
    {"name": "weather", "input_schema": {"type": "object", "properties":
      {"place": {"enum": ["Bern", "Rome"]}}, "required": ["place"], "additionalProperties": false}}])")}};
  int whole = 0;
  for (int seed = 0; seed < 32 && whole < 2; ++seed) {  // not all come to an end
    body["seed"] = seed;
    body["stream"] = false;
    const Json message = Json::parse(post(routes, body));
    body["stream"] = true;
    EXPECT_EQ(without_ids(message_of(test::named_events(post(routes, body)))),
              without_ids(message));
    if (message["stop_reason"] == "max_tokens") continue;
    ++whole;
    EXPECT_EQ(message["stop_reason"], "tool_use");
    for (const Json& block : message["content"]) {
      EXPECT_EQ(block["type"], "tool_use");
      EXPECT_EQ(block["name"], "weather");
      EXPECT_TRUE(block["input"]["place"] == "Bern" || block["input"]["place"] == "Rome") << block;
    }
  }
  EXPECT_GT(whole, 0);
}

TEST_F(MessagesOffline, ThoughtsAreBlocksUnlessTheyAreOmitted) {
  const test::OfflineRoutes routes(256, find_thinking_style("deepseek_r1", ""));
  const Json message = Json::parse(post(routes, {{"temperature", 0}}));
  ASSERT_EQ(message["content"].size(), 1U);  // it never ends its thought
  EXPECT_EQ(message["content"][0]["type"], "thinking");
  EXPECT_FALSE(message["content"][0]["thinking"].get<std::string>().empty());
  const std::string stream = post(routes, {{"temperature", 0}, {"stream", true}});
  EXPECT_EQ(without_ids(message_of(test::named_events(stream))), without_ids(message));
  const Json omitted = {{"type", "adaptive"}, {"display", "omitted"}};
  EXPECT_EQ(Json::parse(post(routes, {{"temperature", 0}, {"thinking", omitted}}))["content"],
            Json::array());
}

}  // namespace
}  // namespace ferry
