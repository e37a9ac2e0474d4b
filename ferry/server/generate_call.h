// Requests of SGLang's /generate, read and checked.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ferry/generation_settings.h"
#include "ferry/server/http_server.h"
#include "ferry/server/served_model.h"

namespace ferry {

struct GenerateCall {
  std::vector<std::vector<std::int32_t>> prompts;
  bool batch = false;                        ///< the reply is a list
  std::vector<GenerationSettings> settings;  ///< of each prompt
  std::vector<std::string> names;            ///< one for all of it, or one for each prompt
  bool stream = false;
};

/// Throws ConfigError, and HttpError for prompts that are too long.
GenerateCall read_generate(const HttpRequest& request, const ServedModel& model);

}  // namespace ferry
