// A GpuExchange for callers whose memory and stream lie on one device of this machine.
#pragma once

#include <cstddef>
#include <memory>

#include "ferry/dispatcher.h"
#include "ferry/exchange/gpu/gpu_exchange.h"
#include "ferry/memory_kind.h"

namespace ferry {

/// Throws ConfigError for what a StreamExchange cannot be, before the others wait for it.
void check_stream(const MemoryPlace& place,
                  const DispatcherOptions& options,
                  const Transport& transport);

/// Ranks are threads of one process that share a device, or processes with a device each, on one
/// host or several. Each phase puts its kernels on the stream and returns. Threads: one at a time.
class StreamExchange {
 public:
  /// Collective. `place`: a device's number, and its CUstream, which outlives this. Throws
  /// ConfigError as check_stream().
  StreamExchange(const MemoryPlace& place, const DispatcherOptions& options, Transport& transport);

  const MemoryPlace& place() const { return place_; }

  GpuQueue& queue() const { return *queue_; }

  GpuExchange& exchange() { return exchange_; }

  const GpuExchange& exchange() const { return exchange_; }

  /// As GpuExchange::synchronise(), but what kernels say of what the caller handed over or launched
  /// is a ConfigError, as on the host.
  void synchronise();

 private:
  MemoryPlace place_;
  std::unique_ptr<GpuQueue> queue_;
  GpuExchange exchange_;
};

}  // namespace ferry
