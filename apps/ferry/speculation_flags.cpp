#include "apps/ferry/speculation_flags.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "apps/ferry/command_line.h"
#include "ferry/core/error.h"

namespace ferry {

namespace {

constexpr int kDraftTokens = 4;
constexpr int kLayerDraftTokens = 1;  // what such layers are trained for

int usual_tokens(DraftSource source) {
  return source == DraftSource::layer ? kLayerDraftTokens : kDraftTokens;
}

/// What was left open is as in DraftOptions, or as far as it must be from the other.
DraftOptions draft_options(DraftSource source,
                           int tokens,
                           std::optional<int> shortest,
                           std::optional<int> longest) {
  const DraftOptions usual;
  DraftOptions options{.tokens = tokens, .source = source};
  if (source == DraftSource::layer && (shortest || longest))
    fail<ConfigError>(
        "drafts by the model (mtp) do not look for runs of tokens: leave out how long these are "
        "(--draft-ngram-min, --draft-ngram-max)");
  options.shortest_run =
      shortest.value_or(std::min(usual.shortest_run, longest.value_or(usual.shortest_run)));
  options.longest_run = longest.value_or(std::max(usual.longest_run, options.shortest_run));
  if (tokens < 1) fail<ConfigError>("drafts of {} tokens; at least 1 is possible", tokens);
  check_drafts(options);
  return options;
}

/// Under SGLang's names too.
DraftSource source_of(const std::string& option, const std::string& name) {
  if (name == "NGRAM") return DraftSource::text;
  if (name == "NEXTN" || name == "MTP") return DraftSource::layer;
  return parse_draft_source(option, name);
}

}  // namespace

void SpeculationFlags::add_to(Command& app) {
  constexpr const char* kGroup = "Speculation";
  app.add_option(
         "--speculate,--speculative-algorithm",
         algorithm_,
         "Run tokens that may come next beside a sequence's one token; the same bytes in fewer "
         "steps. ngram: out of its own text; mtp: by the checkpoint's layer that predicts further "
         "tokens [none]")
      ->type_name("A")
      ->group(kGroup);
  app.add_option("--draft-tokens", draft_tokens_, "Of a draft, at most [ngram: 4, mtp: 1]")
      ->type_name("N")
      ->group(kGroup);
  app.add_option("--speculative-num-draft-tokens",
                 verified_tokens_,
                 "The same as SGLang counts them, with the sequence's one token")
      ->type_name("N")
      ->group(kGroup);
  app.add_option("--draft-ngram-min,--speculative-ngram-min-match-window-size",
                 shortest_run_,
                 "So many of the newest tokens must stand earlier in the text [2]")
      ->type_name("N")
      ->group(kGroup);
  app.add_option("--draft-ngram-max,--speculative-ngram-max-match-window-size",
                 longest_run_,
                 "The place where most of them stand counts, up to so many [8]")
      ->type_name("N")
      ->group(kGroup);
  app.add_option("--speculative-config",
                 config_,
                 "All of it in vLLM's JSON: method (ngram, mtp), num_speculative_tokens, "
                 "prompt_lookup_min, "
                 "prompt_lookup_max")
      ->type_name("JSON")
      ->group(kGroup);
}

DraftOptions SpeculationFlags::resolve() const {
  return config_.empty() ? from_flags() : from_config();
}

DraftOptions SpeculationFlags::from_flags() const {
  if (algorithm_.empty()) {
    if (draft_tokens_ || verified_tokens_ || shortest_run_ || longest_run_)
      fail<ConfigError>("options of drafts are given, but not --speculate");
    return {};
  }
  const DraftSource source = source_of("--speculate", algorithm_);
  if (draft_tokens_ && verified_tokens_)
    fail<ConfigError>(
        "--draft-tokens and --speculative-num-draft-tokens say the same; give one of them");
  const int tokens =
      verified_tokens_ ? *verified_tokens_ - 1 : draft_tokens_.value_or(usual_tokens(source));
  return draft_options(source, tokens, shortest_run_, longest_run_);
}

DraftOptions SpeculationFlags::from_config() const {
  constexpr const char* kOption = "--speculative-config";
  if (!algorithm_.empty() || draft_tokens_ || verified_tokens_ || shortest_run_ || longest_run_)
    fail<ConfigError>("{} says all of drafts; leave out the other options of them", kOption);
  const auto config = nlohmann::json::parse(config_, nullptr, /*allow_exceptions=*/false);
  if (!config.is_object()) fail<ConfigError>("{} is no JSON object: {}", kOption, config_);
  std::string method;
  std::optional<int> tokens, shortest, longest;
  for (const auto& [name, value] : config.items()) {
    const auto number = [&, &name = name, &value = value] {
      if (!value.is_number_integer() || value.get<std::int64_t>() < 1 ||
          value.get<std::int64_t>() > kMostDraftTokens)
        fail<ConfigError>(
            "{}: \"{}\" must be 1 to {}, not {}", kOption, name, kMostDraftTokens, value.dump());
      return value.get<int>();
    };
    if (name == "method" && value.is_string())
      method = value.get<std::string>();
    else if (name == "num_speculative_tokens")
      tokens = number();
    else if (name == "prompt_lookup_min")
      shortest = number();
    else if (name == "prompt_lookup_max")
      longest = number();
    else
      fail<ConfigError>(
          "{}: \"{}\" is not supported; there are method (\"ngram\", \"mtp\"), "
          "num_speculative_tokens, prompt_lookup_min and prompt_lookup_max",
          kOption,
          name);
  }
  const DraftSource source = source_of("\"method\" of --speculative-config", method);
  return draft_options(source, tokens.value_or(usual_tokens(source)), shortest, longest);
}

}  // namespace ferry
