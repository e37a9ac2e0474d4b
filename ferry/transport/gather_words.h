// What every rank tells all others once, while they start.
#pragma once

#include <chrono>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "ferry/transport.h"

namespace ferry {

/// Each rank's words come to all: [R][own.size()]. Collective; all pass as many. `what` they are,
/// for messages. Throws TransportError.
std::vector<std::uint64_t> gather_words(std::span<const std::uint64_t> own,
                                        std::string_view what,
                                        std::chrono::nanoseconds timeout,
                                        Transport& transport);

}  // namespace ferry
