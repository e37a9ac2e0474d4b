// Random exchanges over GPU queues, checked as those of the CPU are, byte for byte.
#pragma once

#include <algorithm>
#include <memory>
#include <string_view>
#include <vector>

#include "exchange_harness.h"
#include "ferry/exchange/gpu/gpu_exchange.h"
#include "ferry/function_ref.h"
#include "support/ranks.h"

namespace ferry::testing {

/// Device memory for up to so many elements. Made before the exchanges: a device may wait for its
/// kernels to allocate, and those wait for other ranks.
template <class T>
class DeviceArray {
 public:
  DeviceArray(GpuQueue& queue, std::size_t most)
      : queue_(queue), memory_(queue.allocate(std::max<std::size_t>(1, most) * sizeof(T))) {}

  void set(const std::vector<T>& from) const {
    queue_.copy(memory_->data(), from.data(), from.size() * sizeof(T));
    queue_.synchronise();
  }

  T* data() const { return memory_->template as<T>(); }

 private:
  GpuQueue& queue_;
  std::unique_ptr<GpuMemory> memory_;
};

/// A rank's exchange, and what it reads and writes.
class GpuLane {
 public:
  using Experts = FunctionRef<void(const ExpertRows&)>;

  /// `ranks_per_host`: as of GpuExchange.
  GpuLane(const DispatcherOptions& options,
          Transport& transport,
          GpuQueue& queue,
          int ranks_per_host = 0);

  /// From now on tokens' rows, of wire f32, are brought to registered_input().
  void write_in_place() { input_ = gpu_.registered_input(); }

  GpuExchange& exchange() { return gpu_; }

  /// What this rank has in the exchange, into device memory.
  void bring(const ExchangeCase& exchange, bool accumulate);

  // The phases, on the queue.
  void dispatch_send();

  void dispatch_recv() { arrived_ = gpu_.dispatch_recv(); }

  void combine_send() { gpu_.combine_send(); }

  void combine_recv(bool accumulate);

  /// Between dispatch_recv and combine_send: experts on the host, to which rows are brought.
  void compute(Experts experts);

  /// So many sums, when they are there. To where accumulate adds, 0.5 was brought.
  std::vector<float> sums(std::size_t n);

 private:
  Rank rank_;
  GpuQueue& queue_;
  GpuExchange gpu_;
  const gpu::GpuLayout layout_;
  const std::ptrdiff_t stride_, result_stride_;
  DeviceArray<int> tokens_;
  DeviceArray<float> rows_;
  MutableRowsView input_;
  DeviceArray<SlotId> slots_;
  DeviceArray<float> weights_;
  DeviceArray<float> row_weights_;
  DeviceArray<float> out_;
  ExpertRows arrived_;
};

/// Its synchronise() throws what a phase says that waited in vain for this rank.
void expect_nothing_from(Rank rank, std::string_view phase, GpuExchange& exchange);

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
  int ranks_per_host = 0;
  bool in_place = false;  ///< of wire f32: tokens are written into registered_input()
};

/// Processes of which one may be killed. Not over libfabric's tcp: its version 1.17 takes a
/// survivor that polls along, now and then (docs/transport.md), and exchanges between hosts poll
/// all the time.
std::vector<RankKind> kinds_that_die();

/// Runs `count` exchanges on this rank, whose experts are computed on the host. Throws on the first
/// wrong byte.
void run_gpu_exchanges(const GpuHarnessOptions& options, Transport& transport, GpuQueue& queue);

}  // namespace ferry::testing
