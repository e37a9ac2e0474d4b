// How to continue a prompt, as callers of every API say it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "ferry/logits_processor.h"
#include "ferry/logprobs.h"
#include "ferry/sampling_options.h"

namespace ferry {

struct GenerationSettings {
  SamplingOptions sampling{.temperature = 1};
  bool seeded = false;                ///< else each call draws its own seed
  std::optional<int> max_new_tokens;  ///< none: to the end of the context; 0: the prompt alone
  std::vector<std::string> stop;      ///< strings that end a continuation, not part of its text
  std::vector<std::int32_t> stop_ids;
  std::vector<ProcessorOptions> processors;  ///< of the logits, in this order
  bool ignore_eos = false;
  bool keep_stop = false;           ///< what ended a continuation is part of its text
  bool skip_special = true;         ///< special tokens give no text
  std::optional<int> top_logprobs;  ///< given: logprobs of each token and so many others
  /// Given, with top_logprobs: those of the prompt's tokens from this position on, too.
  std::optional<int> prompt_logprobs_from;
  /// With top_logprobs: those of these tokens, too, wherever a token's are told.
  std::vector<std::int32_t> logprob_ids = {};
  int choices = 1;           ///< of each prompt
  std::uint64_t client = 0;  ///< who asks: clients' requests start in turn
  std::string
      cache_salt;  ///< what others have computed of a prompt is used where theirs is the same
};

/// One continuation of one prompt, as far as it has come.
struct Choice {
  std::size_t prompt_tokens = 0;
  std::size_t cached_tokens = 0;  ///< of these, that were there already; known with the first token
  std::vector<std::int32_t> ids;
  std::vector<Logprobs> logprobs;  ///< where asked for, one a token
  /// Where asked for, of the last so many tokens of the prompt; there with the first token.
  std::vector<Logprobs> prompt_logprobs;
  std::string text;
  std::string finish;   ///< "stop", "length" or "cancelled"; empty while it goes on
  std::string matched;  ///< stop string that ended it
};

}  // namespace ferry
