#include "ferry/server/sglang_api.h"

#include <algorithm>
#include <atomic>
#include <nlohmann/json.hpp>
#include <utility>

#include "ferry/core/error.h"
#include "ferry/server/event_stream.h"
#include "ferry/server/generate_call.h"
#include "ferry/server/generation.h"
#include "ferry/version.h"

namespace ferry {

using Json = nlohmann::ordered_json;

std::uint64_t client_of(const HttpRequest& request) {
  return std::hash<std::string>{}(request.peer);
}

namespace {

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
        names_(call.names) {
    for (const GenerationSettings& settings : call.settings)
      asks_.push_back(
          {.logprobs = settings.top_logprobs.has_value(), .ids = !settings.logprob_ids.empty()});
    static std::atomic<std::uint64_t> calls{0};
    if (names_.front().empty()) names_.front() = fmt::format("gen-{}", calls++);
  }

  /// A choice as far as it has come.
  Json choice(const Generation& generation, std::size_t index) const {
    const Choice& choice = generation.choices()[index];
    Json meta{{"id", name(generation, index)},
              {"finish_reason", reason_of_end(choice)},
              {"prompt_tokens", choice.prompt_tokens},
              {"completion_tokens", choice.ids.size()},
              {"cached_tokens", choice.cached_tokens},
              {"e2e_latency", generation.seconds()}};
    const std::size_t prompt = index / static_cast<std::size_t>(choices_);
    if (asks_[prompt].logprobs) {
      add_prompt_logprobs(choice, prompt, meta);
      add_output_logprobs(choice, asks_[prompt].ids, meta);
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
  /// What a prompt's choices tell.
  struct Asks {
    bool logprobs = false;
    bool ids = false;  ///< those of given ids
  };

  std::string name(const Generation& generation, std::size_t index) const {
    const auto choices = static_cast<std::size_t>(choices_);
    if (generation.choices().size() == 1) return names_.front();
    if (names_.size() == 1) return fmt::format("{}-{}", names_.front(), index);
    const std::string& of_prompt = names_[index / choices];
    return choices == 1 ? of_prompt : fmt::format("{}-{}", of_prompt, index % choices);
  }

  Json list(const std::vector<TokenLogprob>& tokens) const {
    Json all = Json::array();
    for (const TokenLogprob& t : tokens) all.push_back(logprob(model_, t.logprob, t.id));
    return all;
  }

  void add_output_logprobs(const Choice& choice, bool ids, Json& meta) const {
    Json& chosen = meta["output_token_logprobs"] = Json::array();
    Json top = Json::array();
    Json asked = Json::array();
    for (std::size_t i = 0; i < choice.logprobs.size(); ++i) {
      chosen.push_back(logprob(model_, choice.logprobs[i].chosen, choice.ids[i]));
      top.push_back(list(choice.logprobs[i].top));
      if (ids) asked.push_back(list(choice.logprobs[i].asked));
    }
    meta["output_top_logprobs"] = std::move(top);
    if (ids) meta["output_token_ids_logprobs"] = std::move(asked);
  }

  /// As SGLang has it, the first of them has none, wherever it stands.
  void add_prompt_logprobs(const Choice& choice, std::size_t prompt_number, Json& meta) const {
    const bool ids = asks_[prompt_number].ids;
    const std::vector<std::int32_t>& prompt = prompts_[prompt_number];
    Json tokens = Json::array();
    Json top = Json::array();
    Json asked = Json::array();
    if (from_ && static_cast<std::size_t>(*from_) < prompt.size()) {
      const auto from = static_cast<std::size_t>(*from_);
      tokens.push_back(logprob(model_, nullptr, prompt[from]));
      top.push_back(nullptr);
      asked.push_back(nullptr);
      const std::size_t told = prompt.size() - choice.prompt_logprobs.size();
      for (std::size_t i = from + 1; i < prompt.size() && i >= told; ++i) {
        const Logprobs& l = choice.prompt_logprobs[i - told];
        tokens.push_back(logprob(model_, l.chosen, prompt[i]));
        top.push_back(list(l.top));
        asked.push_back(list(l.asked));
      }
    }
    meta["input_token_logprobs"] = std::move(tokens);
    meta["input_top_logprobs"] = std::move(top);
    if (ids) meta["input_token_ids_logprobs"] = std::move(asked);
  }

  const ServedModel& model_;
  bool batch_;
  int choices_;
  std::vector<std::vector<std::int32_t>> prompts_;
  std::optional<int> from_;  // where log probabilities of prompts begin
  std::vector<Asks> asks_;   // of each prompt
  std::vector<std::string> names_;
};

HttpReply generate(EngineFront& front,
                   const ServedModel& model,
                   CallRegistry& calls,
                   const HttpRequest& request) {
  const GenerateCall call = read_generate(request, model);
  const CallRegistry::Aborted aborted = calls.add(call.names);
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
    const std::vector<std::string> names = fields.texts("rid");
    if (names.empty() || std::find(names.begin(), names.end(), "") != names.end())
      fail<ConfigError>("give the \"rid\" of a call, or a list of them, or \"abort_all\"");
    for (const std::string& name : names) calls.abort(name);
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
          {"activations", model.activations},
          {"numerics", model.numerics},
          {"kv_cache_dtype", model.kv_type},
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
