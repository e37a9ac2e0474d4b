#include "ferry/runtime/kv_memory.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "ferry/core/memory.h"
#include "ferry/transport/gather_words.h"

namespace ferry {

namespace {

constexpr std::uint64_t kUnknown = UINT64_MAX;

/// Of this rank; all ranks of its host share what is left.
std::uint64_t own_tokens(double fraction,
                         const Decoder& decoder,
                         std::uint64_t mapped_bytes,
                         const Transport& transport) {
  const std::optional<std::size_t> available = available_memory();
  if (!available) return kUnknown;
  int sharing = 0;
  for (Rank r = 0; r < transport.size(); ++r)
    sharing += transport.host_of(r) == transport.host_of(transport.rank()) ? 1 : 0;
  const std::size_t bytes = decoder.state_layout().bytes_per_position();
  if (bytes == 0) return kUnknown;  // a member of a group that has no head of any layer
  const double budget =
      fraction * static_cast<double>(*available - std::min<std::size_t>(*available, mapped_bytes));
  return std::max<std::uint64_t>(
      kPagePositions, static_cast<std::uint64_t>(budget / sharing / static_cast<double>(bytes)));
}

}  // namespace

std::int64_t kv_tokens_in_memory(double fraction,
                                 const Decoder& decoder,
                                 std::uint64_t mapped_bytes,
                                 std::chrono::nanoseconds timeout,
                                 Transport& transport) {
  const std::uint64_t own = own_tokens(fraction, decoder, mapped_bytes, transport);
  const std::vector<std::uint64_t> all =
      gather_words({&own, 1}, "memory for keys and values", timeout, transport);
  const std::uint64_t least = *std::min_element(all.begin(), all.end());
  return least == kUnknown ? 0 : static_cast<std::int64_t>(least);
}

}  // namespace ferry
