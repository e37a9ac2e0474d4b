// Requests of OpenAI's responses, as the chats that they ask for.
#pragma once

#include <nlohmann/json_fwd.hpp>

namespace ferry {

/// The body of a chat (read_chat()) for the body of /v1/responses. Throws ConfigError that names
/// what is not supported.
nlohmann::ordered_json chat_of_responses(const nlohmann::ordered_json& body);

}  // namespace ferry
