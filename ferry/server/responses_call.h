// Requests of OpenAI's responses, as the chats that they ask for.
#pragma once

#include <nlohmann/json_fwd.hpp>

namespace ferry {

/// The body of a chat (read_chat()) for the body of /v1/responses, whose input stands behind the
/// items of `before`, a list. Throws ConfigError that names what is not supported.
nlohmann::ordered_json chat_of_responses(const nlohmann::ordered_json& body,
                                         const nlohmann::ordered_json& before);

/// The items of such a body's input, each with a type and an id. REQUIRES: chat_of_responses() has
/// taken it.
nlohmann::ordered_json input_items(const nlohmann::ordered_json& body);

}  // namespace ferry
