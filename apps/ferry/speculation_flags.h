// The options for drafts, under our names, SGLang's and vLLM's.
#pragma once

#include <optional>
#include <string>

#include "ferry/engine/drafts.h"

namespace ferry {

class Command;

/// Registers the options on a subcommand; must live until parsing is over.
class SpeculationFlags {
 public:
  void add_to(Command& app);

  /// Throws ConfigError that names the option, what is allowed and what was found.
  DraftOptions resolve() const;

 private:
  DraftOptions from_flags() const;
  DraftOptions from_config() const;

  std::string algorithm_;
  std::optional<int> draft_tokens_;
  std::optional<int> verified_tokens_;
  std::optional<int> shortest_run_;
  std::optional<int> longest_run_;
  std::string config_;
};

}  // namespace ferry
