#include "ferry/server/openai_api.h"

#include <fmt/core.h>

#include <algorithm>
#include <ctime>
#include <nlohmann/json.hpp>
#include <numeric>
#include <random>
#include <utility>

#include "ferry/core/error.h"
#include "ferry/server/chat.h"
#include "ferry/server/event_stream.h"
#include "ferry/server/generation.h"
#include "ferry/server/members.h"
#include "ferry/server/openai_logprobs.h"
#include "ferry/server/sglang_api.h"

namespace ferry {

using Json = nlohmann::ordered_json;

namespace {

constexpr int kDefaultCompletionTokens = 16;

/// One call by either route; what differs is how choices look.
struct OpenAiCall {
  bool chat = false;
  GenerationSettings settings;
  std::vector<std::vector<std::int32_t>> prompts;
  bool stream = false;
  bool stream_usage = false;
  bool tokens_by_id = false;  ///< log probabilities name tokens so
  int best_of = 1;        ///< choices to make of each prompt, of which settings.choices are shown
  bool logprobs = false;  ///< that they are shown
  std::string rid;
  std::string id;
  std::time_t created = std::time(nullptr);
};

std::string new_id(const char* prefix) {
  std::random_device device;
  return fmt::format("{}-{:08x}{:08x}{:08x}", prefix, device(), device(), device());
}

/// What both routes have.
void read_shared(const JsonFields& fields,
                 const ServedModel& model,
                 const HttpRequest& request,
                 OpenAiCall& call) {
  if (const auto name = fields.text("model"); name && *name != model.name && *name != model.path)
    throw HttpError(404,
                    fmt::format("there is no model \"{}\" here, only \"{}\"", *name, model.name),
                    "model_not_found");
  call.settings.sampling = model.sampling;
  read_common_settings(fields, model, call.settings);
  if (const auto most = max_new_tokens(fields, {"max_tokens", "max_completion_tokens"}))
    call.settings.max_new_tokens = most;
  call.settings.client =
      client_of(request) ^ std::hash<std::string>{}(fields.text("user").value_or(""));
  call.stream = fields.boolean("stream").value_or(false);
  if (const Json* options = fields.find("stream_options"))
    call.stream_usage = JsonFields(*options).boolean("include_usage").value_or(false);
  call.tokens_by_id = fields.boolean("return_tokens_as_token_ids").value_or(false);
  call.rid = fields.text("rid").value_or("");
  call.best_of = call.settings.choices;
}

/// The last tokens of a prompt that is longer; -1: as many as the model takes.
void truncate_prompts(const JsonFields& fields, const ServedModel& model, OpenAiCall& call) {
  const auto wanted = fields.integer("truncate_prompt_tokens");
  if (!wanted) return;
  const std::int64_t most = *wanted == -1 ? model.max_context : *wanted;
  if (most < 1)
    fail<ConfigError>("\"truncate_prompt_tokens\" must be -1 or at least 1, not {}", *wanted);
  for (std::vector<std::int32_t>& prompt : call.prompts)
    if (std::ssize(prompt) > most) prompt.erase(prompt.begin(), prompt.end() - most);
}

/// `logprobs` is a number there, but some clients say false.
void read_completion_logprobs(const JsonFields& fields, OpenAiCall& call) {
  const Json* wanted = fields.find("logprobs");
  if (wanted == nullptr || *wanted == false) return;
  call.settings.top_logprobs = top_logprobs(fields, "logprobs");
  call.logprobs = true;
}

/// The best are chosen by their log probabilities, so there must be some.
void read_best_of(const JsonFields& fields, OpenAiCall& call) {
  const std::int64_t best_of = fields.integer("best_of").value_or(call.settings.choices);
  if (best_of < call.settings.choices || best_of > kMostChoices)
    fail<ConfigError>("\"best_of\" must be \"n\" to {}, not {}", kMostChoices, best_of);
  call.best_of = static_cast<int>(best_of);
  if (call.best_of == call.settings.choices) return;
  if (call.stream) fail<ConfigError>("\"best_of\" above \"n\" cannot be streamed");
  if (!call.settings.top_logprobs) call.settings.top_logprobs = 0;
}

OpenAiCall read_completion(const HttpRequest& request, const ServedModel& model) {
  const Json body = parse_object(request.body);
  check_members(RequestKind::completion, body);
  const JsonFields fields(body);
  OpenAiCall call{.id = new_id("cmpl")};
  call.settings.max_new_tokens = kDefaultCompletionTokens;
  read_shared(fields, model, request, call);
  read_completion_logprobs(fields, call);
  read_best_of(fields, call);
  const Json* prompt = fields.find("prompt");
  if (prompt == nullptr) fail<ConfigError>("\"prompt\" is missing");
  const bool add_special = fields.boolean("add_special_tokens").value_or(true);
  const bool lists = prompt->is_array() && !prompt->empty();
  if (lists && prompt->front().is_number()) {
    call.prompts.push_back(fields.ids("prompt"));
  } else if (lists && prompt->front().is_array()) {
    for (const Json& one : *prompt) call.prompts.push_back(to_ids(one, "prompt"));
  } else {
    for (const std::string& one : fields.texts("prompt"))
      call.prompts.push_back(encode(model, one, add_special));
  }
  truncate_prompts(fields, model, call);
  check_lengths(model, call.prompts);
  return call;
}

OpenAiCall read_chat(const HttpRequest& request, const ServedModel& model) {
  const Json body = parse_object(request.body);
  check_members(RequestKind::chat, body);
  const JsonFields fields(body);
  OpenAiCall call{.chat = true, .id = new_id("chatcmpl")};
  read_shared(fields, model, request, call);
  const int top = top_logprobs(fields, "top_logprobs");
  call.logprobs = fields.boolean("logprobs").value_or(false);
  if (call.logprobs) call.settings.top_logprobs = top;
  call.prompts.push_back(encode(
      model, chat_prompt(fields, model), fields.boolean("add_special_tokens").value_or(false)));
  truncate_prompts(fields, model, call);
  check_lengths(model, call.prompts);
  return call;
}

Json usage_json(const Generation& generation) {
  const std::size_t prompt = generation.prompt_tokens();
  const std::size_t completion = generation.completion_tokens();
  return {{"prompt_tokens", prompt},
          {"completion_tokens", completion},
          {"total_tokens", prompt + completion}};
}

/// The choices to show, of each prompt in its order; the best where more were made.
std::vector<std::size_t> shown_choices(const OpenAiCall& call, const Generation& generation) {
  const std::vector<Choice>& all = generation.choices();
  const auto made = static_cast<std::size_t>(call.best_of);
  const auto mean = [&](std::size_t i) {
    double sum = 0;
    for (const Logprobs& l : all[i].logprobs) sum += l.chosen;
    return sum / static_cast<double>(std::max<std::size_t>(all[i].logprobs.size(), 1));
  };
  std::vector<std::size_t> shown;
  for (std::size_t first = 0; first < all.size(); first += made) {
    std::vector<std::size_t> choices(made);
    std::iota(choices.begin(), choices.end(), first);
    if (call.best_of > call.settings.choices)
      std::stable_sort(choices.begin(), choices.end(), [&](std::size_t a, std::size_t b) {
        return mean(a) > mean(b);
      });
    shown.insert(shown.end(), choices.begin(), choices.begin() + call.settings.choices);
  }
  return shown;
}

Json finish_reason(const Choice& choice) {
  if (choice.finish.empty()) return nullptr;
  return choice.finish == "cancelled" ? "abort" : choice.finish;
}

class OpenAiForm {
 public:
  OpenAiForm(const ServedModel& model, OpenAiCall call) : model_(model), call_(std::move(call)) {}

  std::string whole(const Generation& generation) {
    Json json = frame(call_.chat ? "chat.completion" : "text_completion");
    for (const std::size_t i : shown_choices(call_, generation)) {
      const Choice& choice = generation.choices()[i];
      Json one{{"index", json["choices"].size()}};
      if (call_.chat)
        one["message"] = {{"role", "assistant"}, {"content", choice.text}};
      else
        one["text"] = choice.text;
      one["logprobs"] = logprobs(choice, i, 0);
      one["finish_reason"] = finish_reason(choice);
      json["choices"].push_back(std::move(one));
    }
    json["usage"] = usage_json(generation);
    return to_text(json);
  }

  /// The role of each choice, before any text.
  std::string head(const Generation& generation) const {
    if (!call_.chat) return {};
    Json json = chunk();
    for (std::size_t i = 0; i < generation.choices().size(); ++i) {
      json["choices"].push_back({{"index", i},
                                 {"delta", {{"role", "assistant"}, {"content", ""}}},
                                 {"logprobs", nullptr},
                                 {"finish_reason", nullptr}});
    }
    return to_text(json);
  }

  std::string piece(const Generation& generation, const Generation::Piece& piece) {
    const Choice& choice = generation.choices()[piece.choice];
    const bool asked = call_.logprobs && !choice.logprobs.empty() && piece.token >= 0;
    if (piece.text.empty() && choice.finish.empty() && !asked) return {};
    Json json = chunk();
    Json one{{"index", piece.choice}};
    if (call_.chat)
      one["delta"] = piece.text.empty() ? Json::object() : Json{{"content", piece.text}};
    else
      one["text"] = piece.text;
    one["logprobs"] =
        asked ? logprobs(choice, piece.choice, choice.logprobs.size() - 1) : Json(nullptr);
    one["finish_reason"] = finish_reason(choice);
    json["choices"].push_back(std::move(one));
    return to_text(json);
  }

  std::string tail(const Generation& generation) const {
    if (!call_.stream_usage) return {};
    Json json = chunk();
    json["usage"] = usage_json(generation);
    return to_text(json);
  }

 private:
  Json frame(const char* object) const {
    return {{"id", call_.id},
            {"object", object},
            {"created", call_.created},
            {"model", model_.name},
            {"choices", Json::array()}};
  }

  Json chunk() const { return frame(call_.chat ? "chat.completion.chunk" : "text_completion"); }

  /// Of a choice's tokens from `first` on.
  Json logprobs(const Choice& choice, std::size_t index, std::size_t first) {
    if (!call_.logprobs) return nullptr;
    if (call_.chat) return chat_logprobs(model_.tokenizer, choice, first, call_.tokens_by_id);
    while (places_.size() <= index)
      places_.emplace_back(model_.tokenizer, call_.tokens_by_id, call_.settings.skip_special);
    return places_[index].json(choice, first);
  }

  std::vector<CompletionLogprobs> places_;  // of each choice
  const ServedModel& model_;
  OpenAiCall call_;
};

HttpReply answer(EngineFront& front,
                 const ServedModel& model,
                 CallRegistry& calls,
                 OpenAiCall call,
                 const HttpRequest& request) {
  const bool stream = call.stream;
  const CallRegistry::Aborted aborted = calls.add(call.rid);
  GenerationSettings settings = call.settings;
  settings.choices = call.best_of;
  const auto generation =
      std::make_shared<Generation>(front, for_generation(model), call.prompts, settings);
  const auto form = std::make_shared<OpenAiForm>(model, std::move(call));
  if (stream) {  // the three functions own the form together
    return stream_events(
        generation,
        {.head = [form](Generation& g) { return form->head(g); },
         .piece = [form](Generation& g, const Generation::Piece& p) { return form->piece(g, p); },
         .tail = [form](Generation& g) { return form->tail(g); }},
        aborted);
  }
  finish(*generation, request, *aborted);
  return {.body = form->whole(*generation)};
}

Json model_json(const ServedModel& model) {
  return {{"id", model.name},
          {"object", "model"},
          {"created", model.started},
          {"owned_by", "tokenferry"},
          {"root", model.path},
          {"max_model_len", model.max_context}};
}

}  // namespace

void add_openai_routes(RouteTable& routes,
                       EngineFront& front,
                       const ServedModel& model,
                       CallRegistry& calls) {
  routes.get("/v1/models", [&](const HttpRequest&) -> HttpReply {
    return {.body = to_text({{"object", "list"}, {"data", Json::array({model_json(model)})}})};
  });
  routes.get("/v1/models/" + model.name,
             [&](const HttpRequest&) -> HttpReply { return {.body = to_text(model_json(model))}; });
  routes.post("/v1/completions", [&](const HttpRequest& request) {
    return answer(front, model, calls, read_completion(request, model), request);
  });
  routes.post("/v1/chat/completions", [&](const HttpRequest& request) {
    return answer(front, model, calls, read_chat(request, model), request);
  });
}

}  // namespace ferry
