// How a caller shows that it knows a secret without sending it: an HMAC over random bytes that it
// is greeted with (Doorman) and what it says.
#pragma once

#include <optional>
#include <span>
#include <string>

#include "ferry/transport.h"
#include "ferry/transport/byte_stream.h"
#include "ferry/transport/sockets.h"
#include "ferry/transport/unique_fd.h"

namespace ferry {

/// Reads the greeting and says `words` with a proof that covers greeting, `session` and words.
void say(const UniqueFd& socket,
         const std::string& secret,
         std::span<const std::byte> session,
         std::span<const std::byte> words,
         Deadline deadline);

/// What a guest said, if it proves that it knows the secret. Throws Error where it is cut short.
std::optional<Bytes> believed(const Doorman::Guest& guest,
                              const std::string& secret,
                              std::span<const std::byte> session);

}  // namespace ferry
