// Every member of a request that OpenAI, Anthropic, SGLang and vLLM know, and what becomes of it
// here: one table for each kind of object. Nothing that would change a result is passed over in
// silence.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <span>

namespace ferry {

/// Objects that clients send.
enum class RequestKind : std::uint8_t {
  generate,         ///< the body of /generate, which may hold sampling_params' members, too
  sampling_params,  ///< what stands under that name
  completion,
  chat,
  messages,   ///< Anthropic's, of both of its routes
  responses,  ///< OpenAI's
};

struct Member {
  enum class Fate : std::uint8_t {
    done,      ///< read, and its type is checked
    harmless,  ///< changes no result: scheduling, bookkeeping, or what holds here anyway
    refused,   ///< with 400, unless it is absent in effect
  };

  const char* name;
  Fate fate;
  /// A value in JSON that asks for nothing, beside null and empty lists, objects and strings, which
  /// never do. Null: there is no other.
  const char* nothing = nullptr;
};

std::span<const Member> members_of(RequestKind kind);

/// Throws ConfigError, which names the member, for one that is refused. Unknown members pass.
void check_members(RequestKind kind, const nlohmann::ordered_json& object);

/// The members of `object` that are done there and, by the same name, in chats.
nlohmann::ordered_json shared_with_chats(RequestKind kind, const nlohmann::ordered_json& object);

}  // namespace ferry
