// A conversation as clients send it -> the prompt that the model's template makes of it.
#pragma once

#include <filesystem>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "ferry/text/json_fields.h"

namespace ferry {

struct ChatRenderOptions;

/// Messages -> prompt, with the special tokens as text (ChatTemplate::render). Empty for a model
/// without a template. Throws ConfigError. Any thread.
using ChatRenderer = std::function<std::string(const nlohmann::ordered_json& messages,
                                               const ChatRenderOptions& options)>;

/// By the checkpoint's chat template; empty where it has none. `warn` is told where some chats will
/// be refused. What goes wrong is told without where the checkpoint lies, which is no client's
/// affair.
ChatRenderer chat_renderer(const std::filesystem::path& directory,
                           const std::function<void(const std::string&)>& warn);

/// From `messages` and what goes with them: chat_template_kwargs, reasoning_effort,
/// add_generation_prompt, continue_final_message. Throws ConfigError, also where the template
/// passes over a message.
/// `tools`: what the template shows; null: none.
std::string chat_prompt(const JsonFields& fields,
                        const ChatRenderer& renderer,
                        const nlohmann::ordered_json* tools = nullptr);

}  // namespace ferry
