#include "gpu_harness.h"

#include <algorithm>
#include <bit>
#include <chrono>
#include <memory>
#include <random>
#include <thread>
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

  void set(const std::vector<T>& from) const {
    queue_.copy(memory_->data(), from.data(), from.size() * sizeof(T));
    queue_.synchronise();
  }

  T* data() const { return memory_->template as<T>(); }

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
class Lane {
 public:
  Lane(const DispatcherOptions& o, Transport& transport, GpuQueue& own_queue)
      : queue_(own_queue),
        gpu_(o, transport, own_queue),
        layout_(gpu_.options(), transport.size()),
        stride_(static_cast<std::ptrdiff_t>(sizeof(float)) * o.hidden),
        tokens_(own_queue, 1),
        rows_(own_queue, values_of(o)),
        slots_(own_queue, entries_of(o)),
        weights_(own_queue, entries_of(o)),
        row_weights_(own_queue, entries_of(o)),
        out_(own_queue, values_of(o)) {}

  /// Phases are then launched as graphs, where a run says so.
  void capture() {
    for (const bool accumulate : {false, true}) {
      dispatch_graphs_[accumulate] = queue_.capture([&] { call_dispatch(); });
      combine_graphs_[accumulate] = queue_.capture([&] { call_combine(accumulate); });
    }
  }

  void run(const ExchangeCase& exchange, Rank rank, int number, bool by_graph);

 private:
  static std::size_t values_of(const DispatcherOptions& o) {
    return static_cast<std::size_t>(o.max_tokens) * static_cast<std::size_t>(o.hidden);
  }

  static std::size_t entries_of(const DispatcherOptions& o) {
    return static_cast<std::size_t>(o.max_tokens) * static_cast<std::size_t>(o.topk);
  }

  void call_dispatch() {
    gpu_.dispatch_send({.rows = {reinterpret_cast<const std::byte*>(rows_.data()), stride_},
                        .tokens = tokens_.data(),
                        .slots = slots_.data(),
                        .row_weights = row_weights_.data()});
    arrived_ = gpu_.dispatch_recv();
  }

  void call_combine(bool accumulate) {
    gpu_.combine_send();
    gpu_.combine_recv({.weights = weights_.data(),
                       .rows = {reinterpret_cast<std::byte*>(out_.data()), stride_},
                       .accumulate = accumulate});
  }

  GpuQueue& queue_;
  GpuExchange gpu_;
  const gpu::GpuLayout layout_;
  const std::ptrdiff_t stride_;
  DeviceArray<int> tokens_;
  DeviceArray<float> rows_;
  DeviceArray<SlotId> slots_;
  DeviceArray<float> weights_;
  DeviceArray<float> row_weights_;
  DeviceArray<float> out_;
  ExpertRows arrived_;
  std::unique_ptr<GpuGraph> dispatch_graphs_[2], combine_graphs_[2];  // without accumulate, with
};

void Lane::run(const ExchangeCase& exchange, Rank rank, int number, bool by_graph) {
  const DispatcherOptions& o = exchange.options;
  const bool accumulate = number % 2 == 1;
  tokens_.set({exchange.tokens(rank)});
  rows_.set(exchange.rows(rank));
  slots_.set(exchange.slots(rank));
  weights_.set(exchange.weights(rank));
  row_weights_.set(exchange.row_weights(rank));
  if (by_graph) {
    dispatch_graphs_[accumulate]->launch();
  } else {
    call_dispatch();
  }
  gpu_.synchronise();
  FakeExperts experts(exchange, rank);
  compute(experts, arrived_, layout_.expert_rows, queue_);
  const std::vector<float> sums = expected_sums(exchange, rank);
  out_.set(std::vector<float>(sums.size(), accumulate ? 0.5F : -1.0F));
  if (by_graph) {
    combine_graphs_[accumulate]->launch();
  } else {
    call_combine(accumulate);
  }
  gpu_.synchronise();
  const std::vector<float> got = download<float>(queue_, out_.data(), sums.size());
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
  if (options.runs != GpuRuns::calls) lane.capture();
  FERRY_CHECK(transport.barrier(kNoDeadline) == WaitResult::reached, "no barrier");
  std::mt19937 draw(static_cast<std::uint32_t>(options.seed) * 64 +
                    static_cast<std::uint32_t>(transport.rank()) + 1);
  for (int n = 0; n < options.count; ++n) {
    const ExchangeCase exchange{.options = options.dispatcher,
                                .ranks = transport.size(),
                                .routing = options.routing,
                                .seed = options.seed * 1'000'003 + static_cast<std::uint64_t>(n)};
    const bool by_graph =
        options.runs == GpuRuns::graphs || (options.runs == GpuRuns::either && draw() % 2 == 0);
    // Who comes late shows who does not wait.
    if (draw() % 4 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));
    lane.run(exchange, transport.rank(), n, by_graph);
  }
  // A peer may still be reading results here.
  FERRY_CHECK(transport.barrier(kNoDeadline) == WaitResult::reached, "no barrier");
}

}  // namespace ferry::testing
