// Random exchanges over GPU queues, checked as those of the CPU are, byte for byte.
#pragma once

#include "exchange_harness.h"
#include "ferry/exchange/gpu/gpu_exchange.h"

namespace ferry::testing {

/// Who puts the phases on the queue.
enum class GpuRuns {
  calls,
  graphs,  ///< of dispatch and of combine, captured before the first exchange
  either,  ///< drawn for each exchange, by each rank for itself
};

struct GpuHarnessOptions {
  DispatcherOptions dispatcher = {};
  Routing routing = Routing::random;
  std::uint64_t seed = 0;
  int count = 1;
  GpuRuns runs = GpuRuns::calls;
};

/// Runs `count` exchanges on this rank, whose experts are computed on the host. Throws on the first
/// wrong byte.
void run_gpu_exchanges(const GpuHarnessOptions& options, Transport& transport, GpuQueue& queue);

}  // namespace ferry::testing
