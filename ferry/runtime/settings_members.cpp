#include "ferry/runtime/settings_members.h"

#include <algorithm>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "ferry/core/error.h"
#include "ferry/engine/logits_chain.h"
#include "ferry/engine/sampler.h"
#include "ferry/text/structured_output.h"
#include "ferry/text/tokenizer.h"

namespace ferry {

namespace {

constexpr std::size_t kMostStops = 64;
constexpr std::size_t kMostStopBytes = 4096;

/// A client's members as logits processors read them. Empty lists are absence.
class ModelMembers final : public RequestMembers {
 public:
  ModelMembers(const JsonFields& fields, const Tokenizer* tokenizer)
      : fields_(fields), tokenizer_(tokenizer) {}

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
    if (tokenizer_ == nullptr)
      fail<ConfigError>("\"{}\" needs a tokenizer, which this model has not", name);
    std::vector<std::vector<std::int32_t>> all;
    for (const std::string& text : fields_.texts(name)) {
      const std::string bare = text.substr(std::min(text.find_first_not_of(' '), text.size()));
      const auto plain = tokenizer_->encode(bare, /*add_special=*/false);
      const auto spaced = tokenizer_->encode(" " + bare, /*add_special=*/false);
      all.push_back(plain);
      if (!plain.empty() && spaced.front() != plain.front()) all.push_back(spaced);
    }
    return all;
  }

  std::optional<GrammarText> grammar() const override { return read_grammar(fields_); }

 private:
  const JsonFields& fields_;
  const Tokenizer* tokenizer_;
};

}  // namespace

void read_settings(const JsonFields& fields,
                   const Tokenizer* tokenizer,
                   GenerationSettings& settings) {
  constexpr int kMaxInt = std::numeric_limits<int>::max();
  if (const auto v = fields.number("temperature")) settings.sampling.temperature = *v;
  if (const auto v = fields.number("top_p")) settings.sampling.top_p = *v;
  if (const auto v = fields.number("min_p")) settings.sampling.min_p = *v;
  if (const auto v = fields.integer("top_k", -1, kMaxInt))  // -1 is all to SGLang and vLLM
    settings.sampling.top_k = std::max(0, *v);
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
  if (const auto v = fields.integer("n", 1, kMostChoices)) settings.choices = *v;
  for (const char* name : {"include_stop_str_in_output", "no_stop_trim"})
    settings.keep_stop = fields.boolean(name).value_or(settings.keep_stop);
  read_processors(ModelMembers(fields, tokenizer), settings.processors);
}

}  // namespace ferry
