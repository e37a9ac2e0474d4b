#include "ferry/server/generate_call.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "ferry/core/error.h"
#include "ferry/server/generation.h"
#include "ferry/server/members.h"
#include "ferry/server/sglang_api.h"

namespace ferry {

using Json = nlohmann::ordered_json;

namespace {

constexpr int kDefaultNewTokens = 128;

/// `text` or `input_ids`, one or a list of them.
void read_prompts(const JsonFields& fields, const ServedModel& model, GenerateCall& call) {
  const Json* text = fields.find("text");
  const Json* ids = fields.find("input_ids");
  if ((text != nullptr) == (ids != nullptr))
    fail<ConfigError>("give exactly one of \"text\" and \"input_ids\"");
  if (text != nullptr) {
    call.batch = text->is_array();
    for (const std::string& one : fields.texts("text")) call.prompts.push_back(encode(model, one));
    return;
  }
  call.batch = ids->is_array() && !ids->empty() && ids->front().is_array();
  if (!call.batch) return call.prompts.push_back(fields.ids("input_ids"));
  for (const Json& one : *ids) call.prompts.push_back(to_ids(one, "input_ids"));
}

/// What stands under "sampling_params", and beside "text" in the flat form.
void read_settings(const JsonFields& fields,
                   const ServedModel& model,
                   GenerationSettings& settings) {
  ferry::read_settings(fields, model.tokenizer, settings);
  if (const auto most = max_new_tokens(
          fields, {"max_new_tokens", "max_tokens", "max_completion_tokens"}, /*least=*/0))
    settings.max_new_tokens = most;
}

void check_one_for_each(const char* name, const Json& list, const GenerateCall& call) {
  if (list.size() != call.prompts.size())
    fail<ConfigError>(
        "\"{}\" has {} members for {} prompts; give one for each, or one that is no list",
        name,
        list.size(),
        call.prompts.size());
}

/// One for all prompts, or a list with one for each.
void read_sampling_params(const Json& params, const ServedModel& model, GenerateCall& call) {
  const auto read = [&](const Json& one, GenerationSettings& settings) {
    const JsonFields fields(one);
    check_members(RequestKind::sampling_params, one);
    read_settings(fields, model, settings);
  };
  if (!params.is_array() || params.empty()) {
    for (GenerationSettings& settings : call.settings) read(params, settings);
    return;
  }
  check_one_for_each("sampling_params", params, call);
  for (std::size_t i = 0; i < params.size(); ++i) {
    read(params[i], call.settings[i]);
    if (call.settings[i].choices != call.settings.front().choices)
      fail<ConfigError>("\"n\" must be the same in all \"sampling_params\"");
  }
}

/// Ids whose log probabilities are told at every position: one list for all prompts, or one or
/// null for each. Without "return_logprob" nothing is told, as with SGLang.
void read_logprob_ids(const JsonFields& fields, bool told, GenerateCall& call) {
  constexpr const char* kName = "token_ids_logprob";
  const Json* given = fields.find(kName);
  if (given == nullptr) return;
  const bool lists = given->is_array() && !given->empty() && !given->front().is_number();
  if (lists) check_one_for_each(kName, *given, call);
  for (std::size_t i = 0; i < call.settings.size(); ++i) {
    const Json& own = lists ? (*given)[i] : *given;
    std::vector<std::int32_t> ids =
        own.is_null() ? std::vector<std::int32_t>{} : to_ids(own, kName);
    if (told) call.settings[i].logprob_ids = std::move(ids);
  }
}

}  // namespace

GenerateCall read_generate(const HttpRequest& request, const ServedModel& model) {
  const Json body = parse_object(request.body);
  check_members(RequestKind::generate, body);
  const JsonFields fields(body);
  GenerateCall call;
  read_prompts(fields, model, call);
  check_lengths(model, call.prompts);
  GenerationSettings settings{.sampling = model.sampling,
                              .max_new_tokens = kDefaultNewTokens,
                              .client = client_of(request)};
  read_settings(fields, model, settings);
  settings.cache_salt = cache_salt(fields);
  const int top = top_logprobs(fields, "top_logprobs_num");
  const std::int64_t from = fields.integer("logprob_start_len").value_or(-1);
  if (from < -1 || from > model.max_context)
    fail<ConfigError>("\"logprob_start_len\" must be -1 (none of the prompt) to {}, not {}",
                      model.max_context,
                      from);
  const bool told = fields.boolean("return_logprob").value_or(false);
  if (told) {
    settings.top_logprobs = top;
    if (from >= 0) settings.prompt_logprobs_from = static_cast<int>(from);
  }
  call.settings.assign(call.prompts.size(), settings);
  read_logprob_ids(fields, told, call);
  if (const Json* params = fields.find("sampling_params"))
    read_sampling_params(*params, model, call);
  call.names = call_names(fields, call.prompts.size());
  call.stream = fields.boolean("stream").value_or(false);
  return call;
}

}  // namespace ferry
