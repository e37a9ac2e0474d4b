// OpenAI's responses: what of a request becomes a chat, and what of a chat's answer becomes items.
#include <nlohmann/json.hpp>

#include "ferry/core/error.h"
#include "ferry/server/response_store.h"
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
    static_cast<void>(chat_of_responses(Json::parse(body), Json::array()));
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
      {"role": "assistant", "content": "One."}, {"role": "assistant", "content": "Two."}]})"),
                                      Json::array());
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
  EXPECT_EQ(whole.at("store"), true);
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

TEST(ResponseStore, ForgetsWhatNobodyHasUsedForLongest) {
  ResponseStore store({.responses = 3, .bytes = 100});
  const auto of = [](std::size_t bytes) {
    return StoredResponse{.response = std::string(bytes, 'r'), .input = ""};
  };
  for (const char* id : {"a", "b", "c"}) store.put(id, of(10));
  EXPECT_NE(store.find("a"), nullptr);
  store.put("d", of(10));  // the fourth
  EXPECT_EQ(store.find("b"), nullptr) << "a was asked for since";
  const auto held = store.find("c");
  store.put("e", {.response = std::string(40, 'r'), .input = std::string(45, 'i')});
  EXPECT_NE(store.find("e"), nullptr);
  EXPECT_EQ(store.find("a"), nullptr) << "115 bytes would be too many";
  EXPECT_EQ(store.find("d"), nullptr);
  EXPECT_NE(store.find("c"), nullptr) << "95 bytes are not";
  EXPECT_TRUE(store.erase("c"));
  EXPECT_FALSE(store.erase("c"));
  EXPECT_EQ(held->response, std::string(10, 'r')) << "who has found it has it";
  store.put("f", of(1000));
  EXPECT_EQ(store.find("e"), nullptr);
  EXPECT_NE(store.find("f"), nullptr) << "alone it may be larger";
  store.put("g", of(1));
  EXPECT_EQ(store.find("f"), nullptr);
}

std::string path_of(const test::Json& response) {
  return "/v1/responses/" + response.at("id").get<std::string>();
}

TEST_F(Routes, ResponsesAreThereAgainUntilTheyAreDeleted) {
  test::Json body = {{"input", "What is 12 + 7?"}, {"metadata", {{"a", "b"}}}};
  const test::Json whole = ok("/v1/responses", body);
  EXPECT_EQ(get(path_of(whole)), whole);
  EXPECT_EQ(get(path_of(whole) + "?stream=false&include[]=reasoning.encrypted_content"), whole);
  body["stream"] = true;
  const Json last = test::named_events(post("/v1/responses", body.dump())->body).back()["response"];
  const test::Json streamed = test::Json::parse(last.dump());
  EXPECT_NE(streamed.at("id"), whole.at("id"));
  EXPECT_EQ(get(path_of(streamed)), streamed);
  for (const char* query :
       {"?stream=true", "?starting_after=3", "?include=message.output_text.logprobs"})
    EXPECT_EQ(get_from(*served, path_of(whole) + query)->status, 400) << query;

  EXPECT_EQ(test::Json::parse(delete_from(*served, path_of(whole))->body),
            (test::Json{{"id", whole.at("id")}, {"object", "response"}, {"deleted", true}}));
  for (const MaybeAnswer& gone : {get_from(*served, path_of(whole)),
                                  delete_from(*served, path_of(whole)),
                                  get_from(*served, path_of(whole) + "/input_items")}) {
    EXPECT_EQ(gone->status, 404);
    EXPECT_EQ(
        test::Json::parse(gone->body).at("error"),
        (test::Json{
            {"message", "Response with id '" + whole.at("id").get<std::string>() + "' not found."},
            {"type", "invalid_request_error"},
            {"param", nullptr},
            {"code", nullptr}}));
  }
  body["stream"] = false;
  body["store"] = false;
  const test::Json passing = ok("/v1/responses", body);
  EXPECT_EQ(passing.at("store"), false);
  EXPECT_EQ(get_from(*served, path_of(passing))->status, 404);
  body["store"] = "yes";
  EXPECT_EQ(post("/v1/responses", body.dump())->status, 400);
}

/// The model must see what it would see of the whole conversation.
TEST_F(Routes, ResponsesGoOnBehindOthers) {
  const test::Json asks = {{"temperature", 0}, {"max_output_tokens", 8}};
  const auto with = [&](test::Json body) {
    body.update(asks);
    return body;
  };
  const test::Json first =
      ok("/v1/responses", with({{"input", "What is 12 + 7?"}, {"instructions", "A."}}));
  const test::Json next = {{"input", {{{"role", "user"}, {"content", "And 3 + 4?"}}}},
                           {"previous_response_id", first.at("id")}};
  const test::Json second = ok("/v1/responses", with(next));
  EXPECT_EQ(second.at("previous_response_id"), first.at("id"));
  test::Json streams = with(next);
  streams["stream"] = true;
  const Json events = test::named_events(post("/v1/responses", streams.dump())->body).back();

  test::Json items = {{{"role", "user"}, {"content", "What is 12 + 7?"}}};
  for (const test::Json& item : first.at("output")) items.push_back(item);
  items.push_back({{"role", "user"}, {"content", "And 3 + 4?"}});
  const test::Json alike = ok("/v1/responses", with({{"input", items}}));
  EXPECT_EQ(second.at("usage").at("input_tokens"), alike.at("usage").at("input_tokens"))
      << "instructions are not handed on";
  const auto output = [](const test::Json& response) {
    return without_ids(Json::parse(response.at("output").dump()));
  };
  EXPECT_EQ(output(second), output(alike));
  EXPECT_EQ(without_ids(events["response"]["output"]), output(alike));

  // Behind one that has gone meanwhile, and behind an answer that is not the newest.
  EXPECT_EQ(delete_from(*served, path_of(first))->status, 200);
  for (const test::Json& item : second.at("output")) items.push_back(item);
  items.push_back({{"role", "user"}, {"content", "Thanks"}});
  const test::Json third =
      ok("/v1/responses",
         with({{"input", "Thanks"}, {"previous_response_id", second.at("id")}, {"store", false}}));
  EXPECT_EQ(output(third), output(ok("/v1/responses", with({{"input", items}}))));
  const MaybeAnswer lost = post(
      "/v1/responses", test::Json{{"input", "x"}, {"previous_response_id", first.at("id")}}.dump());
  EXPECT_EQ(lost->status, 400);
  const test::Json error = test::Json::parse(lost->body).at("error");
  EXPECT_EQ(error.at("code"), "previous_response_not_found");
  EXPECT_EQ(error.at("param"), "previous_response_id");
  EXPECT_EQ(post("/v1/responses", R"({"input": "x", "previous_response_id": 7})")->status, 400);

  // All that the second one was given, a page at a time.
  const std::string list = path_of(second) + "/input_items";
  const test::Json all = get(list + "?order=asc");
  ASSERT_EQ(all.at("data").size(), 2 + first.at("output").size());
  EXPECT_EQ(all.at("data")[0].at("content")[0].at("text"), "What is 12 + 7?");
  EXPECT_EQ(all.at("data")[1], first.at("output")[0]);
  EXPECT_EQ(all.at("data").back().at("content"), "And 3 + 4?");
  EXPECT_EQ(all.at("has_more"), false);
  EXPECT_EQ(all.at("last_id"), all.at("data").back().at("id"));
  const test::Json page = get(list + "?limit=1");
  ASSERT_EQ(page.at("data").size(), 1U);
  EXPECT_EQ(page.at("data")[0], all.at("data").back()) << "the newest comes first";
  EXPECT_EQ(page.at("has_more"), true);
  const test::Json rest = get(list + "?limit=100&after=" + page.at("last_id").get<std::string>());
  EXPECT_EQ(rest.at("data").size(), all.at("data").size() - 1);
  EXPECT_EQ(rest.at("data").back(), all.at("data")[0]);
  for (const char* query : {"?limit=0", "?limit=101", "?limit=x", "?order=up", "?after=nobody"})
    EXPECT_EQ(get_from(*served, list + query)->status, 400) << query;
}

TEST_F(Routes, PathsWithAnIdAreOneRoute) {
  for (const char* path : {"/v1/responses/", "/v1/responses/a/b", "/v1/responses//input_items"})
    EXPECT_EQ(get_from(*served, path)->status, 404) << path;
  EXPECT_EQ(get_from(*served, "/v1/responses")->status, 405);
  EXPECT_EQ(delete_from(*served, "/v1/responses")->status, 405);
  EXPECT_EQ(delete_from(*served, "/v1/responses/a/input_items")->status, 405);
  EXPECT_EQ(post("/v1/responses/a", "{}")->status, 405);
  EXPECT_EQ(get_from(*served, "/v1/responses/*")->status, 404);
  const std::string told =
      test::Json::parse(get_from(*served, "/v1/responses/resp_%61%2fb")->body).dump();
  EXPECT_NE(told.find("resp_"), std::string::npos);
  const MaybeAnswer metrics = get_from(*served, "/metrics");
  EXPECT_NE(metrics->body.find("route=\"/v1/responses/*\""), std::string::npos)
      << "a name for each id would be names without end";
  EXPECT_EQ(metrics->body.find("resp_"), std::string::npos);
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
