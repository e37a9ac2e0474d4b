#include "ferry/server/generation.h"

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>

#include "ferry/core/error.h"
#include "ferry/engine/logits_chain.h"

namespace ferry {

namespace {

constexpr std::size_t kMostStops = 64;
constexpr std::size_t kMostStopBytes = 4096;
constexpr std::int64_t kMostChoices = 128;

template <class Number>
Number in_range(const char* name, std::int64_t value, std::int64_t low, std::int64_t high) {
  if (value < low || value > high)
    fail<ConfigError>("\"{}\" must be {} to {}, not {}", name, low, high, value);
  return static_cast<Number>(value);
}

}  // namespace

void read_common_settings(const JsonFields& fields, GenerationSettings& settings) {
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
  read_processors(fields, settings.processors);
  for (const char* name : {"regex", "json_schema", "ebnf", "stop_regex"})
    fields.refuse_unless(name, "");
}

GenerationModel for_generation(const ServedModel& model) {
  return {.tokenizer = model.tokenizer,
          .eos_ids = model.config->eos_ids,
          .max_context = model.max_context};
}

void finish(Generation& generation, const HttpRequest& request) {
  while (!generation.done()) {
    static_cast<void>(generation.next());
    if (!generation.done() && request.gone()) throw HttpError(499, "the client has gone");
  }
}

std::vector<std::int32_t> encode(const ServedModel& model,
                                 const std::string& text,
                                 bool add_special) {
  if (model.tokenizer == nullptr)
    fail<ConfigError>("this model has no tokenizer; send token ids instead of text");
  return model.tokenizer->encode(text, add_special);
}

}  // namespace ferry
