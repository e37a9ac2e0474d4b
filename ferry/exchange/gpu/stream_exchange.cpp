#include "ferry/exchange/gpu/stream_exchange.h"

#include <unistd.h>

#include <array>
#include <cstdint>
#include <vector>

#include "ferry/core/error.h"
#include "ferry/exchange/gpu/cuda.h"
#include "ferry/transport/gather_words.h"

namespace ferry {

namespace {

/// Ranks of this process, which is one of this host's, that use the same device: their kernels wait
/// for one another's, so all must fit on it at once. Processes have devices of their own.
int ranks_on(int device, const DispatcherOptions& options, Transport& transport) {
  const std::array<std::uint64_t, 2> own = {static_cast<std::uint64_t>(getpid()),
                                            static_cast<std::uint64_t>(device)};
  const std::vector<std::uint64_t> all =
      gather_words(own, "its device", options.timeout, transport);
  int ranks = 0;
  for (Rank rank = 0; rank < transport.size(); ++rank) {
    const auto at = static_cast<std::size_t>(rank) * own.size();
    const bool is_near = transport.host_of(rank) == transport.host_of(transport.rank());
    ranks += is_near && all[at] == own[0] && all[at + 1] == own[1] ? 1 : 0;
  }
  return ranks;
}

std::unique_ptr<GpuQueue> checked_queue(const MemoryPlace& place,
                                        const DispatcherOptions& options,
                                        Transport& transport) {
  check_stream(place, options, transport);
  return use_cuda_stream(place.device, ranks_on(place.device, options, transport), place.queue);
}

}  // namespace

void check_stream(const MemoryPlace& place, const DispatcherOptions& options, const Transport& t) {
  if (place.kind == MemoryKind::host_pinned)
    fail<ConfigError>("host_pinned memory: an exchange works on host or on device memory");
  const CudaDevices found = find_cuda_devices();
  if (found.names.empty()) fail<ConfigError>("device memory: {}", found.why_none);
  if (place.device < 0 || static_cast<std::size_t>(place.device) >= found.names.size()) {
    fail<ConfigError>("device {}: this machine has 0..{}", place.device, found.names.size() - 1);
  }
  check_gpu_options(options, t.size());
  check_gpu_hosts(hosts_of_ranks(t, /*ranks_per_host=*/0), options, t);
}

StreamExchange::StreamExchange(const MemoryPlace& place,
                               const DispatcherOptions& options,
                               Transport& transport)
    : place_(place),
      queue_(checked_queue(place, options, transport)),
      exchange_(options, transport, *queue_) {}

void StreamExchange::synchronise() {
  try {
    exchange_.synchronise();
  } catch (const BrokenContract& e) {
    throw ConfigError(e.what());
  }
}

}  // namespace ferry
