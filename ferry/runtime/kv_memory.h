// How many keys and values there is memory for, on the rank that has least.
#pragma once

#include <chrono>
#include <cstdint>

#include "ferry/model/decoder.h"
#include "ferry/transport.h"

namespace ferry {

/// Positions of keys and values that the rank with least memory has room for in `fraction` of what
/// is available now, since all are given work alike; 0 where no rank knows. Collective; for when
/// all ranks have loaded their weights. `mapped_bytes`: of files whose pages are to stay, which the
/// system counts as available. Throws TransportError.
std::int64_t kv_tokens_in_memory(double fraction,
                                 const Decoder& decoder,
                                 std::uint64_t mapped_bytes,
                                 std::chrono::nanoseconds timeout,
                                 Transport& transport);

}  // namespace ferry
