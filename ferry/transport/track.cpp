#include "ferry/transport/track.h"

#include <algorithm>
#include <cstdint>

#include "ferry/core/error.h"
#include "ferry/transport/gather_words.h"

namespace ferry {

TrackTransport::TrackTransport(Transport& group, int stride, std::chrono::nanoseconds timeout)
    : group_(group), stride_(stride), timeout_(timeout) {
  if (stride < 1 || group.size() % stride != 0)
    fail<ConfigError>("{} ranks do not make {} tracks of the same length", group.size(), stride);
}

/// Parts of a region are alike on all ranks of the group.
std::size_t TrackTransport::most_of_all(std::size_t bytes) {
  const std::uint64_t own = bytes;
  return std::ranges::max(gather_words({&own, 1}, "bytes of a region", timeout_, group_));
}

std::unique_ptr<Region> TrackTransport::allocate_region(std::size_t bytes, int num_signals) {
  return group_.allocate_region(most_of_all(bytes), num_signals);
}

std::unique_ptr<Region> TrackTransport::register_region(std::span<std::byte> memory,
                                                        int num_signals) {
  return group_.register_region(memory, num_signals);
}

std::unique_ptr<Transport> TrackTransport::split(int color, int key) {
  return group_.split(color < 0 ? color : in_group(color), key);
}

void TrackTransport::put(const Put& put) {
  FERRY_CHECK(put.peer >= 0 && put.peer < size(), "put to rank {} of {}", put.peer, size());
  Put in_all = put;
  in_all.peer = in_group(put.peer);
  group_.put(in_all);
}

WaitResult TrackTransport::wait(Region& region,
                                int signal,
                                std::uint64_t count,
                                Deadline deadline) {
  return group_.wait(region, signal, count, deadline);
}

std::uint64_t TrackTransport::signal_value(Region& region, int signal) {
  return group_.signal_value(region, signal);
}

bool TrackTransport::progress() { return group_.progress(); }

WaitResult TrackTransport::barrier(Deadline deadline) { return group_.barrier(deadline); }

void TrackTransport::abort(std::string_view reason) noexcept { group_.abort(reason); }

void TrackTransport::mask(Rank peer) { group_.mask(in_group(peer)); }

std::span<std::byte> TrackTransport::peer_window(Region& region, Rank peer) {
  return group_.peer_window(region, in_group(peer));
}

}  // namespace ferry
