#include "ferry/server/sglang_api.h"

#include <atomic>
#include <nlohmann/json.hpp>
#include <utility>

#include "ferry/core/error.h"
#include "ferry/server/event_stream.h"
#include "ferry/server/generation.h"

namespace ferry {

using Json = nlohmann::ordered_json;

std::uint64_t client_of(const HttpRequest& request) {
  return std::hash<std::string>{}(request.peer);
}

namespace {

constexpr int kDefaultNewTokens = 128;

struct GenerateCall {
  std::vector<std::vector<std::int32_t>> prompts;
  bool batch = false;  ///< the reply is a list
  GenerationSettings settings;
  bool stream = false;
};

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
void read_settings(const JsonFields& fields, GenerationSettings& settings) {
  read_common_settings(fields, settings);
  for (const char* name : {"max_new_tokens", "max_tokens", "max_completion_tokens"}) {
    if (const auto v = fields.integer(name)) {
      if (*v < 1 || *v > INT32_MAX)
        fail<ConfigError>("\"{}\" must be at least 1, not {}", name, *v);
      settings.max_new_tokens = static_cast<int>(*v);
    }
  }
}

GenerateCall read_call(const HttpRequest& request, const ServedModel& model) {
  const Json body = parse_object(request.body);
  const JsonFields fields(body);
  GenerateCall call;
  read_prompts(fields, model, call);
  call.settings.sampling = model.sampling;
  call.settings.max_new_tokens = kDefaultNewTokens;
  call.settings.client = client_of(request);
  read_settings(fields, call.settings);
  if (const Json* params = fields.find("sampling_params"))
    read_settings(JsonFields(*params), call.settings);
  if (fields.boolean("return_logprob").value_or(false)) {
    const std::int64_t top = fields.integer("top_logprobs_num").value_or(0);
    if (top < 0 || top > kMaxTopLogprobs)
      fail<ConfigError>("\"top_logprobs_num\" must be 0 to {}, not {}", kMaxTopLogprobs, top);
    call.settings.top_logprobs = static_cast<int>(top);
  }
  call.stream = fields.boolean("stream").value_or(false);
  return call;
}

Json finish_reason(const Choice& choice) {
  if (choice.finish.empty()) return nullptr;
  if (choice.finish == "length") return {{"type", "length"}, {"length", choice.ids.size()}};
  if (!choice.matched.empty()) return {{"type", "stop"}, {"matched", choice.matched}};
  return {{"type", "stop"}, {"matched", choice.ids.back()}};
}

Json logprob(const ServedModel& model, float value, std::int32_t id) {
  return Json::array({value, id, token_text(model.tokenizer, id)});
}

/// A choice as far as it has come.
Json choice_json(const ServedModel& model,
                 const Generation& generation,
                 std::size_t index,
                 std::uint64_t call_number) {
  const Choice& choice = generation.choices()[index];
  Json meta{{"id", fmt::format("gen-{}-{}", call_number, index)},
            {"finish_reason", finish_reason(choice)},
            {"prompt_tokens", choice.prompt_tokens},
            {"completion_tokens", choice.ids.size()},
            {"cached_tokens", 0},
            {"e2e_latency", generation.seconds()}};
  if (!choice.logprobs.empty()) {
    Json& chosen = meta["output_token_logprobs"] = Json::array();
    Json& top = meta["output_top_logprobs"] = Json::array();
    for (std::size_t i = 0; i < choice.logprobs.size(); ++i) {
      chosen.push_back(logprob(model, choice.logprobs[i].chosen, choice.ids[i]));
      Json& tokens = top.emplace_back(Json::array());
      for (const TokenLogprob& t : choice.logprobs[i].top)
        tokens.push_back(logprob(model, t.logprob, t.id));
    }
  }
  Json json{{"text", choice.text}, {"output_ids", choice.ids}, {"meta_info", std::move(meta)}};
  if (generation.choices().size() > 1) json["index"] = index;
  return json;
}

HttpReply generate(EngineFront& front, const ServedModel& model, const HttpRequest& request) {
  static std::atomic<std::uint64_t> calls{0};
  const std::uint64_t number = calls++;
  GenerateCall call = read_call(request, model);
  const auto generation =
      std::make_shared<Generation>(front, for_generation(model), call.prompts, call.settings);
  if (call.stream) {
    return stream_events(generation,
                         {.head = [](Generation&) { return std::string(); },
                          .piece =
                              [&model, number](Generation& g, const Generation::Piece& piece) {
                                return to_text(choice_json(model, g, piece.choice, number));
                              },
                          .tail = [](Generation&) { return std::string(); }});
  }
  finish(*generation, request);
  if (!call.batch && call.settings.choices == 1)
    return {.body = to_text(choice_json(model, *generation, 0, number))};
  Json list = Json::array();
  for (std::size_t i = 0; i < generation->choices().size(); ++i)
    list.push_back(choice_json(model, *generation, i, number));
  return {.body = to_text(list)};
}

HttpReply model_info(const ServedModel& model) {
  return {.body = to_text({{"model_path", model.path},
                           {"served_model_name", model.name},
                           {"tokenizer_path", model.path},
                           {"is_generation", true},
                           {"context_length", model.max_context},
                           {"vocab_size", model.config->vocab},
                           {"num_layers", model.config->layers},
                           {"num_experts", model.config->moe.experts},
                           {"weights", model.weights},
                           {"moe_a2a_backend", model.backend},
                           {"transport", model.transport},
                           {"ep", model.ranks}})};
}

HttpReply tokenize(const ServedModel& model, const HttpRequest& request) {
  const Json body = parse_object(request.body);
  const JsonFields fields(body);
  const char* name = fields.has("text") ? "text" : "prompt";
  const std::optional<std::string> text = fields.text(name);
  if (!text) fail<ConfigError>("give a \"prompt\" or a \"text\" to tokenize");
  const auto ids = encode(model, *text, fields.boolean("add_special_tokens").value_or(true));
  return {.body = to_text(
              {{"tokens", ids}, {"count", ids.size()}, {"max_model_len", model.max_context}})};
}

HttpReply detokenize(const ServedModel& model, const HttpRequest& request) {
  const Json body = parse_object(request.body);
  const JsonFields fields(body);
  if (!fields.has("tokens")) fail<ConfigError>("give \"tokens\", a list of token ids");
  if (model.tokenizer == nullptr) fail<ConfigError>("this model has no tokenizer");
  const std::string text = model.tokenizer->decode(
      fields.ids("tokens"), fields.boolean("skip_special_tokens").value_or(false));
  return {.body = to_text({{"prompt", text}, {"text", text}})};
}

}  // namespace

void add_sglang_routes(RouteTable& routes, EngineFront& front, const ServedModel& model) {
  routes.post("/generate", [&](const HttpRequest& r) { return generate(front, model, r); });
  routes.get("/get_model_info", [&](const HttpRequest&) { return model_info(model); });
  routes.post("/tokenize", [&](const HttpRequest& r) { return tokenize(model, r); });
  routes.post("/detokenize", [&](const HttpRequest& r) { return detokenize(model, r); });
}

}  // namespace ferry
