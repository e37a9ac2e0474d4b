#include "ferry/server/openai_api.h"

#include <fmt/core.h>

#include <ctime>
#include <nlohmann/json.hpp>
#include <random>
#include <utility>

#include "ferry/core/error.h"
#include "ferry/server/event_stream.h"
#include "ferry/server/generation.h"
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
  std::string id;
  std::time_t created = std::time(nullptr);
};

std::string new_id(const char* prefix) {
  std::random_device device;
  return fmt::format("{}-{:08x}{:08x}{:08x}", prefix, device(), device(), device());
}

void read_max_tokens(const JsonFields& fields, OpenAiCall& call) {
  for (const char* name : {"max_tokens", "max_completion_tokens"}) {
    if (const auto v = fields.integer(name)) {
      if (*v < 1 || *v > INT32_MAX)
        fail<ConfigError>("\"{}\" must be at least 1, not {}", name, *v);
      call.settings.max_new_tokens = static_cast<int>(*v);
    }
  }
}

/// What both routes have.
void read_shared(const JsonFields& fields,
                 const ServedModel& model,
                 const HttpRequest& request,
                 OpenAiCall& call) {
  if (const auto name = fields.text("model"); name && *name != model.name && *name != model.path)
    throw HttpError(404,
                    fmt::format("there is no model \"{}\" here, only \"{}\"", *name, model.name));
  call.settings.sampling = model.sampling;
  read_common_settings(fields, call.settings);
  read_max_tokens(fields, call);
  call.settings.client =
      client_of(request) ^ std::hash<std::string>{}(fields.text("user").value_or(""));
  call.stream = fields.boolean("stream").value_or(false);
  if (const Json* options = fields.find("stream_options"))
    call.stream_usage = JsonFields(*options).boolean("include_usage").value_or(false);
  fields.refuse_unless("best_of", call.settings.choices);
}

int top_logprobs(const JsonFields& fields, const char* name) {
  const std::int64_t top = fields.integer(name).value_or(0);
  if (top < 0 || top > kMaxTopLogprobs)
    fail<ConfigError>("\"{}\" must be 0 to {}, not {}", name, kMaxTopLogprobs, top);
  return static_cast<int>(top);
}

OpenAiCall read_completion(const HttpRequest& request, const ServedModel& model) {
  const Json body = parse_object(request.body);
  const JsonFields fields(body);
  OpenAiCall call{.id = new_id("cmpl")};
  call.settings.max_new_tokens = kDefaultCompletionTokens;
  read_shared(fields, model, request, call);
  fields.refuse_unless("echo", false);
  fields.refuse_unless("suffix", "");
  if (fields.has("logprobs")) call.settings.top_logprobs = top_logprobs(fields, "logprobs");
  const Json* prompt = fields.find("prompt");
  if (prompt == nullptr) fail<ConfigError>("\"prompt\" is missing");
  const bool lists = prompt->is_array() && !prompt->empty();
  if (lists && prompt->front().is_number()) {
    call.prompts.push_back(fields.ids("prompt"));
  } else if (lists && prompt->front().is_array()) {
    for (const Json& one : *prompt) call.prompts.push_back(to_ids(one, "prompt"));
  } else {
    for (const std::string& one : fields.texts("prompt"))
      call.prompts.push_back(encode(model, one));
  }
  return call;
}

/// Messages with their text parts put together, as templates expect.
Json plain_messages(const Json& messages) {
  Json plain = messages;
  for (Json& message : plain) {
    if (!message.is_object() || !message.contains("content") || !message["content"].is_array())
      continue;
    std::string text;
    for (const Json& part : message["content"]) {
      const JsonFields fields(part);
      if (fields.text("type") != "text")
        fail<ConfigError>("a part of a message is no text; this model reads text only");
      text += fields.text("text").value_or("");
    }
    message["content"] = text;
  }
  return plain;
}

OpenAiCall read_chat(const HttpRequest& request, const ServedModel& model) {
  const Json body = parse_object(request.body);
  const JsonFields fields(body);
  OpenAiCall call{.chat = true, .id = new_id("chatcmpl")};
  read_shared(fields, model, request, call);
  if (fields.boolean("logprobs").value_or(false))
    call.settings.top_logprobs = top_logprobs(fields, "top_logprobs");
  fields.refuse_unless("tools", Json::array());
  fields.refuse_unless("functions", Json::array());
  fields.refuse_unless("response_format", {{"type", "text"}});
  const Json* messages = fields.find("messages");
  if (messages == nullptr || !messages->is_array() || messages->empty())
    fail<ConfigError>("\"messages\" must be a list of at least one message");
  if (!model.render_chat) {
    fail<ConfigError>(
        "this model has no chat template; use /v1/completions with a prompt as it was trained on");
  }
  const Json* extra = fields.find("chat_template_kwargs");
  if (extra != nullptr) static_cast<void>(JsonFields(*extra));  // an object
  const std::string prompt =
      model.render_chat(plain_messages(*messages), extra != nullptr ? *extra : Json::object());
  call.prompts.push_back(encode(model, prompt, /*add_special=*/false));
  return call;
}

Json usage_json(const Generation& generation) {
  const std::size_t prompt = generation.prompt_tokens();
  const std::size_t completion = generation.completion_tokens();
  return {{"prompt_tokens", prompt},
          {"completion_tokens", completion},
          {"total_tokens", prompt + completion}};
}

/// Of tokens `first` to the last one.
Json chat_logprobs(const ServedModel& model, const Choice& choice, std::size_t first) {
  const auto entry = [&](std::int32_t id, float logprob) {
    const std::string text = token_text(model.tokenizer, id);
    Json bytes = nullptr;
    if (model.tokenizer != nullptr && model.tokenizer->has_token(id)) {
      bytes = Json::array();
      for (const char c : model.tokenizer->token_bytes(id))
        bytes.push_back(static_cast<unsigned char>(c));
    }
    return Json{{"token", text}, {"logprob", logprob}, {"bytes", std::move(bytes)}};
  };
  Json content = Json::array();
  for (std::size_t i = first; i < choice.logprobs.size(); ++i) {
    Json token = entry(choice.ids[i], choice.logprobs[i].chosen);
    token["top_logprobs"] = Json::array();
    for (const TokenLogprob& t : choice.logprobs[i].top)
      token["top_logprobs"].push_back(entry(t.id, t.logprob));
    content.push_back(std::move(token));
  }
  return {{"content", std::move(content)}};
}

Json completion_logprobs(const ServedModel& model, const Choice& choice, std::size_t first) {
  Json tokens = Json::array(), logprobs = Json::array(), top = Json::array(),
       offsets = Json::array();
  std::size_t offset = 0;
  for (std::size_t i = 0; i < choice.logprobs.size(); ++i) {
    const std::string text = token_text(model.tokenizer, choice.ids[i]);
    if (i >= first) {
      tokens.push_back(text);
      logprobs.push_back(choice.logprobs[i].chosen);
      offsets.push_back(offset);
      Json most = Json::object();
      for (const TokenLogprob& t : choice.logprobs[i].top)
        most[token_text(model.tokenizer, t.id)] = t.logprob;
      top.push_back(std::move(most));
    }
    offset += text.size();
  }
  return {{"tokens", std::move(tokens)},
          {"token_logprobs", std::move(logprobs)},
          {"top_logprobs", std::move(top)},
          {"text_offset", std::move(offsets)}};
}

class OpenAiForm {
 public:
  OpenAiForm(const ServedModel& model, OpenAiCall call) : model_(model), call_(std::move(call)) {}

  std::string whole(const Generation& generation) const {
    Json json = frame(call_.chat ? "chat.completion" : "text_completion");
    for (std::size_t i = 0; i < generation.choices().size(); ++i) {
      const Choice& choice = generation.choices()[i];
      Json one{{"index", i}};
      if (call_.chat)
        one["message"] = {{"role", "assistant"}, {"content", choice.text}};
      else
        one["text"] = choice.text;
      one["logprobs"] = logprobs(choice, 0);
      one["finish_reason"] = choice.finish;
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

  std::string piece(const Generation& generation, const Generation::Piece& piece) const {
    const Choice& choice = generation.choices()[piece.choice];
    const bool asked = !choice.logprobs.empty();
    if (piece.text.empty() && choice.finish.empty() && !asked) return {};
    Json json = chunk();
    Json one{{"index", piece.choice}};
    if (call_.chat)
      one["delta"] = piece.text.empty() ? Json::object() : Json{{"content", piece.text}};
    else
      one["text"] = piece.text;
    one["logprobs"] = asked ? logprobs(choice, choice.logprobs.size() - 1) : Json(nullptr);
    one["finish_reason"] = choice.finish.empty() ? Json(nullptr) : Json(choice.finish);
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

  Json logprobs(const Choice& choice, std::size_t first) const {
    if (choice.logprobs.empty()) return nullptr;
    return call_.chat ? chat_logprobs(model_, choice, first)
                      : completion_logprobs(model_, choice, first);
  }

  const ServedModel& model_;
  OpenAiCall call_;
};

HttpReply answer(EngineFront& front,
                 const ServedModel& model,
                 OpenAiCall call,
                 const HttpRequest& request) {
  const bool stream = call.stream;
  const auto generation =
      std::make_shared<Generation>(front, for_generation(model), call.prompts, call.settings);
  const auto form = std::make_shared<const OpenAiForm>(model, std::move(call));
  if (stream) {  // the three functions own the form together
    return stream_events(
        generation,
        {.head = [form](Generation& g) { return form->head(g); },
         .piece = [form](Generation& g, const Generation::Piece& p) { return form->piece(g, p); },
         .tail = [form](Generation& g) { return form->tail(g); }});
  }
  finish(*generation, request);
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

void add_openai_routes(RouteTable& routes, EngineFront& front, const ServedModel& model) {
  routes.get("/v1/models", [&](const HttpRequest&) -> HttpReply {
    return {.body = to_text({{"object", "list"}, {"data", Json::array({model_json(model)})}})};
  });
  routes.post("/v1/completions", [&](const HttpRequest& request) {
    return answer(front, model, read_completion(request, model), request);
  });
  routes.post("/v1/chat/completions", [&](const HttpRequest& request) {
    return answer(front, model, read_chat(request, model), request);
  });
}

}  // namespace ferry
