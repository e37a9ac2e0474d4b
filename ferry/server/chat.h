// A conversation as clients send it -> the prompt that the model's template makes of it.
#pragma once

#include <string>

#include "ferry/server/json_fields.h"
#include "ferry/server/served_model.h"

namespace ferry {

/// From `messages` and what goes with them: chat_template_kwargs, reasoning_effort,
/// add_generation_prompt, continue_final_message. Throws ConfigError, also where the template
/// passes over a message.
/// `tools`: what the template shows; null: none.
std::string chat_prompt(const JsonFields& fields,
                        const ServedModel& model,
                        const nlohmann::ordered_json* tools = nullptr);

}  // namespace ferry
