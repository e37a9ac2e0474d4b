// Tools and thoughts of chats. The demo model knows neither, so that what it is made to say by a
// grammar is what there is to take apart; parsers of families are tested over texts of theirs
// (tests/text).
#include "ferry/server/tools.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "ferry/core/error.h"
#include "ferry/text/grammars.h"
#include "server/offline_routes.h"
#include "support/json_validator.h"

namespace ferry {
namespace {

using Json = nlohmann::ordered_json;

const Json& weather() {
  static const Json tool = Json::parse(R"({"type": "function", "function": {"name": "weather",
    "parameters": {"type": "object", "properties": {"place": {"$ref": "#/$defs/place"},
      "days": {"type": "integer", "minimum": 1, "maximum": 9}}, "required": ["place", "days"],
      "additionalProperties": false,
      "$defs": {"place": {"enum": ["Bern", "Rome"]}}}}})");
  return tool;
}

const Json& now() {
  static const Json tool = Json::parse(R"({"type": "function", "function": {"name": "now"}})");
  return tool;
}

ServedModel model_of(const char* calls, const char* thinking) {
  ServedModel model;
  model.calls = find_call_style(calls, "");
  model.thinking = find_thinking_style(thinking, "");
  return model;
}

AnswerPlan plan_of(const ServedModel& model,
                   const Json& body,
                   const std::string& prompt = "",
                   GenerationSettings* settings = nullptr) {
  GenerationSettings own;
  AnswerPlan plan(JsonFields(body), model);
  plan.settle(prompt, model, settings == nullptr ? own : *settings);
  return plan;
}

std::string refusal_of(const ServedModel& model, const Json& body) {
  try {
    static_cast<void>(plan_of(model, body));
  } catch (const ConfigError& e) {
    return e.what();
  }
  return "";
}

/// Of a stream that comes in pieces of `size`.
Json streamed(const AnswerPlan& plan, const std::string& text, std::size_t size) {
  ChatAnswer answer(plan);
  Json message{{"content", ""}, {"reasoning_content", ""}, {"tool_calls", Json::array()}};
  for (std::size_t at = 0; at < text.size(); at += size) {
    const Json delta = answer.put(text.substr(at, size), at + size >= text.size());
    for (const char* name : {"content", "reasoning_content"})
      if (delta.contains(name))
        message[name] = message[name].get<std::string>() + delta[name].get<std::string>();
    for (const Json& call : delta.value("tool_calls", Json::array())) {
      const std::size_t index = call["index"];
      if (call.contains("id")) {
        EXPECT_EQ(index, message["tool_calls"].size());
        message["tool_calls"].push_back({{"name", call["function"]["name"]}, {"arguments", ""}});
      }
      Json& whole = message["tool_calls"].at(index)["arguments"];
      whole = whole.get<std::string>() + call["function"]["arguments"].get<std::string>();
    }
  }
  return message;
}

TEST(Tools, CallsAndThoughtsComeApartInStreamsAsInWhole) {
  const ServedModel model = model_of("hermes", "qwen3");
  const std::string text =
      "<think>Hm.</think>\nI look.\n<tool_call>{\"name\": \"weather\", \"arguments\": {\"place\": "
      "\"Bern\"}}</tool_call>\n<tool_call>{\"name\": \"now\", \"arguments\": {}}</tool_call>";
  const AnswerPlan plan = plan_of(model, {{"tools", {weather(), now()}}});
  ChatAnswer whole(plan);
  whole.put(text, /*last=*/true);
  const Json message = whole.message();
  EXPECT_EQ(message["content"], "I look.");
  EXPECT_EQ(message["reasoning_content"], "Hm.");
  ASSERT_EQ(message["tool_calls"].size(), 2U);
  EXPECT_EQ(message["tool_calls"][0]["type"], "function");
  EXPECT_EQ(message["tool_calls"][0]["function"]["arguments"], R"({"place": "Bern"})");
  EXPECT_NE(message["tool_calls"][0]["id"], message["tool_calls"][1]["id"]);
  EXPECT_EQ(whole.finish_reason("stop"), "tool_calls");
  EXPECT_EQ(whole.finish_reason("length"), "length");
  for (std::size_t size = 1; size < 20; ++size) {
    const Json parts = streamed(plan, text, size);
    EXPECT_EQ(parts["content"], "I look.");
    EXPECT_EQ(parts["reasoning_content"], "Hm.");
    EXPECT_EQ(parts["tool_calls"],
              Json::parse(R"([{"name": "weather", "arguments": "{\"place\": \"Bern\"}"},
                              {"name": "now", "arguments": "{}"}])"));
  }
}

TEST(Tools, OneCallAloneIsShownWhereOneIsWanted) {
  const AnswerPlan plan =
      plan_of(model_of("hermes", "none"), {{"tools", {now()}}, {"parallel_tool_calls", false}});
  const std::string call = "<tool_call>{\"name\": \"now\", \"arguments\": {}}</tool_call>";
  ChatAnswer answer(plan);
  answer.put(call + call, /*last=*/true);
  EXPECT_EQ(answer.message()["tool_calls"].size(), 1U);
  EXPECT_TRUE(answer.message()["content"].is_null());
}

TEST(Tools, ThoughtsAreShownAsTheClientWants) {
  const ServedModel model = model_of("none", "deepseek_r1");
  const std::string text = "Hm.</think>Yes.";
  const auto message = [&](const Json& body) {
    const AnswerPlan plan = plan_of(model, body, "<think>\n");
    ChatAnswer answer(plan);
    answer.put(text, /*last=*/true);
    return answer.message();
  };
  EXPECT_EQ(message(Json::object())["reasoning_content"], "Hm.");
  EXPECT_EQ(message({{"include_reasoning", false}}),
            (Json{{"role", "assistant"}, {"content", "Yes."}}));
  EXPECT_EQ(message({{"separate_reasoning", false}}),
            (Json{{"role", "assistant"}, {"content", text}}));
}

TEST(Tools, WhatCannotBeIsRefusedByName) {
  const ServedModel none = model_of("none", "none");
  const ServedModel hermes = model_of("hermes", "none");
  EXPECT_NE(refusal_of(none, {{"tools", {now()}}}).find("--tool-call-parser"), std::string::npos);
  for (const auto& [body, part] : std::vector<std::pair<Json, std::string>>{
           {{{"tools", "x"}}, "tools"},
           {{{"tools", {{{"type", "web_search"}}}}}, "web_search"},
           {{{"tools", {{{"type", "function"}}}}}, "function"},
           {{{"tools", {{{"type", "function"}, {"function", Json::object()}}}}}, "name"},
           {{{"tools", {now(), now()}}}, "two"},
           {{{"tool_choice", "required"}}, "tools"},
           {{{"tools", {now()}}, {"tool_choice", "sometimes"}}, "sometimes"},
           {{{"tools", {now()}},
             {"tool_choice", {{"type", "function"}, {"function", {{"name", "f"}}}}}},
            "\"f\""}}) {
    const std::string message = refusal_of(hermes, body);
    EXPECT_NE(message.find(part), std::string::npos) << body << ": " << message;
  }
  GenerationSettings settings;
  settings.processors = {{.name = "grammar", .integers = {0}, .numbers = {}}};
  EXPECT_THROW(plan_of(hermes, {{"tools", {now()}}}, "", &settings), ConfigError);
  EXPECT_NO_THROW(plan_of(hermes, {{"tools", {now()}}, {"tool_choice", "none"}}, "", &settings));
  EXPECT_EQ(AnswerPlan(JsonFields(Json{{"tools", {now()}}, {"tool_choice", "none"}}), none).tools(),
            nullptr);
}

class ForcedCalls : public testing::Test {
 protected:
  void SetUp() override {
    if (!Grammars::built_in()) GTEST_SKIP() << "this build has no grammars";
  }

  Json answer(Json body, bool thinks = false) const {
    body["messages"] = {{{"role", "user"}, {"content", "Weather?"}}};
    body["max_tokens"] = 120;
    body["temperature"] = 2;  // else a model that likes blanks never ends
    if (!body.contains("seed")) body["seed"] = 3;
    const test::OfflineRoutes& routes = thinks ? thinking_ : routes_;
    return Json::parse(
        test::text_of(routes.post("/v1/chat/completions", body.dump())))["choices"][0];
  }

  test::OfflineRoutes routes_{256};
  test::OfflineRoutes thinking_{256, find_thinking_style("deepseek_r1", "")};
};

TEST_F(ForcedCalls, AreOfTheToolsAndKeepToTheirSchemas) {
  int whole = 0;
  for (int i = 0; i < 8; ++i) {
    const bool parallel = i % 2 == 0;
    const Json choice = answer({{"tools", {weather(), now()}},
                                {"seed", i},
                                {"tool_choice", "required"},
                                {"parallel_tool_calls", parallel}});
    if (choice["finish_reason"] == "length") continue;
    ++whole;
    EXPECT_EQ(choice["finish_reason"], "tool_calls");
    const Json& calls = choice["message"]["tool_calls"];
    ASSERT_GE(calls.size(), 1U);
    if (!parallel) {
      EXPECT_EQ(calls.size(), 1U);
    }
    for (const Json& call : calls) {
      const Json arguments = Json::parse(call["function"]["arguments"].get<std::string>());
      if (call["function"]["name"] == "now") {
        EXPECT_TRUE(arguments.is_object());
      } else {
        EXPECT_EQ(call["function"]["name"], "weather");
        EXPECT_TRUE(arguments["place"] == "Bern" || arguments["place"] == "Rome") << arguments;
        EXPECT_LE(arguments["days"], 9);
      }
    }
  }
  EXPECT_GT(whole, 0);
}

TEST_F(ForcedCalls, OfANamedToolAreItsArguments) {
  int whole = 0;
  for (int seed = 0; seed < 8; ++seed) {
    const Json choice =
        answer({{"tools", {weather(), now()}},
                {"seed", seed},
                {"tool_choice", {{"type", "function"}, {"function", {{"name", "weather"}}}}}});
    if (choice["finish_reason"] == "length") continue;
    ++whole;
    EXPECT_EQ(choice["finish_reason"], "stop");
    const Json& call = choice["message"]["tool_calls"][0]["function"];
    EXPECT_EQ(call["name"], "weather");
    EXPECT_TRUE(Json::parse(call["arguments"].get<std::string>()).contains("place"));
  }
  EXPECT_GT(whole, 0);
}

TEST_F(ForcedCalls, AGrammarHoldsFromTheEndOfAThoughtOn) {
  // The model cannot end its thought by itself, so it goes on to the limit, in peace.
  const Json choice = answer({{"guided_choice", {"yes", "no"}}}, /*thinks=*/true);
  EXPECT_EQ(choice["finish_reason"], "length");
  EXPECT_FALSE(choice["message"]["reasoning_content"].get<std::string>().empty());
  EXPECT_EQ(choice["message"]["content"], "");
  const Json at_once = answer({{"guided_choice", {"yes", "no"}}});
  EXPECT_TRUE(at_once["message"]["content"] == "yes" || at_once["message"]["content"] == "no");
}

}  // namespace
}  // namespace ferry
