#include "engine.h"

#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <chrono>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "ferry/core/error.h"
#include "ferry/engine/logits_chain.h"
#include "ferry/generator.h"
#include "ferry/text/json_fields.h"
#include "ferry/text/structured_output.h"
#include "interrupt.h"
#include "settings.h"

namespace ferry::python {

namespace {

/// Sampling parameters as processors of the logits read them.
class DictMembers final : public RequestMembers {
 public:
  explicit DictMembers(Settings& settings) : settings_(settings) {}

  std::optional<double> number(const char* name) const override {
    return settings_.find<double>(name);
  }

  std::optional<std::int64_t> integer(const char* name) const override {
    return settings_.find<std::int64_t>(name);
  }

  std::optional<std::vector<std::int32_t>> token_ids(const char* name) const override {
    return settings_.find<std::vector<std::int32_t>>(name);
  }

  std::optional<std::vector<std::pair<std::int32_t, double>>> numbers_by_id(
      const char* name) const override {
    const nb::object given = settings_.object(name);
    if (given.is_none()) return std::nullopt;
    if (!nb::isinstance<nb::dict>(given)) fail<ConfigError>("{} must be a dict of numbers", name);
    std::vector<std::pair<std::int32_t, double>> out;
    for (const auto [id, value] : nb::borrow<nb::dict>(given)) {
      out.emplace_back(nb::cast<std::int32_t>(nb::int_(nb::borrow(id))), nb::cast<double>(value));
    }
    return out;
  }

  /// engine.py has made tokens of them.
  std::optional<std::vector<std::vector<std::int32_t>>> words(const char* name) const override {
    return settings_.find<std::vector<std::vector<std::int32_t>>>(name);
  }

  /// engine.py has made JSON of what there is.
  std::optional<GrammarText> grammar() const override {
    const auto form = settings_.find<std::string>("form");
    if (!form) return std::nullopt;
    const nlohmann::ordered_json json = parse_object(*form);
    return read_grammar(JsonFields(json));
  }

 private:
  Settings& settings_;
};

GenerationSettings generation_settings(const nb::dict& params) {
  Settings settings("SamplingParams", params);
  GenerationSettings out;
  out.sampling.temperature = settings.get("temperature", 1.0);
  out.sampling.top_p = settings.get("top_p", 1.0);
  out.sampling.min_p = settings.get("min_p", 0.0);
  // vLLM says 0 or -1 for all.
  out.sampling.top_k = std::max(0, settings.get("top_k", 0));
  if (const auto seed = settings.find<std::uint64_t>("seed")) {
    out.sampling.seed = *seed;
    out.seeded = true;
  }
  out.max_new_tokens = settings.find<int>("max_tokens");
  const nb::object stop = settings.object("stop");
  if (nb::isinstance<nb::str>(stop)) {
    out.stop.push_back(nb::cast<std::string>(stop));
  } else if (!stop.is_none()) {
    out.stop = nb::cast<std::vector<std::string>>(stop);
  }
  out.stop_ids = settings.get<std::vector<std::int32_t>>("stop_token_ids", {});
  out.ignore_eos = settings.get("ignore_eos", false);
  out.keep_stop = settings.get("include_stop_str_in_output", false);
  out.skip_special = settings.get("skip_special_tokens", true);
  out.top_logprobs = settings.find<int>("logprobs");
  if (const auto of_prompt = settings.find<int>("prompt_logprobs")) {
    out.top_logprobs = std::max(*of_prompt, out.top_logprobs.value_or(0));
    out.prompt_logprobs_from = 1;  // nothing predicts the first
  }
  out.choices = settings.get("n", 1);
  read_processors(DictMembers(settings), out.processors);
  settings.finish();
  return out;
}

GeneratorOptions generator_options(Settings& settings) {
  GeneratorOptions o;
  o.model = settings.get<std::string>("model", {});
  o.ranks = settings.get("ranks", 0);
  o.tp = settings.get("tp", 1);
  o.expert_slices = settings.get("expert_slices", o.expert_slices);
  o.experts_device = settings.get<std::string>("experts_device", o.experts_device);
  o.threads = settings.get("threads", 0);
  o.weights = settings.get<std::string>("weights", {});
  o.load = settings.get<std::string>("load", o.load);
  o.activations = settings.get<std::string>("activations", o.activations);
  o.kv_type = settings.get<std::string>("kv_cache_dtype", o.kv_type);
  o.numerics = settings.get<std::string>("numerics", o.numerics);
  o.backend = settings.get<std::string>("backend", "pplx");
  o.max_context = settings.get("max_context", 0);
  o.max_tokens_per_step = settings.get("max_tokens_per_step", 512);
  o.max_sequences_per_rank = settings.get("max_sequences_per_rank", 16);
  o.max_waiting = settings.get("max_waiting", 0);
  o.draft_tokens = settings.get("draft_tokens", o.draft_tokens);
  o.draft_method = settings.get("draft_method", o.draft_method);
  o.draft_ngram_min = settings.get("draft_ngram_min", o.draft_ngram_min);
  o.draft_ngram_max = settings.get("draft_ngram_max", o.draft_ngram_max);
  o.kv_memory_fraction = settings.get("kv_memory_fraction", 0.8);
  const nb::object log = settings.object("log");
  if (!log.is_none()) {
    // Destroyed with the options, which the Generator may drop on a thread of its own.
    const std::shared_ptr<nb::object> held(new nb::object(log), [](nb::object* object) {
      const nb::gil_scoped_acquire gil;
      delete object;
    });
    o.log = [held](const std::string& line) {
      const nb::gil_scoped_acquire gil;
      (*held)(line);
    };
  }
  return o;
}

nb::object logprobs(const std::optional<Logprobs>& given) {
  if (!given) return nb::none();
  nb::list top;
  for (const TokenLogprob& other : given->top) top.append(nb::make_tuple(other.id, other.logprob));
  return nb::make_tuple(given->chosen, top);
}

/// A running call.
class Stream {
 public:
  explicit Stream(Generator::Stream stream) : stream_(std::move(stream)) {}

  /// (choice, id, text, logprobs, finish) of the next token; None where all is done. Looks for
  /// signals while it waits.
  nb::object next() {
    while (!stream_.done()) {
      std::optional<GeneratedToken> token;
      {
        const nb::gil_scoped_release released;
        token = stream_.next(kLookEvery);
        if (!token) look_for_signals();
      }
      if (!token) continue;
      return nb::make_tuple(
          token->choice, token->id, token->text, logprobs(token->logprobs), token->finish);
    }
    return nb::none();
  }

  nb::list choices() const {
    nb::list out;
    for (const Choice& choice : stream_.choices()) {
      nb::list of_tokens;
      for (const Logprobs& one : choice.logprobs) of_tokens.append(logprobs(one));
      nb::list of_prompt;
      for (const Logprobs& one : choice.prompt_logprobs) of_prompt.append(logprobs(one));
      out.append(nb::make_tuple(
          choice.ids, choice.text, choice.finish, choice.matched, of_tokens, of_prompt));
    }
    return out;
  }

  bool done() const { return stream_.done(); }

  void cancel(std::size_t choice) {
    if (choice >= stream_.choices().size()) {
      fail<ConfigError>("there is no choice {} of {}", choice, stream_.choices().size());
    }
    stream_.cancel(choice);
  }

 private:
  Generator::Stream stream_;
};

/// Without the GIL, which threads that end may need for a last line of the log.
void close(Generator& generator) {
  const nb::gil_scoped_release released;
  generator.close();
}

}  // namespace

void bind_engine(nb::module_& module) {
  nb::class_<Stream>(module, "Stream")
      .def("next", &Stream::next)
      .def("choices", &Stream::choices)
      .def("done", &Stream::done)
      .def("cancel", &Stream::cancel, nb::arg("choice"));
  nb::class_<Generator>(module, "Generator", nb::is_weak_referenceable())
      .def(nb::new_([](const nb::dict& options) {
             Settings settings("Engine", options);
             const GeneratorOptions parsed = generator_options(settings);
             settings.finish();
             const nb::gil_scoped_release released;
             return std::make_unique<Generator>(parsed);
           }),
           nb::arg("options"))
      .def(
          "start",
          [](Generator& g, const Generator::Prompts& prompts, const nb::dict& params) {
            const GenerationSettings settings = generation_settings(params);
            const nb::gil_scoped_release released;
            return std::make_unique<Stream>(g.start(prompts, settings));
          },
          nb::arg("prompts"),
          nb::arg("params"))
      .def("encode", &Generator::encode, nb::arg("text"))
      .def("encode_chat", &Generator::encode_chat, nb::arg("request"))
      .def(
          "decode",
          [](const Generator& g, const std::vector<std::int32_t>& ids) { return g.decode(ids); },
          nb::arg("ids"))
      .def_prop_ro("vocab", &Generator::vocab)
      .def_prop_ro("max_context", &Generator::max_context)
      .def("close", &close);
}

}  // namespace ferry::python
