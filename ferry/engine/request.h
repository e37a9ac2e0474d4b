// What a caller asks of the engine, and what it hears back.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "ferry/engine/sampler.h"
#include "ferry/logits_processor.h"
#include "ferry/logprobs.h"

namespace ferry {

/// One prompt to continue. Generation ends with the first of: a stop id (kept as last token),
/// max_new_tokens, or a full context: the prompt and all tokens but the last have to fit into it.
struct Request {
  std::vector<std::int32_t> prompt;  ///< at least one id, all inside the vocabulary
  int max_new_tokens = 64;           ///< at least 1
  SamplingOptions sampling;
  std::vector<std::int32_t> stop_ids;  ///< at most kMaxStopIds
  std::optional<int> top_logprobs;     ///< given: logprobs of each token and of so many most
                                       ///< probable ones, at most kMaxTopLogprobs
  /// Given, with top_logprobs: the same for the prompt's tokens from this position on. The first
  /// token has nothing before it, and none.
  std::optional<int> prompt_logprobs_from = {};
  /// With top_logprobs: the same for these ids wherever a token's are told; at most kMaxLogprobIds,
  /// all inside the vocabulary.
  std::vector<std::int32_t> logprob_ids = {};
  std::uint64_t client = 0;                       ///< who asks: clients' requests start in turn
  std::vector<ProcessorOptions> processors = {};  ///< that change logits before the sampler sees
                                                  ///< them, each kind at most once
  /// Requests with different salts find nothing of each other's prompts. Rank 0's affair.
  std::string cache_salt = {};
};

inline constexpr std::size_t kMaxStopIds = 256;

/// What rank 0 hears about a request, in order of its tokens.
struct TokenEvent {
  std::uint64_t request = 0;  ///< number that submit() gave
  std::int32_t token = 0;
  bool last = false;
  std::string logits_sha256;  ///< with the last token, when hashing was asked for
  std::optional<Logprobs> logprobs;
  std::vector<Logprobs> prompt_logprobs;  ///< with the first token, where asked for
  /// With the first token: when the request began to run, and how many tokens of its prompt had not
  /// to, since their pages were kept.
  std::optional<std::chrono::steady_clock::time_point> began;
  std::size_t cached_tokens = 0;
};

/// The first position of a prompt whose token's log probability is wanted.
std::size_t first_prompt_logprob(const Request& request);

/// The most positions of a sequence's known tokens that need not run: the last one must, and those
/// whose logits are wanted. `generated`: that it has given.
std::int64_t most_reused(const Request& request, std::size_t generated);

/// Positions that a request may come to fill. The last token is never run, so it needs none.
int most_positions(const Request& request, int max_context);

/// Throws ConfigError when the prompt is empty, has ids outside the vocabulary or is longer than
/// the context, or when an option is out of range.
void check_request(const Request& request, const ProcessorContext& model, int max_context);

}  // namespace ferry
