#include "ferry/server/messages_api.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "ferry/core/error.h"
#include "ferry/server/answer_parts.h"
#include "ferry/server/call_answer.h"
#include "ferry/server/messages_call.h"

namespace ferry {

using Json = nlohmann::ordered_json;

namespace {

const char* error_name(int status) {
  switch (status) {
    case 401:
      return "authentication_error";
    case 404:
      return "not_found_error";
    case 413:
      return "request_too_large";
    case 429:
      return "rate_limit_error";
    case 503:
      return "overloaded_error";
    default:
      return status < 500 ? "invalid_request_error" : "api_error";
  }
}

Json error_json(const HttpError& error) {
  return {{"type", "error"},
          {"error", {{"type", error_name(error.status())}, {"message", error.what()}}}};
}

std::string messages_error(const HttpError& error) { return to_text(error_json(error)); }

/// Arguments are an object there. What is none, as it was cut off or the model cannot do better,
/// is shown under the name that Anthropic recommends for it.
Json input_of(const AnswerPart& call) {
  if (call.text.empty()) return Json::object();
  Json input = Json::parse(call.text, nullptr, /*allow_exceptions=*/false);
  return input.is_object() ? input : Json{{"INVALID_JSON", call.text}};
}

/// A block as a stream begins it.
Json empty_block(const AnswerPart& part) {
  switch (part.kind) {
    case AnswerPart::Kind::thinking:
      return {{"type", "thinking"}, {"thinking", ""}, {"signature", ""}};
    case AnswerPart::Kind::call:
      return {{"type", "tool_use"},
              {"id", part.call_id},
              {"name", part.name},
              {"input", Json::object()}};
    case AnswerPart::Kind::text:
      break;
  }
  return {{"type", "text"}, {"text", ""}};
}

Json block_of(const AnswerPart& part) {
  Json block = empty_block(part);
  if (part.kind == AnswerPart::Kind::call)
    block["input"] = input_of(part);
  else
    block[part.kind == AnswerPart::Kind::text ? "text" : "thinking"] = part.text;
  return block;
}

Json delta_of(AnswerPart::Kind kind, const std::string& text) {
  switch (kind) {
    case AnswerPart::Kind::thinking:
      return {{"type", "thinking_delta"}, {"thinking", text}};
    case AnswerPart::Kind::call:
      return {{"type", "input_json_delta"}, {"partial_json", text}};
    case AnswerPart::Kind::text:
      break;
  }
  return {{"type", "text_delta"}, {"text", text}};
}

class MessageForm {
 public:
  MessageForm(const ServedModel& model, OpenAiCall call)
      : model_(model), call_(std::move(call)), parts_(call_.answer) {}

  const OpenAiCall& call() const { return call_; }

  std::string whole(const Generation& generation) {
    const Choice& choice = generation.choices().front();
    // Bit by bit, as in a stream, so that parts have the same order.
    for (const char c : choice.text) parts_.put(std::string(1, c), /*last=*/false);
    parts_.put("", /*last=*/true);
    Json json = message(generation);
    for (const AnswerPart& part : parts_.parts()) json["content"].push_back(block_of(part));
    json.update(ending(choice));
    return to_text(json);
  }

  /// The message begins with its first token, which is when its usage is known.
  static std::string head(const Generation& /*generation*/) { return {}; }

  std::string piece(const Generation& generation, const Generation::Piece& piece) {
    const Choice& choice = generation.choices().front();
    std::string events;
    if (!std::exchange(begun_, true)) {
      events += named_event({{"type", "message_start"}, {"message", message(generation)}});
    }
    for (const AnswerParts::Step& step : parts_.put(piece.text, !choice.finish.empty()))
      events += event(step);
    return events;
  }

  std::string tail(const Generation& generation) {
    return named_event({{"type", "message_delta"},
                        {"delta", ending(generation.choices().front())},
                        {"usage", usage(generation)}}) +
           named_event({{"type", "message_stop"}});
  }

  static std::string failure(const HttpError& error) { return named_event(error_json(error)); }

 private:
  using What = AnswerParts::Step::What;

  static Json usage(const Generation& generation) {
    const std::size_t cached = generation.cached_tokens();
    return {{"input_tokens", generation.prompt_tokens() - cached},  // those that ran
            {"cache_creation_input_tokens", 0},
            {"cache_read_input_tokens", cached},
            {"output_tokens", generation.completion_tokens()}};
  }

  Json message(const Generation& generation) const {
    return {{"id", call_.id},
            {"type", "message"},
            {"role", "assistant"},
            {"model", model_.name},
            {"content", Json::array()},
            {"stop_reason", nullptr},
            {"stop_sequence", nullptr},
            {"usage", usage(generation)}};
  }

  /// Null where the call was aborted.
  Json stop_reason(const Choice& choice) const {
    if (choice.finish == "cancelled") return nullptr;
    if (choice.finish == "length") {
      const auto most = static_cast<std::size_t>(call_.settings.max_new_tokens.value_or(0));
      return choice.ids.size() < most ? "model_context_window_exceeded" : "max_tokens";
    }
    if (!choice.matched.empty()) return "stop_sequence";
    return parts_.has(AnswerPart::Kind::call) ? "tool_use" : "end_turn";
  }

  Json ending(const Choice& choice) const {
    return {{"stop_reason", stop_reason(choice)},
            {"stop_sequence", choice.matched.empty() ? Json(nullptr) : Json(choice.matched)}};
  }

  std::string event(const AnswerParts::Step& step) const {
    const AnswerPart& part = parts_.parts()[step.part];
    switch (step.what) {
      case What::begins:
        return named_event({{"type", "content_block_start"},
                            {"index", step.part},
                            {"content_block", empty_block(part)}});
      case What::grows:
        return named_event({{"type", "content_block_delta"},
                            {"index", step.part},
                            {"delta", delta_of(part.kind, step.text)}});
      case What::ends:
        break;
    }
    return named_event({{"type", "content_block_stop"}, {"index", step.part}});
  }

  const ServedModel& model_;
  OpenAiCall call_;
  AnswerParts parts_;
  bool begun_ = false;
};

OpenAiCall read_messages(const HttpRequest& request, const ServedModel& model, bool counts) {
  return read_chat(chat_of_messages(parse_object(request.body), counts), request, model);
}

}  // namespace

void add_messages_routes(RouteTable& routes,
                         EngineFront& front,
                         const ServedModel& model,
                         CallRegistry& calls) {
  routes.post(
      "/v1/messages",
      [&](const HttpRequest& request) {
        OpenAiCall call = read_messages(request, model, /*counts=*/false);
        call.id = new_id("msg_");
        const auto form = std::make_shared<MessageForm>(model, std::move(call));
        return answer_call(front, model, calls, form->call(), form_of(form));
      },
      messages_error);
  routes.post(
      "/v1/messages/count_tokens",
      [&](const HttpRequest& request) -> HttpReply {
        const OpenAiCall call = read_messages(request, model, /*counts=*/true);
        return {.body = to_text({{"input_tokens", call.prompts.front().size()}})};
      },
      messages_error);
}

}  // namespace ferry
