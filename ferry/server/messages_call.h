// Requests of Anthropic's API, as the chats that they ask for.
#pragma once

#include <nlohmann/json_fwd.hpp>

namespace ferry {

/// The body of a chat (read_chat()) for the body of /v1/messages or, where `counts`, of
/// /v1/messages/count_tokens. Throws ConfigError that names what is not supported.
nlohmann::ordered_json chat_of_messages(const nlohmann::ordered_json& body, bool counts);

}  // namespace ferry
