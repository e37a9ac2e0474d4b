#include "apps/ferry/sampling_flags.h"

#include <nlohmann/json.hpp>
#include <string_view>

#include "apps/ferry/command_line.h"

namespace ferry {

std::optional<double> ProcessorFlags::number(const char* name) const {
  const std::string_view wanted = name;
  if (wanted == "presence_penalty") return presence_penalty;
  if (wanted == "frequency_penalty") return frequency_penalty;
  if (wanted == "repetition_penalty") return repetition_penalty;
  return std::nullopt;
}

std::optional<std::int64_t> ProcessorFlags::integer(const char* name) const {
  if (name == std::string_view("min_new_tokens")) return min_new_tokens;
  return std::nullopt;
}

std::optional<std::vector<std::int32_t>> ProcessorFlags::token_ids(const char* /*name*/) const {
  return std::nullopt;
}

std::optional<std::vector<std::pair<std::int32_t, double>>> ProcessorFlags::numbers_by_id(
    const char* /*name*/) const {
  return std::nullopt;
}

std::optional<std::vector<std::vector<std::int32_t>>> ProcessorFlags::words(
    const char* /*name*/) const {
  return std::nullopt;
}

void add_sampling_options(Command& command, SamplingFlags& flags) {
  command
      .add_option("--temperature", flags.sampling.temperature, "0 takes the most probable token")
      ->type_name("T")
      ->capture_default_str();
  command.add_option("--top-k", flags.sampling.top_k, "Only the K most probable tokens; 0 = all")
      ->type_name("K")
      ->capture_default_str();
  command.add_option("--top-p", flags.sampling.top_p, "Only the fewest tokens that share P")
      ->type_name("P")
      ->capture_default_str();
  command
      .add_option(
          "--min-p", flags.sampling.min_p, "Only tokens this probable beside the most probable")
      ->type_name("P")
      ->capture_default_str();
  command.add_option("--seed", flags.sampling.seed, "Of the draws; the same for every prompt")
      ->type_name("S")
      ->capture_default_str();
  command
      .add_option("--presence-penalty",
                  flags.processors.presence_penalty,
                  "Less of a token that was generated: -2 to 2")
      ->type_name("P")
      ->capture_default_str();
  command
      .add_option("--frequency-penalty",
                  flags.processors.frequency_penalty,
                  "The same, for each time: -2 to 2")
      ->type_name("P")
      ->capture_default_str();
  command
      .add_option("--repetition-penalty",
                  flags.processors.repetition_penalty,
                  "Divides what speaks for a token of the prompt or of the answer; 1 = off")
      ->type_name("P")
      ->capture_default_str();
  command
      .add_option("--min-new-tokens",
                  flags.processors.min_new_tokens,
                  "Before the end-of-text token may come")
      ->type_name("N")
      ->capture_default_str();
}

nlohmann::ordered_json named_members(const Command& command, const SamplingFlags& flags) {
  nlohmann::ordered_json members = nlohmann::ordered_json::object();
  const auto add = [&](const char* flag, const char* member, auto value) {
    if (command.count(flag) > 0) members[member] = value;
  };
  add("--temperature", "temperature", flags.sampling.temperature);
  add("--top-k", "top_k", flags.sampling.top_k);
  add("--top-p", "top_p", flags.sampling.top_p);
  add("--min-p", "min_p", flags.sampling.min_p);
  add("--seed", "seed", flags.sampling.seed);
  add("--presence-penalty", "presence_penalty", flags.processors.presence_penalty);
  add("--frequency-penalty", "frequency_penalty", flags.processors.frequency_penalty);
  add("--repetition-penalty", "repetition_penalty", flags.processors.repetition_penalty);
  add("--min-new-tokens", "min_new_tokens", flags.processors.min_new_tokens);
  return members;
}

}  // namespace ferry
