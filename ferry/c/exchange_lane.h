// What runs the phases of a ferry_all_to_all: a Dispatcher, or kernels on a device's queue.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "ferry/dispatcher.h"
#include "ferry/memory_kind.h"

namespace ferry::c {

class ExchangeLane {
 public:
  virtual ~ExchangeLane() = default;
  ExchangeLane() = default;
  ExchangeLane(const ExchangeLane&) = delete;
  ExchangeLane& operator=(const ExchangeLane&) = delete;

  virtual const DispatcherOptions& options() const = 0;
  /// Where its memory lies, and what callers hand over must.
  virtual MemoryPlace place() const = 0;
  virtual MutableRowsView registered_input() const = 0;

  /// `num_tokens`: how many of them there are, on the device; null: all.
  virtual void dispatch_send(const RoutedTokens& tokens, const std::int32_t* num_tokens) = 0;
  virtual ExpertRows dispatch_recv() = 0;
  virtual void combine_send() = 0;
  virtual void combine_recv(const CombineTarget& target) = 0;
  virtual void synchronise() = 0;
  /// The number of the capture that goes on on its queue; 0: none.
  virtual std::uint64_t capturing() const = 0;

  virtual void mask(Rank peer) = 0;
  virtual bool is_masked(Rank peer) const = 0;
  virtual std::span<const int> lost_tokens() const = 0;

  /// For what only it can do; null on a device.
  virtual Dispatcher* dispatcher() = 0;
};

/// Collective. Throws ConfigError for what cannot be there.
std::unique_ptr<ExchangeLane> make_exchange_lane(const MemoryPlace& place,
                                                 const DispatcherOptions& options,
                                                 Transport& transport,
                                                 ThreadPool& pool);

/// Bytes that a lane there reserves on each rank. Throws likewise.
std::size_t exchange_lane_bytes(const MemoryPlace& place,
                                const DispatcherOptions& options,
                                const Transport& transport);

}  // namespace ferry::c
