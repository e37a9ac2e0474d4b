// Requests of OpenAI's two routes, read and checked.
#pragma once

#include <cstdint>
#include <ctime>
#include <string>
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
  bool echo = false;                ///< the prompt stands before each choice's text
  std::vector<std::string> echoes;  ///< its text, for each prompt
  AnswerPlan answer;                ///< of a chat: tools, thinking
  std::string rid;
  std::string id;
  std::time_t created = std::time(nullptr);
};

/// Throw ConfigError and HttpError.
OpenAiCall read_completion(const HttpRequest& request, const ServedModel& model);
OpenAiCall read_chat(const HttpRequest& request, const ServedModel& model);

}  // namespace ferry
