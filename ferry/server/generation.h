// What clients' JSON says about a generation, and what HTTP adds to one.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ferry/runtime/generation.h"
#include "ferry/server/http_server.h"
#include "ferry/server/json_fields.h"
#include "ferry/server/served_model.h"

namespace ferry {

/// Members that SGLang and OpenAI name alike: temperature, top_p, top_k, min_p, seed, stop,
/// stop_token_ids, ignore_eos, skip_special_tokens, n, and what logits processors read. Throws
/// ConfigError, also for members that would change the result and are not supported.
void read_common_settings(const JsonFields& fields, GenerationSettings& settings);

/// What a call must know of the model; borrows it.
GenerationModel for_generation(const ServedModel& model);

/// Until all choices are done. Throws HttpError when the client goes away.
void finish(Generation& generation, const HttpRequest& request);

/// The ids of a text; throws ConfigError where the model has no tokenizer.
std::vector<std::int32_t> encode(const ServedModel& model,
                                 const std::string& text,
                                 bool add_special = true);

}  // namespace ferry
