#include "ferry/server/openai_call.h"

#include <fmt/core.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <random>

#include "ferry/core/error.h"
#include "ferry/server/generation.h"
#include "ferry/server/members.h"
#include "ferry/server/sglang_api.h"
#include "ferry/text/chat.h"

namespace ferry {

using Json = nlohmann::ordered_json;

namespace {

constexpr int kDefaultCompletionTokens = 16;

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
  read_settings(fields, model.tokenizer, call.settings);
  if (const auto most = max_new_tokens(
          fields, {"max_tokens", "max_completion_tokens"}, /*least=*/call.chat ? 1 : 0))
    call.settings.max_new_tokens = most;
  call.settings.client =
      client_of(request) ^ std::hash<std::string>{}(fields.text("user").value_or(""));
  call.stream = fields.boolean("stream").value_or(false);
  if (const Json* options = fields.find("stream_options"))
    call.stream_usage = JsonFields(*options).boolean("include_usage").value_or(false);
  call.tokens_by_id = fields.boolean("return_tokens_as_token_ids").value_or(false);
  call.settings.cache_salt = cache_salt(fields);
  call.token_ids = fields.boolean("return_token_ids").value_or(false);
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

/// vLLM's and echo's. One number says for both, and for the tokens behind, how many are told.
void read_prompt_logprobs(const JsonFields& fields, OpenAiCall& call) {
  call.prompt_logprobs = fields.has("prompt_logprobs");
  const int top = top_logprobs(fields, "prompt_logprobs");
  if (call.prompt_logprobs || (call.echo && call.logprobs)) call.settings.prompt_logprobs_from = 0;
  if (!call.prompt_logprobs) return;
  if (call.stream) fail<ConfigError>("\"prompt_logprobs\" cannot be streamed");
  if (call.logprobs && top != call.settings.top_logprobs)
    fail<ConfigError>("\"prompt_logprobs\" and the others must tell the same number of tokens");
  call.settings.top_logprobs = top;
}

/// What the prompts are, word for word where they came as text.
void read_echo(const JsonFields& fields, const ServedModel& model, OpenAiCall& call) {
  call.echo = fields.boolean("echo").value_or(false);
  if (!call.echo) return;
  const Json& prompt = *fields.find("prompt");
  const bool texts = prompt.is_string() || (prompt.is_array() && prompt.front().is_string());
  if (texts && !fields.has("truncate_prompt_tokens")) {
    call.echoes = fields.texts("prompt");
    return;
  }
  if (model.tokenizer == nullptr)
    fail<ConfigError>("\"echo\" needs a tokenizer, which this model has not");
  for (const std::vector<std::int32_t>& ids : call.prompts)
    call.echoes.push_back(model.tokenizer->decode(ids, call.settings.skip_special));
}

}  // namespace

std::string new_id(std::string_view prefix) {
  std::random_device device;
  return fmt::format("{}{:08x}{:08x}{:08x}", prefix, device(), device(), device());
}

OpenAiCall read_completion(const HttpRequest& request, const ServedModel& model) {
  const Json body = parse_object(request.body);
  check_members(RequestKind::completion, body);
  const JsonFields fields(body);
  OpenAiCall call{.id = new_id("cmpl-")};
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
  call.names = call_names(fields, call.prompts.size());
  truncate_prompts(fields, model, call);
  read_echo(fields, model, call);
  read_prompt_logprobs(fields, call);
  return call;
}

OpenAiCall read_chat(const HttpRequest& request, const ServedModel& model) {
  const Json body = parse_object(request.body);
  check_members(RequestKind::chat, body);
  return read_chat(body, request, model);
}

OpenAiCall read_chat(const Json& body, const HttpRequest& request, const ServedModel& model) {
  const JsonFields fields(body);
  OpenAiCall call{.chat = true, .id = new_id("chatcmpl-")};
  read_shared(fields, model, request, call);
  const int top = top_logprobs(fields, "top_logprobs");
  call.logprobs = fields.boolean("logprobs").value_or(false);
  if (call.logprobs) call.settings.top_logprobs = top;
  read_prompt_logprobs(fields, call);
  call.answer = AnswerPlan(fields, model);
  const std::string prompt = chat_prompt(fields, model.render_chat, call.answer.tools());
  if (call.answer.automatic() && prompt == chat_prompt(fields, model.render_chat))
    fail<ConfigError>(
        "the model's chat template passes over \"tools\"; leave them out, or make \"tool_choice\" "
        "required or a function");
  call.answer.settle(prompt, model, call.settings);
  call.prompts.push_back(
      encode(model, prompt, fields.boolean("add_special_tokens").value_or(false)));
  call.names = call_names(fields, call.prompts.size());
  truncate_prompts(fields, model, call);
  return call;
}

}  // namespace ferry
