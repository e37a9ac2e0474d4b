// Members of a JSON object that say how to continue a prompt, as the server's routes and callers of
// a Generator have them.
#pragma once

#include "ferry/generation_settings.h"
#include "ferry/text/json_fields.h"

namespace ferry {

class Tokenizer;

/// Choices of one prompt that a call may ask for.
inline constexpr int kMostChoices = 128;

/// Changes the settings by the members that SGLang, vLLM and OpenAI name alike: temperature, top_p,
/// top_k, min_p, seed, stop, stop_token_ids, ignore_eos, skip_special_tokens, n, and what logits
/// processors and grammars read. Others are left to the caller. `tokenizer`: null where the model
/// has none. Throws ConfigError.
void read_settings(const JsonFields& fields,
                   const Tokenizer* tokenizer,
                   GenerationSettings& settings);

}  // namespace ferry
