#include "ferry/server/generation.h"

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>

#include "ferry/core/error.h"
#include "ferry/engine/logits_chain.h"
#include "ferry/server/structured_output.h"

namespace ferry {

using Json = nlohmann::ordered_json;

namespace {

constexpr std::size_t kMostStops = 64;
constexpr std::size_t kMostStopBytes = 4096;

template <class Number>
Number in_range(const char* name, std::int64_t value, std::int64_t low, std::int64_t high) {
  if (value < low || value > high)
    fail<ConfigError>("\"{}\" must be {} to {}, not {}", name, low, high, value);
  return static_cast<Number>(value);
}

/// A client's members as logits processors read them. Empty lists are absence.
class ModelMembers final : public RequestMembers {
 public:
  ModelMembers(const JsonFields& fields, const ServedModel& model)
      : fields_(fields), model_(model) {}

  std::optional<double> number(const char* name) const override { return fields_.number(name); }

  std::optional<std::int64_t> integer(const char* name) const override {
    return fields_.integer(name);
  }

  std::optional<std::vector<std::int32_t>> token_ids(const char* name) const override {
    std::vector<std::int32_t> ids = fields_.ids(name);
    return ids.empty() ? std::nullopt : std::optional(std::move(ids));
  }

  std::optional<std::vector<std::pair<std::int32_t, double>>> numbers_by_id(
      const char* name) const override {
    return fields_.numbers_by_id(name);
  }

  /// Each text by itself and behind a space.
  std::optional<std::vector<std::vector<std::int32_t>>> words(const char* name) const override {
    if (!fields_.has(name)) return std::nullopt;
    std::vector<std::vector<std::int32_t>> all;
    for (const std::string& text : fields_.texts(name)) {
      const std::string bare = text.substr(std::min(text.find_first_not_of(' '), text.size()));
      const auto plain = encode(model_, bare, /*add_special=*/false);
      const auto spaced = encode(model_, " " + bare, /*add_special=*/false);
      all.push_back(plain);
      if (!plain.empty() && spaced.front() != plain.front()) all.push_back(spaced);
    }
    return all;
  }

  std::optional<GrammarText> grammar() const override { return read_grammar(fields_); }

 private:
  const JsonFields& fields_;
  const ServedModel& model_;
};

}  // namespace

void read_common_settings(const JsonFields& fields,
                          const ServedModel& model,
                          GenerationSettings& settings) {
  constexpr std::int64_t kMaxInt = std::numeric_limits<int>::max();
  if (const auto v = fields.number("temperature")) settings.sampling.temperature = *v;
  if (const auto v = fields.number("top_p")) settings.sampling.top_p = *v;
  if (const auto v = fields.number("min_p")) settings.sampling.min_p = *v;
  if (const auto v = fields.integer("top_k"))  // -1 is all to SGLang and vLLM
    settings.sampling.top_k = std::max(0, in_range<int>("top_k", *v, -1, kMaxInt));
  for (const char* name : {"seed", "sampling_seed"}) {
    if (const auto v = fields.integer(name)) {
      settings.sampling.seed = static_cast<std::uint64_t>(*v);
      settings.seeded = true;
    }
  }
  check_sampling(settings.sampling);
  if (fields.has("stop")) settings.stop = fields.texts("stop");
  if (settings.stop.size() > kMostStops)
    fail<ConfigError>(
        "\"stop\" has {} strings; at most {} are possible", settings.stop.size(), kMostStops);
  for (const std::string& stop : settings.stop)
    if (stop.size() > kMostStopBytes)
      fail<ConfigError>("a string of \"stop\" is longer than {} bytes", kMostStopBytes);
  if (fields.has("stop_token_ids")) settings.stop_ids = fields.ids("stop_token_ids");
  settings.ignore_eos = fields.boolean("ignore_eos").value_or(settings.ignore_eos);
  settings.skip_special = fields.boolean("skip_special_tokens").value_or(settings.skip_special);
  if (const auto v = fields.integer("n"))
    settings.choices = in_range<int>("n", *v, 1, kMostChoices);
  for (const char* name : {"include_stop_str_in_output", "no_stop_trim"})
    settings.keep_stop = fields.boolean(name).value_or(settings.keep_stop);
  read_processors(ModelMembers(fields, model), settings.processors);
}

std::string cache_salt(const JsonFields& fields) {
  const std::string salt = fields.text("cache_salt").value_or("");
  const std::string key = fields.text("extra_key").value_or("");
  return key.empty() ? salt : fmt::format("{}:{}{}", salt.size(), salt, key);
}

std::optional<int> max_new_tokens(const JsonFields& fields,
                                  std::initializer_list<const char*> names,
                                  int least) {
  std::optional<int> most;
  for (const char* name : names) {
    if (const auto v = fields.integer(name)) {
      if (*v < least || *v > INT32_MAX)
        fail<ConfigError>("\"{}\" must be at least {}, not {}", name, least, *v);
      most = static_cast<int>(*v);
    }
  }
  return most;
}

int top_logprobs(const JsonFields& fields, const char* name) {
  return in_range<int>(name, fields.integer(name).value_or(0), 0, kMaxTopLogprobs);
}

void check_lengths(const ServedModel& model,
                   const std::vector<std::vector<std::int32_t>>& prompts) {
  for (const std::vector<std::int32_t>& prompt : prompts) {
    if (prompt.size() <= static_cast<std::size_t>(model.max_context)) continue;
    // In the words that clients look for.
    throw HttpError(400,
                    fmt::format("This model's maximum context length is {} tokens, but the prompt "
                                "has {}; shorten it or, where the model allows, raise "
                                "--context-length",
                                model.max_context,
                                prompt.size()),
                    "context_length_exceeded");
  }
}

std::vector<std::string> call_names(const JsonFields& fields, std::size_t prompts) {
  const Json* rid = fields.find("rid");
  std::vector<std::string> names = fields.texts("rid");
  if (names.empty()) return {""};
  if (rid->is_array() && names.size() != prompts)
    fail<ConfigError>(
        "\"rid\" has {} members for {} prompts; give one for each, or one that is no "
        "list",
        names.size(),
        prompts);
  return names;
}

GenerationModel for_generation(const ServedModel& model) {
  return {.tokenizer = model.tokenizer,
          .eos_ids = model.config->eos_ids,
          .max_context = model.max_context};
}

std::vector<Generation::Piece> abort(Generation& generation, const AbortFlag& aborted) {
  std::vector<Generation::Piece> last;
  const std::size_t choices = generation.choices().size();
  for (std::size_t i = 0; i < choices; ++i) {
    const bool ends = aborted.set(i * aborted.parts() / choices);
    if (!ends || !generation.choices()[i].finish.empty()) continue;
    generation.cancel(i);
    last.push_back({.choice = i, .text = "", .token = Generation::kNoToken});
  }
  return last;
}

std::function<void(std::function<void()>)> listener_of(std::shared_ptr<Generation> generation,
                                                       CallRegistry::Aborted aborted) {
  return [generation = std::move(generation),
          aborted = std::move(aborted)](const std::function<void()>& wake) {
    aborted->listen(wake);
    generation->listen(wake);
  };
}

HttpReply answer_when_done(std::shared_ptr<Generation> generation,
                           std::function<std::string(Generation&)> whole,
                           CallRegistry::Aborted aborted) {
  HttpReply reply{.listen = listener_of(generation, aborted), .whole = true};
  reply.next = [generation = std::move(generation),
                whole = std::move(whole),
                aborted = std::move(aborted),
                told = false]() mutable -> std::optional<std::string> {
    if (told) return std::nullopt;
    if (aborted->set()) static_cast<void>(abort(*generation, *aborted));
    do {
      static_cast<void>(generation->next(std::chrono::milliseconds(0)));
    } while (generation->ready());
    if (!generation->done()) return "";
    told = true;
    return whole(*generation);
  };
  return reply;
}

std::vector<std::int32_t> encode(const ServedModel& model,
                                 const std::string& text,
                                 bool add_special) {
  if (model.tokenizer == nullptr)
    fail<ConfigError>("this model has no tokenizer; send token ids instead of text");
  return model.tokenizer->encode(text, add_special);
}

}  // namespace ferry
