#include "ferry/server/responses_api.h"

#include <fmt/core.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "ferry/core/error.h"
#include "ferry/server/call_answer.h"
#include "ferry/server/http_syntax.h"
#include "ferry/server/responses_call.h"
#include "ferry/server/responses_form.h"
#include "ferry/text/json_fields.h"

namespace ferry {

using Json = nlohmann::ordered_json;

namespace {

constexpr std::int64_t kDefaultItems = 20;
constexpr std::int64_t kMostItems = 100;

/// In the words that OpenAI's clients look for.
HttpError not_found(const std::string& id) {
  return {404,
          fmt::format("Response with id '{}' not found.", id),
          ErrorFields{.type = "invalid_request_error"}};
}

/// The items of a stored response with its output: what stands before the input of the next.
Json items_behind(ResponseStore& store, const std::string& id) {
  const auto stored = store.find(id);
  if (stored == nullptr)
    throw HttpError(400,
                    fmt::format("Previous response with id '{}' not found.", id),
                    ErrorFields{.type = "invalid_request_error",
                                .param = "previous_response_id",
                                .code = "previous_response_not_found"});
  Json items = Json::parse(stored->input);
  const Json response = Json::parse(stored->response);
  for (const Json& item : response["output"]) items.push_back(item);
  return items;
}

HttpReply create(EngineFront& front,
                 const ServedModel& model,
                 CallRegistry& calls,
                 ResponseStore& store,
                 const HttpRequest& request) {
  const Json body = parse_object(request.body);
  const JsonFields fields(body);
  const std::string before = fields.text("previous_response_id").value_or("");
  Json items = before.empty() ? Json::array() : items_behind(store, before);
  OpenAiCall call = read_chat(chat_of_responses(body, items), request, model);
  call.id = new_id("resp_");
  ResponseForm::Ended ended;
  if (fields.boolean("store").value_or(true)) {
    for (Json& item : input_items(body)) items.push_back(std::move(item));
    ended = [&store, input = to_text(items), id = call.id, logprobs = call.logprobs](
                const Json& response) {
      store.put(id, {.response = to_text(response), .input = input, .logprobs = logprobs});
    };
  }
  const auto form = std::make_shared<ResponseForm>(model, body, std::move(call), std::move(ended));
  return answer_call(front, model, calls, form->call(), form_of(form));
}

/// `include` of what is there anyway asks for nothing.
void check_include(const HttpRequest& request, const StoredResponse& stored) {
  for (const auto& [name, value] : query_members(request.query)) {
    if (name.substr(0, 7) == "include" && value == "message.output_text.logprobs" &&
        !stored.logprobs)
      fail<ConfigError>(
          "the response has no log probabilities; \"include\" them when it is created");
  }
}

HttpReply retrieve(ResponseStore& store, const HttpRequest& request) {
  const auto stored = store.find(request.id);
  if (stored == nullptr) throw not_found(request.id);
  for (const auto& [name, value] : query_members(request.query)) {
    if ((name == "stream" && value != "false") || name == "starting_after")
      fail<ConfigError>("\"{}\" is not supported: the response has ended; leave it out", name);
  }
  check_include(request, *stored);
  return {.body = stored->response};
}

HttpReply remove(ResponseStore& store, const HttpRequest& request) {
  if (!store.erase(request.id)) throw not_found(request.id);
  return {.body = to_text({{"id", request.id}, {"object", "response"}, {"deleted", true}})};
}

struct Page {
  std::string after;
  std::int64_t limit = kDefaultItems;
  bool newest_first = true;
};

Page read_page(const HttpRequest& request) {
  Page page;
  for (const auto& [name, value] : query_members(request.query)) {
    if (name == "after") page.after = value;
    if (name == "limit") {
      const Json limit = Json::parse(value, nullptr, /*allow_exceptions=*/false);
      if (!limit.is_number_integer() || limit < 1 || limit > kMostItems)
        fail<ConfigError>("\"limit\" must be 1 to {}, not \"{}\"", kMostItems, value);
      page.limit = limit;
    }
    if (name == "order") {
      if (value != "asc" && value != "desc")
        fail<ConfigError>("\"order\" must be asc or desc, not \"{}\"", value);
      page.newest_first = value == "desc";
    }
  }
  return page;
}

/// All that the model was given, with what stood before it.
HttpReply list_input(ResponseStore& store, const HttpRequest& request) {
  const auto stored = store.find(request.id);
  if (stored == nullptr) throw not_found(request.id);
  check_include(request, *stored);
  const Page page = read_page(request);
  Json items = Json::parse(stored->input);
  if (page.newest_first) std::reverse(items.begin(), items.end());
  auto begin = items.begin();
  if (!page.after.empty()) {
    begin = std::find_if(
        items.begin(), items.end(), [&](const Json& item) { return item["id"] == page.after; });
    if (begin == items.end())
      fail<ConfigError>("\"after\": there is no item \"{}\" in it", page.after);
    ++begin;
  }
  const auto end = begin + std::min<std::ptrdiff_t>(page.limit, items.end() - begin);
  const Json data(begin, end);
  const auto id_of = [&](bool last) {
    return data.empty() ? Json(nullptr) : (last ? data.back() : data.front())["id"];
  };
  return {.body = to_text({{"object", "list"},
                           {"data", data},
                           {"first_id", id_of(false)},
                           {"last_id", id_of(true)},
                           {"has_more", end != items.end()}})};
}

}  // namespace

void add_responses_routes(RouteTable& routes,
                          EngineFront& front,
                          const ServedModel& model,
                          CallRegistry& calls,
                          ResponseStore& store) {
  routes.post("/v1/responses", [&](const HttpRequest& request) {
    return create(front, model, calls, store, request);
  });
  routes.get("/v1/responses/*", [&](const HttpRequest& r) { return retrieve(store, r); });
  routes.del("/v1/responses/*", [&](const HttpRequest& r) { return remove(store, r); });
  routes.get("/v1/responses/*/input_items",
             [&](const HttpRequest& r) { return list_input(store, r); });
}

}  // namespace ferry
