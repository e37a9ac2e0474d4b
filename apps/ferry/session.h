// What generate and eval share: opening the model once, and running an engine on every rank.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "apps/ferry/common_options.h"
#include "ferry/engine/engine.h"
#include "ferry/model/checkpoint.h"
#include "ferry/model/weights.h"
#include "ferry/text/tokenizer.h"

namespace ferry {

/// A checkpoint as the launching process opens it, before there are ranks, so that a bad one gives
/// one line. Ranks read it, as threads or through the fork.
struct Session {
  RunOptions options;
  Checkpoint checkpoint;
  std::optional<Tokenizer> tokenizer;  ///< absent when the checkpoint has none
  int max_context = 0;
  WeightChoice weights;
  ExpertPlacement experts;  ///< where they lie at the start; a layer for each of the model's

  const ModelConfig& config() const { return checkpoint.config(); }
};

/// Opens the checkpoint and checks it against the options. Throws ConfigError or ModelError.
Session open_session(const RunOptions& options);

/// The tokenizer; throws ModelError that says what misses it.
const Tokenizer& need_tokenizer(const Session& session);

/// Checks `request` against the model; errors begin with `origin` ("prompts.txt line 3").
void check_prompt(const Session& session, const Request& request, const std::string& origin);

/// Loads the weights, starts the ranks, and calls `body` on each with its decoder. Returns the
/// largest exit status.
int run_ranks_with_decoder(const Session& session,
                           const std::function<int(Decoder&, Transport&)>& body);

/// The same with an engine: calls `lead` on rank 0, which submits requests and
/// calls Engine::run exactly once. Rank 0 may be another process: what it finds out it must print
/// itself. Returns the exit status.
int run_ranks_with_engine(const Session& session, const std::function<int(Engine&)>& lead);

/// One line about speed on stderr, unless --quiet.
void print_summary(const Session& session, const EngineStats& stats);

/// Tokens per second, 0 where there was no time.
double rate(std::uint64_t tokens, std::chrono::nanoseconds time);

/// The text of generated ids without special tokens. Ids that the model has but its tokenizer has
/// not (padding of the vocabulary) give nothing.
std::string text_of(const Session& session, std::span<const std::int32_t> ids);

}  // namespace ferry
