// What clients' JSON says about a generation, and what HTTP adds to one.
#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "ferry/runtime/generation.h"
#include "ferry/runtime/settings_members.h"
#include "ferry/server/call_registry.h"
#include "ferry/server/http_server.h"
#include "ferry/server/served_model.h"
#include "ferry/text/json_fields.h"

namespace ferry {

/// Of `cache_salt` and `extra_key`: requests find each other's prompts where both are the same.
std::string cache_salt(const JsonFields& fields);

/// The last of these members that is there.
std::optional<int> max_new_tokens(const JsonFields& fields,
                                  std::initializer_list<const char*> names,
                                  int least = 1);

/// How many most probable tokens a member asks for; 0 when absent.
int top_logprobs(const JsonFields& fields, const char* name);

/// Throws HttpError with OpenAI's code where a prompt is longer than the context.
void check_lengths(const ServedModel& model, const std::vector<std::vector<std::int32_t>>& prompts);

/// What a call must know of the model; borrows it.
GenerationModel for_generation(const ServedModel& model);

/// Ends the choices that still run of the parts that are to end. Returns their last pieces, without
/// text. REQUIRES: one part, or one for each prompt.
std::vector<Generation::Piece> abort(Generation& generation, const AbortFlag& aborted);

/// `rid`: the names of a call's parts. One for all of it, or a list with one for each prompt.
std::vector<std::string> call_names(const JsonFields& fields, std::size_t prompts);

/// What HttpReply::listen wants, of a call.
std::function<void(std::function<void()>)> listener_of(std::shared_ptr<Generation> generation,
                                                       CallRegistry::Aborted aborted);

/// The reply that `whole` makes when all choices are done, or have been aborted.
HttpReply answer_when_done(std::shared_ptr<Generation> generation,
                           std::function<std::string(Generation&)> whole,
                           CallRegistry::Aborted aborted);

/// The ids of a text; throws ConfigError where the model has no tokenizer.
std::vector<std::int32_t> encode(const ServedModel& model,
                                 const std::string& text,
                                 bool add_special = true);

}  // namespace ferry
