#include "ferry/server/openai_api.h"

#include <fmt/core.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>
#include <utility>

#include "ferry/core/error.h"
#include "ferry/server/call_answer.h"
#include "ferry/server/openai_logprobs.h"

namespace ferry {

using Json = nlohmann::ordered_json;

namespace {

Json usage_json(const Generation& generation) {
  const std::size_t prompt = generation.prompt_tokens();
  const std::size_t completion = generation.completion_tokens();
  return {{"prompt_tokens", prompt},
          {"completion_tokens", completion},
          {"total_tokens", prompt + completion},
          {"prompt_tokens_details", {{"cached_tokens", generation.cached_tokens()}}}};
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

/// `answer`: null where the route is none of chats.
Json finish_reason(const Choice& choice, const ChatAnswer* answer) {
  if (choice.finish.empty()) return nullptr;
  if (choice.finish == "cancelled") return "abort";
  return answer == nullptr ? choice.finish : answer->finish_reason(choice.finish);
}

class OpenAiForm {
 public:
  OpenAiForm(const ServedModel& model, OpenAiCall call) : model_(model), call_(std::move(call)) {}

  std::string whole(const Generation& generation) {
    Json json = frame(call_.chat ? "chat.completion" : "text_completion");
    for (const std::size_t i : shown_choices(call_, generation)) {
      const Choice& choice = generation.choices()[i];
      Json one{{"index", json["choices"].size()}};
      ChatAnswer answer(call_.answer);
      if (call_.chat) {
        answer.put(choice.text, /*last=*/true);
        one["message"] = answer.message();
      } else {
        one["text"] = echo(i) + choice.text;
      }
      one["logprobs"] = logprobs(choice, i, 0);
      one["finish_reason"] = finish_reason(choice, call_.chat ? &answer : nullptr);
      if (call_.prompt_logprobs)
        one["prompt_logprobs"] = prompt_logprobs(model_.tokenizer, prompt(i), choice);
      if (call_.token_ids) {
        one["token_ids"] = choice.ids;
        (call_.chat ? json : one)["prompt_token_ids"] = prompt(i);
      }
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
    if (call_.token_ids) json["prompt_token_ids"] = prompt(0);
    return to_text(json);
  }

  std::string piece(const Generation& generation, const Generation::Piece& piece) {
    const Choice& choice = generation.choices()[piece.choice];
    // The prompt, where it is shown, comes with the first token or instead of any.
    const bool begins = call_.echo && choice.ids.size() <= 1 && !echoed(piece.choice);
    const bool asked = call_.logprobs && (begins || piece.token >= 0);
    const std::string text = begins ? echo(piece.choice) + piece.text : piece.text;
    Json json = chunk();
    Json one{{"index", piece.choice}};
    if (call_.chat)
      one["delta"] = answer(piece.choice).put(text, !choice.finish.empty());
    else
      one["text"] = text;
    const bool nothing = call_.chat ? one["delta"].empty() : text.empty();
    if (nothing && choice.finish.empty() && !asked && !call_.token_ids) return {};
    const std::size_t last = shown_prompt(piece.choice).size() + choice.logprobs.size() - 1;
    one["logprobs"] = asked ? logprobs(choice, piece.choice, begins ? 0 : last) : Json(nullptr);
    one["finish_reason"] = finish_reason(choice, call_.chat ? &answer(piece.choice) : nullptr);
    if (call_.token_ids) {
      one["token_ids"] = Json::array();
      if (piece.token >= 0) one["token_ids"].push_back(piece.token);
      const bool first = choice.ids.size() == one["token_ids"].size();
      if (!call_.chat && first) one["prompt_token_ids"] = prompt(piece.choice);
    }
    json["choices"].push_back(std::move(one));
    return to_text(json);
  }

  std::string tail(const Generation& generation) const {
    if (!call_.stream_usage) return {};
    Json json = chunk();
    json["usage"] = usage_json(generation);
    return to_text(json);
  }

  static std::string failure(const HttpError& error) { return error_body(error); }

  const OpenAiCall& call() const { return call_; }

 private:
  Json frame(const char* object) const {
    return {{"id", call_.id},
            {"object", object},
            {"created", call_.created},
            {"model", model_.name},
            {"choices", Json::array()}};
  }

  Json chunk() const { return frame(call_.chat ? "chat.completion.chunk" : "text_completion"); }

  std::size_t prompt_of(std::size_t choice) const {
    return choice / static_cast<std::size_t>(call_.best_of);
  }

  const std::vector<std::int32_t>& prompt(std::size_t choice) const {
    return call_.prompts[prompt_of(choice)];
  }

  std::string echo(std::size_t choice) const {
    return call_.echo ? call_.echoes[prompt_of(choice)] : "";
  }

  std::vector<std::int32_t> shown_prompt(std::size_t choice) const {
    return call_.echo ? prompt(choice) : std::vector<std::int32_t>{};
  }

  /// Of a stream, as far as it has come.
  ChatAnswer& answer(std::size_t choice) {
    while (answers_.size() <= choice) answers_.emplace_back(call_.answer);
    return answers_[choice];
  }

  /// Whether the choice's prompt has been shown; from now on it has.
  bool echoed(std::size_t choice) { return !echoed_.insert(choice).second; }

  /// Of a choice's tokens from `first` on, those of a shown prompt counted.
  Json logprobs(const Choice& choice, std::size_t index, std::size_t first) {
    if (!call_.logprobs) return nullptr;
    if (call_.chat) return chat_logprobs(model_.tokenizer, choice, first, call_.tokens_by_id);
    while (places_.size() <= index)
      places_.emplace_back(model_.tokenizer,
                           call_.tokens_by_id,
                           call_.settings.skip_special,
                           shown_prompt(places_.size()));
    return places_[index].json(choice, first);
  }

  std::vector<CompletionLogprobs> places_;  // of each choice
  std::vector<ChatAnswer> answers_;         // likewise
  std::set<std::size_t> echoed_;
  const ServedModel& model_;
  OpenAiCall call_;
};

HttpReply answer(EngineFront& front,
                 const ServedModel& model,
                 CallRegistry& calls,
                 OpenAiCall call) {
  const auto shared = std::make_shared<OpenAiForm>(model, std::move(call));
  CallForm form = form_of(shared);
  form.events = unnamed_events(std::move(form.events));
  return answer_call(front, model, calls, shared->call(), std::move(form));
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
    return answer(front, model, calls, read_completion(request, model));
  });
  routes.post("/v1/chat/completions", [&](const HttpRequest& request) {
    return answer(front, model, calls, read_chat(request, model));
  });
}

}  // namespace ferry
