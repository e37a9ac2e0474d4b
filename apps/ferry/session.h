// What subcommands that run a model share: the model as the command line asks for it, and what is
// said about a run.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include "apps/ferry/common_options.h"
#include "ferry/engine/engine.h"
#include "ferry/runtime/model.h"

namespace ferry {

struct Session {
  RunOptions options;  ///< with what opening the model has settled
  Model model;

  const ModelConfig& config() const { return model.config(); }
};

/// Opens the model. What it tells goes to stderr, unless --quiet. Throws ConfigError or ModelError.
Session open_session(const RunOptions& options);

/// Checks `request` against the model; errors begin with `origin` ("prompts.txt line 3").
void check_prompt(const Session& session, const Request& request, const std::string& origin);

/// One line about speed on stderr, unless --quiet.
void print_summary(const Session& session, const EngineStats& stats);

/// Tokens per second, 0 where there was no time.
double rate(std::uint64_t tokens, std::chrono::nanoseconds time);

}  // namespace ferry
