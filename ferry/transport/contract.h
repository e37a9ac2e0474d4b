// What every transport refuses alike, and says alike. All but the last two throw BrokenContract.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "ferry/core/error.h"
#include "ferry/transport.h"

namespace ferry {

/// Arguments of an allocate_region(), or of a register_region().
struct RegionRequest {
  std::uint64_t bytes = 0;
  std::uint64_t signals = 0;
  std::uint64_t registered = 0;  // 1: the caller's memory
  bool operator==(const RegionRequest&) const = default;
};

void check_allocation(std::size_t bytes, int num_signals, int size);
/// All ranks must ask for what rank 0 asks for; names the first that does not.
void check_requests(std::string_view transport, Rank own, std::span<const RegionRequest> requests);
void check_signal(const Region& region, int signal);
/// REQUIRES: put.region is not null.
void check_put(const Put& put, int size);

/// Where an error came up: "shm: wait on rank 2".
struct CallSite {
  std::string_view transport;
  std::string_view call;
  Rank rank = 0;
};

/// `who` gave up.
[[nodiscard]] TransportError aborted_error(const CallSite& at, Rank who, std::string_view reason);
/// `who` is gone; `reason` says how, as the end of a sentence that begins with the rank.
[[nodiscard]] TransportError gone_error(const CallSite& at, Rank who, std::string_view reason);
/// `who` did not come to a collective call.
[[nodiscard]] TransportError late_error(const CallSite& at,
                                        Rank who,
                                        std::chrono::nanoseconds waited);

inline constexpr std::string_view kHasLeft = "has left the group although it was still waited for";

}  // namespace ferry
