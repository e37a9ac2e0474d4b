#include "ferry/c/exchange_lane.h"

#include <exception>

#include "ferry/exchange/gpu/stream_exchange.h"

namespace ferry::c {

namespace {

class HostLane final : public ExchangeLane {
 public:
  HostLane(const DispatcherOptions& options, Transport& transport, ThreadPool& pool)
      : dispatcher_(options, transport, pool) {}

  const DispatcherOptions& options() const override { return dispatcher_.options(); }

  MemoryPlace place() const override { return {}; }

  MutableRowsView registered_input() const override { return dispatcher_.registered_input(); }

  void dispatch_send(const RoutedTokens& tokens, const std::int32_t* /*num_tokens*/) override {
    dispatcher_.dispatch_send(tokens);
  }

  ExpertRows dispatch_recv() override { return dispatcher_.dispatch_recv(); }

  void combine_send() override { dispatcher_.combine_send(); }

  void combine_recv(const CombineTarget& target) override { dispatcher_.combine_recv(target); }

  void synchronise() override {}

  std::uint64_t capturing() const override { return 0; }

  void mask(Rank peer) override { dispatcher_.mask(peer); }

  bool is_masked(Rank peer) const override { return dispatcher_.is_masked(peer); }

  std::span<const int> lost_tokens() const override { return dispatcher_.lost_tokens(); }

  Dispatcher* dispatcher() override { return &dispatcher_; }

 private:
  Dispatcher dispatcher_;
};

/// Each phase is a kernel on the caller's stream, and returns once it is there.
class DeviceLane final : public ExchangeLane {
 public:
  DeviceLane(const MemoryPlace& place, const DispatcherOptions& options, Transport& transport)
      : stream_(place, options, transport) {}

  ~DeviceLane() override {
    try {
      stream_.exchange().leave();
    } catch (const std::exception&) {
      // It has failed, which the caller has been told, or a rank does not end it.
    }
  }

  DeviceLane(const DeviceLane&) = delete;
  DeviceLane& operator=(const DeviceLane&) = delete;

  const DispatcherOptions& options() const override { return stream_.exchange().options(); }

  MemoryPlace place() const override { return stream_.place(); }

  MutableRowsView registered_input() const override {
    return stream_.exchange().registered_input();
  }

  void dispatch_send(const RoutedTokens& tokens, const std::int32_t* num_tokens) override {
    stream_.exchange().dispatch_send({.rows = tokens.rows,
                                      .type = tokens.type,
                                      .encoded = tokens.encoded,
                                      .count = tokens.tokens,
                                      .tokens = num_tokens,
                                      .slots = tokens.slots.data(),
                                      .weights = tokens.weights.data(),
                                      .row_weights = tokens.row_weights.data()});
  }

  ExpertRows dispatch_recv() override {
    ExpertRows rows = stream_.exchange().dispatch_recv();
    rows.place = stream_.place();
    return rows;
  }

  void combine_send() override { stream_.exchange().combine_send(); }

  void combine_recv(const CombineTarget& target) override {
    stream_.exchange().combine_recv({.weights = target.weights.data(),
                                     .rows = target.rows,
                                     .type = target.type,
                                     .accumulate = target.accumulate});
  }

  void synchronise() override { stream_.synchronise(); }

  std::uint64_t capturing() const override { return stream_.queue().capturing(); }

  void mask(Rank peer) override { stream_.exchange().mask(peer); }

  bool is_masked(Rank peer) const override { return stream_.exchange().is_masked(peer); }

  std::span<const int> lost_tokens() const override { return stream_.exchange().lost_tokens(); }

  Dispatcher* dispatcher() override { return nullptr; }

 private:
  StreamExchange stream_;
};

}  // namespace

std::unique_ptr<ExchangeLane> make_exchange_lane(const MemoryPlace& place,
                                                 const DispatcherOptions& options,
                                                 Transport& transport,
                                                 ThreadPool& pool) {
  if (place.kind == MemoryKind::host) return std::make_unique<HostLane>(options, transport, pool);
  return std::make_unique<DeviceLane>(place, options, transport);
}

std::size_t exchange_lane_bytes(const MemoryPlace& place,
                                const DispatcherOptions& options,
                                const Transport& transport) {
  if (place.kind == MemoryKind::host)
    return Dispatcher::mem_size(options, transport.size(), transport.capabilities());
  check_stream(place, options, transport);
  return GpuExchange::mem_size(options, transport.size());
}

}  // namespace ferry::c
