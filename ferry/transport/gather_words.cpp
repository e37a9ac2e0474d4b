#include "ferry/transport/gather_words.h"

#include <algorithm>

#include "ferry/core/error.h"

namespace ferry {

std::vector<std::uint64_t> gather_words(std::span<const std::uint64_t> own,
                                        std::string_view what,
                                        std::chrono::nanoseconds timeout,
                                        Transport& transport) {
  const auto ranks = static_cast<std::size_t>(transport.size());
  const std::size_t bytes = own.size_bytes();
  const std::size_t at = static_cast<std::size_t>(transport.rank()) * bytes;
  const std::size_t most = transport.capabilities().max_put_bytes;
  const auto region = transport.allocate_region(ranks * bytes, transport.size());
  const std::span<std::byte> all = region->local();
  std::ranges::copy(std::as_bytes(own), all.subspan(at).begin());  // memcpy may not take no words
  std::uint64_t puts = 0;  // from each rank to each other one
  for (std::size_t done = 0; done < bytes; ++puts) {
    const std::size_t piece = std::min(most, bytes - done);
    for (Rank peer = 0; peer < transport.size(); ++peer) {
      if (peer == transport.rank()) continue;
      transport.put({.region = region.get(),
                     .peer = peer,
                     .offset = at + done,
                     .source = all.subspan(at + done, piece),
                     .signal = transport.rank()});
    }
    done += piece;
  }
  for (Rank peer = 0; peer < transport.size(); ++peer) {
    if (peer == transport.rank()) continue;
    if (transport.wait(*region, peer, puts, deadline_in(timeout)) == WaitResult::reached) continue;
    throw TransportError(TransportError::Kind::timeout,
                         peer,
                         fmt::format("rank {} did not say its {} in time", peer, what));
  }
  // What was put must stay where it is until its peer has it.
  if (transport.barrier(deadline_in(timeout)) == WaitResult::timed_out) {
    throw TransportError(TransportError::Kind::timeout,
                         -1,
                         fmt::format("not all ranks had the {} of all others in time", what));
  }
  std::vector<std::uint64_t> words(ranks * own.size());
  std::ranges::copy(all, std::as_writable_bytes(std::span(words)).begin());
  return words;
}

}  // namespace ferry
