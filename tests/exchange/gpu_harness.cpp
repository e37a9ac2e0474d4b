#include "gpu_harness.h"

#include <algorithm>
#include <bit>
#include <memory>
#include <vector>

#include "ferry/core/error.h"
#include "ferry/core/threads.h"

namespace ferry::testing {

namespace {

/// Device memory for up to so many elements. Made before the exchanges: a device may wait for its
/// kernels to allocate, and those wait for other ranks.
template <class T>
class DeviceArray {
 public:
  DeviceArray(GpuQueue& queue, std::size_t most)
      : queue_(queue), memory_(queue.allocate(std::max<std::size_t>(1, most) * sizeof(T))) {}

  T* set(const std::vector<T>& from) const {
    queue_.copy(memory_->data(), from.data(), from.size() * sizeof(T));
    queue_.synchronise();
    return memory_->template as<T>();
  }

 private:
  GpuQueue& queue_;
  std::unique_ptr<GpuMemory> memory_;
};

/// Experts on the host: rows are brought there and results back.
void compute(FakeExperts& experts, const ExpertRows& rows, std::int64_t num_rows, GpuQueue& queue) {
  const auto n = static_cast<std::size_t>(num_rows);
  const auto in_bytes = n * static_cast<std::size_t>(rows.in.stride);
  const auto out_bytes = n * static_cast<std::size_t>(rows.out.stride);
  const auto counts = download(queue, rows.counts.data(), rows.counts.size());
  const auto offsets = download(queue, rows.offsets.data(), rows.offsets.size());
  std::vector<std::byte> in;
  std::vector<const std::byte*>
      in_rows;  // where each of those is here, if they are told by address
  if (rows.in.pointers == nullptr) {
    in = download(queue, rows.in.base, in_bytes);
  } else {
    in.resize(in_bytes);
    in_rows.resize(n);
    const auto there = download(queue, rows.in.pointers, n);
    for (std::size_t slot = 0; slot < counts.size(); ++slot) {
      for (std::int64_t row = offsets[slot]; row < offsets[slot] + counts[slot]; ++row) {
        const auto r = static_cast<std::size_t>(row);
        in_rows[r] = in.data() + row * rows.in.stride;
        queue.copy(
            in.data() + row * rows.in.stride, there[r], static_cast<std::size_t>(rows.in.stride));
      }
    }
    queue.synchronise();
  }
  const auto weights = download(queue, rows.weights.data(), rows.weights.size());
  std::vector<std::byte> out = download<std::byte>(queue, rows.out.base, out_bytes);
  ExpertRows here = rows;
  here.place = {};
  here.counts = counts;
  here.offsets = offsets;
  here.in = {in.data(), rows.in.stride, in_rows.empty() ? nullptr : in_rows.data()};
  here.weights = weights;
  here.out = {out.data(), rows.out.stride};
  experts(here);
  experts.finish();
  queue.copy(rows.out.base, out.data(), out_bytes);
  queue.synchronise();
}

/// A rank's lane, and what it reads and writes.
struct Lane {
  Lane(const DispatcherOptions& o, Transport& transport, GpuQueue& own_queue)
      : queue(own_queue),
        gpu(o, transport, own_queue),
        tokens(own_queue, 1),
        rows(own_queue, values_of(o)),
        slots(own_queue, entries_of(o)),
        weights(own_queue, entries_of(o)),
        row_weights(own_queue, entries_of(o)),
        out(own_queue, values_of(o)) {}

  static std::size_t values_of(const DispatcherOptions& o) {
    return static_cast<std::size_t>(o.max_tokens) * static_cast<std::size_t>(o.hidden);
  }

  static std::size_t entries_of(const DispatcherOptions& o) {
    return static_cast<std::size_t>(o.max_tokens) * static_cast<std::size_t>(o.topk);
  }

  GpuQueue& queue;
  GpuExchange gpu;
  DeviceArray<int> tokens;
  DeviceArray<float> rows;
  DeviceArray<SlotId> slots;
  DeviceArray<float> weights;
  DeviceArray<float> row_weights;
  DeviceArray<float> out;
};

void exchange_once(const ExchangeCase& exchange, Lane& lane, Rank rank, int number) {
  const DispatcherOptions& o = exchange.options;
  const auto stride = static_cast<std::ptrdiff_t>(sizeof(float)) * o.hidden;
  const float* weights = lane.weights.set(exchange.weights(rank));
  lane.gpu.dispatch_send(
      {.rows = {reinterpret_cast<const std::byte*>(lane.rows.set(exchange.rows(rank))), stride},
       .tokens = lane.tokens.set({exchange.tokens(rank)}),
       .slots = lane.slots.set(exchange.slots(rank)),
       .row_weights = lane.row_weights.set(exchange.row_weights(rank))});
  const ExpertRows arrived = lane.gpu.dispatch_recv();
  lane.gpu.synchronise();
  FakeExperts experts(exchange, rank);
  const gpu::GpuLayout layout(lane.gpu.options(), exchange.ranks);
  compute(experts, arrived, layout.expert_rows, lane.queue);
  lane.gpu.combine_send();
  const bool accumulate = number % 2 == 1;
  const std::vector<float> sums = expected_sums(exchange, rank);
  float* out = lane.out.set(std::vector<float>(sums.size(), accumulate ? 0.5F : -1.0F));
  lane.gpu.combine_recv({.weights = weights,
                         .rows = {reinterpret_cast<std::byte*>(out), stride},
                         .accumulate = accumulate});
  lane.gpu.synchronise();
  const std::vector<float> got = download<float>(lane.queue, out, sums.size());
  for (std::size_t i = 0; i < sums.size(); ++i) {
    const float expected = accumulate ? 0.5F + sums[i] : sums[i];
    FERRY_CHECK(std::bit_cast<std::uint32_t>(got[i]) == std::bit_cast<std::uint32_t>(expected),
                "exchange {} rank {} token {} column {}: got {}, expected {}",
                number,
                rank,
                i / static_cast<std::size_t>(o.hidden),
                i % static_cast<std::size_t>(o.hidden),
                got[i],
                expected);
  }
}

}  // namespace

void run_gpu_exchanges(const GpuHarnessOptions& options, Transport& transport, GpuQueue& queue) {
  const FlushDenormals flush;
  Lane lane(options.dispatcher, transport, queue);
  for (int n = 0; n < options.count; ++n) {
    const ExchangeCase exchange{.options = options.dispatcher,
                                .ranks = transport.size(),
                                .routing = options.routing,
                                .seed = options.seed * 1'000'003 + static_cast<std::uint64_t>(n)};
    exchange_once(exchange, lane, transport.rank(), n);
  }
  // A peer may still be reading results here.
  FERRY_CHECK(transport.barrier(kNoDeadline) == WaitResult::reached, "no barrier");
}

}  // namespace ferry::testing
