// Requests of OpenAI's two routes, read and checked.
#pragma once

#include <cstdint>
#include <ctime>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "ferry/generation_settings.h"
#include "ferry/server/http_server.h"
#include "ferry/server/served_model.h"
#include "ferry/server/tools.h"

namespace ferry {

/// One call by either route; what differs is how choices look.
struct OpenAiCall {
  bool chat = false;
  GenerationSettings settings;
  std::vector<std::vector<std::int32_t>> prompts;
  bool stream = false;
  bool stream_usage = false;
  bool tokens_by_id = false;  ///< log probabilities name tokens so
  int best_of = 1;        ///< choices to make of each prompt, of which settings.choices are shown
  bool logprobs = false;  ///< those of choices are shown
  bool prompt_logprobs = false;     ///< those of the prompt are, as vLLM shows them
  bool token_ids = false;           ///< those of prompts and choices are shown, as vLLM does it
  bool echo = false;                ///< the prompt stands before each choice's text
  std::vector<std::string> echoes;  ///< its text, for each prompt
  AnswerPlan answer;                ///< of a chat: tools, thinking
  std::vector<std::string> names = {""};  ///< to abort it, or each of its prompts, by
  std::string id;
  std::time_t created = std::time(nullptr);
};

/// That no other thing has; begins with `prefix`.
std::string new_id(std::string_view prefix);

/// Throw ConfigError and HttpError. Whether prompts fit is for answer_call() to say.
OpenAiCall read_completion(const HttpRequest& request, const ServedModel& model);
OpenAiCall read_chat(const HttpRequest& request, const ServedModel& model);

/// The same for a body that another API's request was translated into, whose members have been
/// checked there.
OpenAiCall read_chat(const nlohmann::ordered_json& body,
                     const HttpRequest& request,
                     const ServedModel& model);

}  // namespace ferry
