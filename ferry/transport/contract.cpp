#include "ferry/transport/contract.h"

namespace ferry {

void check_allocation(std::size_t bytes, int num_signals, int size) {
  FERRY_CHECK(num_signals >= 0 && num_signals <= kMaxSignals,
              "{} signals, at most {}",
              num_signals,
              kMaxSignals);
  FERRY_CHECK(bytes <= (std::size_t{1} << 46) / static_cast<std::size_t>(size),
              "{} bytes for each of {} ranks are more than an address space holds",
              bytes,
              size);
}

void check_requests(std::string_view transport, Rank own, std::span<const RegionRequest> requests) {
  const RegionRequest& first = requests[0];
  const RegionRequest& mine = requests[static_cast<std::size_t>(own)];
  for (std::size_t r = 1; r < requests.size(); ++r) {
    const auto text = [](const RegionRequest& request) {
      return fmt::format("({}, {}{})",
                         request.bytes,
                         request.signals,
                         request.registered ? ", memory of its own" : "");
    };
    FERRY_CHECK(requests[r] == first,
                "{}: {}({} bytes, {} signals) on rank {}, but rank {} asks for {} and rank 0 for "
                "{}; all must ask for the same",
                transport,
                mine.registered ? "register_region" : "allocate_region",
                mine.bytes,
                mine.signals,
                own,
                r,
                text(requests[r]),
                text(first));
  }
}

void check_signal(const Region& region, int signal) {
  FERRY_CHECK(signal >= 0 && signal < region.num_signals(),
              "signal {} of {}",
              signal,
              region.num_signals());
}

void check_put(const Put& put, int size) {
  const std::size_t bytes = put.region->local().size();
  FERRY_CHECK(put.peer >= 0 && put.peer < size, "peer {} of {}", put.peer, size);
  FERRY_CHECK(put.offset <= bytes && put.source.size() <= bytes - put.offset,
              "{} bytes at offset {} of a region of {}",
              put.source.size(),
              put.offset,
              bytes);
  check_signal(*put.region, put.signal);
  FERRY_CHECK(put.add >= 1 && put.add <= kMaxAdd, "add {}, at most {}", put.add, kMaxAdd);
}

TransportError aborted_error(const CallSite& at, Rank who, std::string_view reason) {
  return {
      TransportError::Kind::aborted,
      who,
      fmt::format(
          "{}: {} on rank {}: rank {} gave up: {}", at.transport, at.call, at.rank, who, reason)};
}

TransportError gone_error(const CallSite& at, Rank who, std::string_view reason) {
  return {
      TransportError::Kind::peer_died,
      who,
      fmt::format("{}: {} on rank {}: rank {} {}", at.transport, at.call, at.rank, who, reason)};
}

TransportError late_error(const CallSite& at, Rank who, std::chrono::nanoseconds waited) {
  return {TransportError::Kind::timeout,
          who,
          fmt::format("{}: {} on rank {}: rank {} did not come within {:.1f} s",
                      at.transport,
                      at.call,
                      at.rank,
                      who,
                      std::chrono::duration<double>(waited).count())};
}

}  // namespace ferry
