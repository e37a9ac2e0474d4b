#include "ferry/c/exchange_lane.h"

#include <unistd.h>

#include <array>
#include <vector>

#include "ferry/core/error.h"
#include "ferry/exchange/gpu/cuda.h"
#include "ferry/exchange/gpu/gpu_exchange.h"
#include "ferry/transport/gather_words.h"

namespace ferry::c {

namespace {

class HostLane final : public ExchangeLane {
 public:
  HostLane(const DispatcherOptions& options, Transport& transport, ThreadPool& pool)
      : dispatcher_(options, transport, pool) {}

  const DispatcherOptions& options() const override { return dispatcher_.options(); }

  MemoryPlace place() const override { return {}; }

  MutableRowsView registered_input() const override { return dispatcher_.registered_input(); }

  void dispatch_send(const RoutedTokens& tokens) override { dispatcher_.dispatch_send(tokens); }

  ExpertRows dispatch_recv() override { return dispatcher_.dispatch_recv(); }

  void combine_send() override { dispatcher_.combine_send(); }

  void combine_recv(const CombineTarget& target) override { dispatcher_.combine_recv(target); }

  void synchronise() override {}

  Dispatcher* dispatcher() override { return &dispatcher_; }

 private:
  Dispatcher dispatcher_;
};

/// Each phase is a kernel on the caller's stream, and returns once it is there.
class DeviceLane final : public ExchangeLane {
 public:
  DeviceLane(const MemoryPlace& place, const DispatcherOptions& options, Transport& transport)
      : place_(place),
        queue_(
            use_cuda_stream(place.device, ranks_on(place.device, options, transport), place.queue)),
        exchange_(options, transport, *queue_) {}

  const DispatcherOptions& options() const override { return exchange_.options(); }

  MemoryPlace place() const override { return place_; }

  MutableRowsView registered_input() const override { return exchange_.registered_input(); }

  void dispatch_send(const RoutedTokens& tokens) override {
    exchange_.dispatch_send({.rows = tokens.rows,
                             .type = tokens.type,
                             .encoded = tokens.encoded,
                             .count = tokens.tokens,
                             .slots = tokens.slots.data(),
                             .row_weights = tokens.row_weights.data()});
  }

  ExpertRows dispatch_recv() override {
    ExpertRows rows = exchange_.dispatch_recv();
    rows.place = place_;
    return rows;
  }

  void combine_send() override { exchange_.combine_send(); }

  void combine_recv(const CombineTarget& target) override {
    exchange_.combine_recv({.weights = target.weights.data(),
                            .rows = target.rows,
                            .type = target.type,
                            .accumulate = target.accumulate});
  }

  /// What the kernels say of the caller's slots is the caller's fault here, as on the host.
  void synchronise() override {
    try {
      exchange_.synchronise();
    } catch (const BrokenContract& e) {
      throw ConfigError(e.what());
    }
  }

  Dispatcher* dispatcher() override { return nullptr; }

 private:
  /// Ranks of this process that use the same device: their kernels wait for one another's, so all
  /// must fit on it at once. Processes have devices of their own.
  static int ranks_on(int device, const DispatcherOptions& options, Transport& transport) {
    const std::array<std::uint64_t, 2> own = {static_cast<std::uint64_t>(getpid()),
                                              static_cast<std::uint64_t>(device)};
    const std::vector<std::uint64_t> all =
        gather_words(own, "its device", options.timeout, transport);
    int ranks = 0;
    for (std::size_t i = 0; i < all.size(); i += own.size())
      ranks += all[i] == own[0] && all[i + 1] == own[1] ? 1 : 0;
    return ranks;
  }

  MemoryPlace place_;
  std::unique_ptr<GpuQueue> queue_;
  GpuExchange exchange_;
};

/// Throws for what a DeviceLane cannot be, before the others wait for it.
void check_device(const MemoryPlace& place, const DispatcherOptions& options, const Transport& t) {
  if (place.kind == MemoryKind::host_pinned)
    fail<ConfigError>("host_pinned memory: an exchange works on host or on device memory");
  const CudaDevices found = find_cuda_devices();
  if (found.names.empty()) fail<ConfigError>("device memory: {}", found.why_none);
  if (place.device < 0 || static_cast<std::size_t>(place.device) >= found.names.size()) {
    fail<ConfigError>("device {}: this machine has 0..{}", place.device, found.names.size() - 1);
  }
  for (Rank rank = 0; rank < t.size(); ++rank) {
    if (t.host_of(rank) != t.host_of(t.rank()))
      fail<ConfigError>("device memory: rank {} is on another host; devices share one", rank);
  }
  check_gpu_options(options, t.size());
}

}  // namespace

std::unique_ptr<ExchangeLane> make_exchange_lane(const MemoryPlace& place,
                                                 const DispatcherOptions& options,
                                                 Transport& transport,
                                                 ThreadPool& pool) {
  if (place.kind == MemoryKind::host) return std::make_unique<HostLane>(options, transport, pool);
  check_device(place, options, transport);
  return std::make_unique<DeviceLane>(place, options, transport);
}

std::size_t exchange_lane_bytes(const MemoryPlace& place,
                                const DispatcherOptions& options,
                                const Transport& transport) {
  if (place.kind == MemoryKind::host)
    return Dispatcher::mem_size(options, transport.size(), transport.capabilities());
  check_device(place, options, transport);
  return GpuExchange::mem_size(options, transport.size());
}

}  // namespace ferry::c
