#include "ferry/server/sglang_api.h"

#include <atomic>
#include <nlohmann/json.hpp>
#include <utility>

#include "ferry/core/error.h"
#include "ferry/server/event_stream.h"
#include "ferry/server/generation.h"
#include "ferry/server/members.h"
#include "ferry/version.h"

namespace ferry {

using Json = nlohmann::ordered_json;

std::uint64_t client_of(const HttpRequest& request) {
  return std::hash<std::string>{}(request.peer);
}

namespace {

constexpr int kDefaultNewTokens = 128;

struct GenerateCall {
  std::vector<std::vector<std::int32_t>> prompts;
  bool batch = false;                        ///< the reply is a list
  std::vector<GenerationSettings> settings;  ///< of each prompt
  std::string rid;
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
void read_settings(const JsonFields& fields,
                   const ServedModel& model,
                   GenerationSettings& settings) {
  read_common_settings(fields, model, settings);
  if (const auto most = max_new_tokens(
          fields, {"max_new_tokens", "max_tokens", "max_completion_tokens"}, /*least=*/0))
    settings.max_new_tokens = most;
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
  if (params.size() != call.prompts.size())
    fail<ConfigError>(
        "\"sampling_params\" has {} members for {} prompts; give one for each, or one "
        "that is no list",
        params.size(),
        call.prompts.size());
  for (std::size_t i = 0; i < params.size(); ++i) {
    read(params[i], call.settings[i]);
    if (call.settings[i].choices != call.settings.front().choices)
      fail<ConfigError>("\"n\" must be the same in all \"sampling_params\"");
  }
}

GenerateCall read_call(const HttpRequest& request, const ServedModel& model) {
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
  if (fields.boolean("return_logprob").value_or(false)) {
    settings.top_logprobs = top;
    if (from >= 0) settings.prompt_logprobs_from = static_cast<int>(from);
  }
  call.settings.assign(call.prompts.size(), settings);
  if (const Json* params = fields.find("sampling_params"))
    read_sampling_params(*params, model, call);
  call.rid = fields.text("rid").value_or("");
  call.stream = fields.boolean("stream").value_or(false);
  return call;
}

Json reason_of_end(const Choice& choice) {
  if (choice.finish.empty()) return nullptr;
  if (choice.finish == "cancelled") return {{"type", "abort"}, {"message", "Aborted"}};
  if (choice.finish == "length") return {{"type", "length"}, {"length", choice.ids.size()}};
  if (!choice.matched.empty()) return {{"type", "stop"}, {"matched", choice.matched}};
  return {{"type", "stop"}, {"matched", choice.ids.back()}};
}

Json logprob(const ServedModel& model, const Json& value, std::int32_t id) {
  return Json::array({value, id, token_text(model.tokenizer, id)});
}

/// How the replies of one call look.
class GenerateForm {
 public:
  GenerateForm(const ServedModel& model, const GenerateCall& call)
      : model_(model),
        batch_(call.batch),
        choices_(call.settings.front().choices),
        prompts_(call.prompts),
        from_(call.settings.front().prompt_logprobs_from),
        logprobs_(call.settings.front().top_logprobs.has_value()),
        id_(call.rid) {
    static std::atomic<std::uint64_t> calls{0};
    if (id_.empty()) id_ = fmt::format("gen-{}", calls++);
  }

  /// A choice as far as it has come.
  Json choice(const Generation& generation, std::size_t index) const {
    const Choice& choice = generation.choices()[index];
    Json meta{{"id", generation.choices().size() == 1 ? id_ : fmt::format("{}-{}", id_, index)},
              {"finish_reason", reason_of_end(choice)},
              {"prompt_tokens", choice.prompt_tokens},
              {"completion_tokens", choice.ids.size()},
              {"cached_tokens", choice.cached_tokens},
              {"e2e_latency", generation.seconds()}};
    if (logprobs_) {
      add_prompt_logprobs(choice, index, meta);
      Json& chosen = meta["output_token_logprobs"] = Json::array();
      Json& top = meta["output_top_logprobs"] = Json::array();
      for (std::size_t i = 0; i < choice.logprobs.size(); ++i) {
        chosen.push_back(logprob(model_, choice.logprobs[i].chosen, choice.ids[i]));
        Json& tokens = top.emplace_back(Json::array());
        for (const TokenLogprob& t : choice.logprobs[i].top)
          tokens.push_back(logprob(model_, t.logprob, t.id));
      }
    }
    Json json{{"text", choice.text}, {"output_ids", choice.ids}, {"meta_info", std::move(meta)}};
    if (generation.choices().size() > 1) json["index"] = index;
    return json;
  }

  std::string whole(const Generation& generation) const {
    if (!batch_ && choices_ == 1) return to_text(choice(generation, 0));
    Json list = Json::array();
    for (std::size_t i = 0; i < generation.choices().size(); ++i)
      list.push_back(choice(generation, i));
    return to_text(list);
  }

 private:
  /// As SGLang has it, the first of them has none, wherever it stands.
  void add_prompt_logprobs(const Choice& choice, std::size_t index, Json& meta) const {
    Json& tokens = meta["input_token_logprobs"] = Json::array();
    Json& top = meta["input_top_logprobs"] = Json::array();
    const std::vector<std::int32_t>& prompt = prompts_[index / static_cast<std::size_t>(choices_)];
    if (!from_ || static_cast<std::size_t>(*from_) >= prompt.size()) return;
    const auto from = static_cast<std::size_t>(*from_);
    tokens.push_back(logprob(model_, nullptr, prompt[from]));
    top.push_back(nullptr);
    const std::size_t told = prompt.size() - choice.prompt_logprobs.size();
    for (std::size_t i = from + 1; i < prompt.size() && i >= told; ++i) {
      const Logprobs& l = choice.prompt_logprobs[i - told];
      tokens.push_back(logprob(model_, l.chosen, prompt[i]));
      Json& most = top.emplace_back(Json::array());
      for (const TokenLogprob& t : l.top) most.push_back(logprob(model_, t.logprob, t.id));
    }
  }

  const ServedModel& model_;
  bool batch_;
  int choices_;
  std::vector<std::vector<std::int32_t>> prompts_;
  std::optional<int> from_;  // where log probabilities of prompts begin
  bool logprobs_;
  std::string id_;
};

HttpReply generate(EngineFront& front,
                   const ServedModel& model,
                   CallRegistry& calls,
                   const HttpRequest& request) {
  const GenerateCall call = read_call(request, model);
  const CallRegistry::Aborted aborted = calls.add(call.rid);
  const auto generation =
      std::make_shared<Generation>(front, for_generation(model), call.prompts, call.settings);
  const GenerateForm form(model, call);
  if (call.stream) {
    return stream_events(generation,
                         unnamed_events({.head = [](Generation&) { return std::string(); },
                                         .piece =
                                             [form](Generation& g, const Generation::Piece& piece) {
                                               return to_text(form.choice(g, piece.choice));
                                             },
                                         .tail = [](Generation&) { return std::string(); },
                                         .failure = {}}),
                         aborted);
  }
  return answer_when_done(
      generation, [form](Generation& g) { return form.whole(g); }, aborted);
}

HttpReply abort_request(CallRegistry& calls, const HttpRequest& request) {
  const Json body = parse_object(request.body);
  const JsonFields fields(body);
  if (fields.boolean("abort_all").value_or(false)) {
    calls.abort_all();
  } else {
    const std::string rid = fields.text("rid").value_or("");
    if (rid.empty()) fail<ConfigError>("give the \"rid\" of a call, or \"abort_all\"");
    calls.abort(rid);
  }
  return {.body = "{}"};
}

/// One token, to see that the engine gives any.
HttpReply generate_for_health(EngineFront& front,
                              const ServedModel& model,
                              const HttpRequest& request) {
  const GenerationSettings settings{.max_new_tokens = 1, .client = client_of(request)};
  auto generation = std::make_shared<Generation>(
      front, for_generation(model), std::vector<std::vector<std::int32_t>>{{0}}, settings);
  const auto whole = [](Generation&) { return to_text({{"status", "ok"}}); };
  return answer_when_done(std::move(generation), whole, std::make_shared<AbortFlag>());
}

Json info(const ServedModel& model) {
  return {{"model_path", model.path},
          {"served_model_name", model.name},
          {"tokenizer_path", model.path},
          {"is_generation", true},
          {"context_length", model.max_context},
          {"vocab_size", model.config->vocab},
          {"num_layers", model.config->layers},
          {"num_experts", model.config->moe.experts},
          {"weights", model.weights},
          {"numerics", model.numerics},
          {"moe_a2a_backend", model.backend},
          {"transport", model.transport},
          {"ep", model.ranks}};
}

HttpReply model_info(const ServedModel& model) { return {.body = to_text(info(model))}; }

struct LoadNow {
  EngineStats stats;
  std::int64_t kv_capacity = 0;
};

LoadNow load_of(EngineFront& front) {
  LoadNow now;
  front.between_steps([&](Engine& engine) {
    now = {.stats = engine.stats(), .kv_capacity = engine.kv_capacity()};
  });
  return now;
}

HttpReply server_info(EngineFront& front, const ServedModel& model) {
  Json json = info(model);
  json["version"] = version();
  const LoadNow now = load_of(front);
  json["ep"] = json["ep_size"] = now.stats.ranks;  // with --elastic others than at the start
  json["max_total_num_tokens"] = now.kv_capacity;
  json["status"] = "ready";
  return {.body = to_text(json)};
}

/// SGLang has an entry for each of its schedulers; here there is one.
HttpReply load(EngineFront& front) {
  const EngineStats stats = load_of(front).stats;
  return {.body =
              to_text(Json::array({{{"dp_rank", 0},
                                    {"num_reqs", stats.requests_running + stats.requests_waiting},
                                    {"num_waiting_reqs", stats.requests_waiting},
                                    {"num_tokens", stats.kv_tokens}}}))};
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

void add_sglang_routes(RouteTable& routes,
                       EngineFront& front,
                       const ServedModel& model,
                       CallRegistry& calls) {
  routes.post("/generate", [&](const HttpRequest& r) { return generate(front, model, calls, r); });
  routes.post("/abort_request", [&](const HttpRequest& r) { return abort_request(calls, r); });
  routes.get(
      "/health_generate",
      [&](const HttpRequest& r) { return generate_for_health(front, model, r); },
      /*open=*/true);
  for (const char* path : {"/model_info", "/get_model_info"})
    routes.get(path, [&](const HttpRequest&) { return model_info(model); });
  for (const char* path : {"/server_info", "/get_server_info"})
    routes.get(path, [&](const HttpRequest&) { return server_info(front, model); });
  routes.get("/get_load", [&](const HttpRequest&) { return load(front); });
  routes.post("/tokenize", [&](const HttpRequest& r) { return tokenize(model, r); });
  routes.post("/detokenize", [&](const HttpRequest& r) { return detokenize(model, r); });
}

}  // namespace ferry
