// Random exchanges over GPU queues, checked as those of the CPU are, byte for byte.
#pragma once

#include "exchange_harness.h"
#include "ferry/exchange/gpu/gpu_exchange.h"

namespace ferry::testing {

struct GpuHarnessOptions {
  DispatcherOptions dispatcher = {};
  Routing routing = Routing::random;
  std::uint64_t seed = 0;
  int count = 1;
};

/// Runs `count` exchanges on this rank, whose experts are computed on the host. Throws on the first
/// wrong byte.
void run_gpu_exchanges(const GpuHarnessOptions& options, Transport& transport, GpuQueue& queue);

}  // namespace ferry::testing
