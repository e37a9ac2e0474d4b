#include "ferry/server/responses_form.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "ferry/server/event_stream.h"
#include "ferry/server/openai_logprobs.h"

namespace ferry {

using Json = nlohmann::ordered_json;

namespace {

/// What clients expect to find again of what they asked for.
Json frame_of(const ServedModel& model, const Json& body, const OpenAiCall& call) {
  const JsonFields fields(body);
  const auto given = [&](const char* name, const Json& otherwise) {
    const Json* value = fields.find(name);
    return value == nullptr ? otherwise : *value;
  };
  const Json effort = given("reasoning", Json::object()).value("effort", Json(nullptr));
  return {{"id", call.id},
          {"object", "response"},
          {"created_at", call.created},
          {"status", "in_progress"},
          {"background", false},
          {"error", nullptr},
          {"incomplete_details", nullptr},
          {"instructions", given("instructions", nullptr)},
          {"max_output_tokens", given("max_output_tokens", nullptr)},
          {"metadata", given("metadata", Json::object())},
          {"model", model.name},
          {"output", Json::array()},
          {"parallel_tool_calls", given("parallel_tool_calls", true)},
          {"previous_response_id", given("previous_response_id", nullptr)},
          {"reasoning", {{"effort", effort}, {"summary", nullptr}}},
          {"store", given("store", true)},
          {"temperature", call.settings.sampling.temperature},
          {"text", given("text", {{"format", {{"type", "text"}}}})},
          {"tool_choice", given("tool_choice", "auto")},
          {"tools", given("tools", Json::array())},
          {"top_logprobs", given("top_logprobs", 0)},
          {"top_p", call.settings.sampling.top_p},
          {"truncation", "disabled"},
          {"usage", nullptr},
          {"user", given("user", nullptr)}};
}

const char* id_prefix(AnswerPart::Kind kind) {
  switch (kind) {
    case AnswerPart::Kind::thinking:
      return "rs_";
    case AnswerPart::Kind::call:
      return "fc_";
    case AnswerPart::Kind::text:
      break;
  }
  return "msg_";
}

}  // namespace

ResponseForm::ResponseForm(const ServedModel& model, const Json& body, OpenAiCall call, Ended ended)
    : model_(model),
      call_(std::move(call)),
      frame_(std::make_unique<Json>(frame_of(model, body, call_))),
      ended_(std::move(ended)),
      parts_(call_.answer),
      logprobs_(std::make_unique<Json>(Json::array())),
      new_logprobs_(std::make_unique<Json>(Json::array())) {}

ResponseForm::~ResponseForm() = default;

std::string ResponseForm::whole(const Generation& generation) {
  const Choice& choice = generation.choices().front();
  if (call_.logprobs)
    *logprobs_ = chat_logprobs(model_.tokenizer, choice, 0, call_.tokens_by_id)["content"];
  // Bit by bit, as in a stream, so that items have the same order.
  for (const char c : choice.text) put(std::string(1, c), /*last=*/false, nullptr);
  put("", /*last=*/true, nullptr);
  return to_text(end(generation));
}

std::string ResponseForm::head(const Generation& /*generation*/) {
  std::string events;
  for (const char* type : {"response.created", "response.in_progress"})
    events += event({{"type", type}, {"response", *frame_}});
  return events;
}

std::string ResponseForm::piece(const Generation& generation, const Generation::Piece& piece) {
  const Choice& choice = generation.choices().front();
  *new_logprobs_ = Json::array();
  if (call_.logprobs && piece.token >= 0) {
    *new_logprobs_ = chat_logprobs(
        model_.tokenizer, choice, choice.logprobs.size() - 1, call_.tokens_by_id)["content"];
    logprobs_->insert(logprobs_->end(), new_logprobs_->begin(), new_logprobs_->end());
  }
  std::string events;
  put(piece.text, !choice.finish.empty(), &events);
  return events;
}

std::string ResponseForm::tail(const Generation& generation) {
  const Json json = end(generation);
  return event({{"type", "response." + json["status"].get<std::string>()}, {"response", json}});
}

std::string ResponseForm::failure(const HttpError& error) {
  Json failed = *frame_;
  failed["status"] = "failed";
  failed["error"] = {{"code", error.status() == 429 ? "rate_limit_exceeded" : "server_error"},
                     {"message", error.what()}};
  // One after the other, since events are numbered.
  std::string events = event({{"type", "error"},
                              {"code", failed["error"]["code"]},
                              {"message", error.what()},
                              {"param", nullptr}});
  events += event({{"type", "response.failed"}, {"response", std::move(failed)}});
  return events;
}

/// `events`: null where nobody wants any.
void ResponseForm::put(const std::string& text, bool last, std::string* events) {
  using What = AnswerParts::Step::What;
  for (const AnswerParts::Step& step : parts_.put(text, last)) {
    if (step.what == What::begins)
      ids_.push_back(new_id(id_prefix(parts_.parts()[step.part].kind)));
    if (events == nullptr) continue;
    if (step.what == What::begins) *events += begin(step.part);
    if (step.what == What::grows) *events += grow(step.part, step.text);
    if (step.what == What::ends) *events += end(step.part);
  }
}

std::string ResponseForm::event(Json json) {
  json["sequence_number"] = events_++;
  return named_event(json);
}

/// An event of a part.
Json ResponseForm::place(const char* type, std::size_t part) const {
  Json json{{"type", type}, {"item_id", ids_[part]}, {"output_index", part}};
  if (parts_.parts()[part].kind != AnswerPart::Kind::call) json["content_index"] = 0;
  return json;
}

std::string ResponseForm::begin(std::size_t part) {
  std::string events = event({{"type", "response.output_item.added"},
                              {"output_index", part},
                              {"item", item(part, /*whole=*/false)}});
  if (parts_.parts()[part].kind == AnswerPart::Kind::call) return events;
  Json added = place("response.content_part.added", part);
  added["part"] = content_of(part, "");
  return events + event(std::move(added));
}

std::string ResponseForm::grow(std::size_t part, const std::string& text) {
  const AnswerPart::Kind kind = parts_.parts()[part].kind;
  Json json = place(kind == AnswerPart::Kind::call       ? "response.function_call_arguments.delta"
                    : kind == AnswerPart::Kind::thinking ? "response.reasoning_text.delta"
                                                         : "response.output_text.delta",
                    part);
  json["delta"] = text;
  if (kind == AnswerPart::Kind::text)
    json["logprobs"] = std::exchange(*new_logprobs_, Json::array());
  return event(std::move(json));
}

std::string ResponseForm::end(std::size_t part) {
  const AnswerPart& whole = parts_.parts()[part];
  std::string events;
  if (whole.kind == AnswerPart::Kind::call) {
    Json done = place("response.function_call_arguments.done", part);
    done["name"] = whole.name;
    done["arguments"] = whole.text;
    events += event(std::move(done));
  } else {
    const bool text = whole.kind == AnswerPart::Kind::text;
    Json done = place(text ? "response.output_text.done" : "response.reasoning_text.done", part);
    done["text"] = whole.text;
    if (text) done["logprobs"] = *logprobs_;
    events += event(std::move(done));
    Json ended = place("response.content_part.done", part);
    ended["part"] = content_of(part, whole.text);
    events += event(std::move(ended));
  }
  return events + event({{"type", "response.output_item.done"},
                         {"output_index", part},
                         {"item", item(part, /*whole=*/true)}});
}

Json ResponseForm::content_of(std::size_t part, const std::string& text) const {
  if (parts_.parts()[part].kind == AnswerPart::Kind::thinking)
    return {{"type", "reasoning_text"}, {"text", text}};
  return {{"type", "output_text"},
          {"text", text},
          {"annotations", Json::array()},
          {"logprobs", text.empty() ? Json::array() : *logprobs_}};
}

Json ResponseForm::item(std::size_t part, bool whole) const {
  const AnswerPart& shown = parts_.parts()[part];
  Json json{{"id", ids_[part]}};
  switch (shown.kind) {
    case AnswerPart::Kind::thinking:
      json.update({{"type", "reasoning"}, {"summary", Json::array()}});
      break;
    case AnswerPart::Kind::text:
      json.update({{"type", "message"}, {"role", "assistant"}});
      break;
    case AnswerPart::Kind::call:
      json.update({{"type", "function_call"},
                   {"call_id", shown.call_id},
                   {"name", shown.name},
                   {"arguments", whole ? shown.text : ""}});
      break;
  }
  json["status"] = whole ? "completed" : "in_progress";
  if (shown.kind != AnswerPart::Kind::call) {
    json["content"] = Json::array();
    if (whole) json["content"].push_back(content_of(part, shown.text));
  }
  return json;
}

Json ResponseForm::end(const Generation& generation) {
  Json json = response(generation);
  if (ended_) ended_(json);
  return json;
}

/// Of an answer that has ended.
Json ResponseForm::response(const Generation& generation) const {
  Json json = *frame_;
  const Choice& choice = generation.choices().front();
  json["status"] = choice.finish == "stop" ? "completed" : "incomplete";
  if (choice.finish == "length") json["incomplete_details"] = {{"reason", "max_output_tokens"}};
  for (std::size_t i = 0; i < parts_.parts().size(); ++i)
    json["output"].push_back(item(i, /*whole=*/true));
  // The one that was cut off is the last.
  if (choice.finish != "stop" && !json["output"].empty())
    json["output"].back()["status"] = "incomplete";
  json["usage"] = usage(generation);
  return json;
}

Json ResponseForm::usage(const Generation& generation) const {
  std::size_t thinking = 0;  // the tokens of its text, which are those that came but for its ends
  for (const AnswerPart& part : parts_.parts())
    if (part.kind == AnswerPart::Kind::thinking)
      thinking += encode(model_, part.text, false).size();
  return {{"input_tokens", generation.prompt_tokens()},
          {"input_tokens_details",
           {{"cached_tokens", generation.cached_tokens()}, {"cache_write_tokens", 0}}},
          {"output_tokens", generation.completion_tokens()},
          {"output_tokens_details", {{"reasoning_tokens", thinking}}},
          {"total_tokens", generation.prompt_tokens() + generation.completion_tokens()}};
}

}  // namespace ferry
