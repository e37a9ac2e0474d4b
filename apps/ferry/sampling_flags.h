// How tokens are chosen, as the command line says it.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <utility>
#include <vector>

#include "ferry/engine/logits_chain.h"
#include "ferry/engine/sampler.h"

namespace ferry {

class Command;

/// What flags say of logits processors, as their members in a client's request.
class ProcessorFlags : public RequestMembers {
 public:
  double presence_penalty = 0;
  double frequency_penalty = 0;
  double repetition_penalty = 1;
  int min_new_tokens = 0;

  std::optional<double> number(const char* name) const override;
  std::optional<std::int64_t> integer(const char* name) const override;
  std::optional<std::vector<std::int32_t>> token_ids(const char* name) const override;
  std::optional<std::vector<std::pair<std::int32_t, double>>> numbers_by_id(
      const char* name) const override;
  std::optional<std::vector<std::vector<std::int32_t>>> words(const char* name) const override;
};

struct SamplingFlags {
  SamplingOptions sampling;
  ProcessorFlags processors;
};

/// `flags` must live until parsing is over.
void add_sampling_options(Command& command, SamplingFlags& flags);

/// Those that the command line names, as a request's members.
nlohmann::ordered_json named_members(const Command& command, const SamplingFlags& flags);

}  // namespace ferry
