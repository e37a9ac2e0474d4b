#include "gpu_harness.h"

#include <algorithm>
#include <bit>
#include <memory>
#include <vector>

#include "ferry/core/error.h"
#include "ferry/core/threads.h"

namespace ferry::testing {

namespace {

/// A copy in device memory, at least one element of room.
template <class T>
class Uploaded {
 public:
  Uploaded(GpuQueue& queue, const std::vector<T>& from)
      : memory_(queue.allocate(std::max<std::size_t>(1, from.size()) * sizeof(T))) {
    queue.copy(memory_->data(), from.data(), from.size() * sizeof(T));
    queue.synchronise();
  }

  T* data() const { return memory_->template as<T>(); }

 private:
  std::unique_ptr<GpuMemory> memory_;
};

template <class T>
std::vector<T> downloaded(GpuQueue& queue, const T* from, std::size_t n) {
  std::vector<T> to(n);
  queue.copy(to.data(), from, n * sizeof(T));
  queue.synchronise();
  return to;
}

/// Experts on the host: rows are brought there and results back.
void compute(FakeExperts& experts, const ExpertRows& rows, std::int64_t num_rows, GpuQueue& queue) {
  const auto n = static_cast<std::size_t>(num_rows);
  const auto in_bytes = n * static_cast<std::size_t>(rows.in.stride);
  const auto out_bytes = n * static_cast<std::size_t>(rows.out.stride);
  const auto counts = downloaded(queue, rows.counts.data(), rows.counts.size());
  const auto offsets = downloaded(queue, rows.offsets.data(), rows.offsets.size());
  const auto in = downloaded(queue, rows.in.base, in_bytes);
  const auto weights = downloaded(queue, rows.weights.data(), rows.weights.size());
  std::vector<std::byte> out = downloaded<std::byte>(queue, rows.out.base, out_bytes);
  ExpertRows here = rows;
  here.place = {};
  here.counts = counts;
  here.offsets = offsets;
  here.in = {in.data(), rows.in.stride};
  here.weights = weights;
  here.out = {out.data(), rows.out.stride};
  experts(here);
  experts.finish();
  queue.copy(rows.out.base, out.data(), out_bytes);
  queue.synchronise();
}

void exchange_once(
    const ExchangeCase& exchange, GpuExchange& gpu, GpuQueue& queue, Rank rank, int number) {
  const DispatcherOptions& o = exchange.options;
  const int tokens = exchange.tokens(rank);
  const auto stride = static_cast<std::ptrdiff_t>(sizeof(float)) * o.hidden;
  const Uploaded<int> num_tokens(queue, {tokens});
  const Uploaded<float> rows(queue, exchange.rows(rank));
  const Uploaded<SlotId> slots(queue, exchange.slots(rank));
  const Uploaded<float> weights(queue, exchange.weights(rank));
  const Uploaded<float> row_weights(queue, exchange.row_weights(rank));
  gpu.dispatch_send({.rows = {reinterpret_cast<const std::byte*>(rows.data()), stride},
                     .tokens = num_tokens.data(),
                     .slots = slots.data(),
                     .row_weights = row_weights.data()});
  const ExpertRows arrived = gpu.dispatch_recv();
  gpu.synchronise();
  FakeExperts experts(exchange, rank);
  compute(experts, arrived, gpu::GpuLayout(gpu.options(), exchange.ranks).expert_rows, queue);
  gpu.combine_send();
  const bool accumulate = number % 2 == 1;
  const std::vector<float> sums = expected_sums(exchange, rank);
  const Uploaded<float> out(queue, std::vector<float>(sums.size(), accumulate ? 0.5F : -1.0F));
  gpu.combine_recv({.weights = weights.data(),
                    .rows = {reinterpret_cast<std::byte*>(out.data()), stride},
                    .accumulate = accumulate});
  gpu.synchronise();
  const std::vector<float> got = downloaded<float>(queue, out.data(), sums.size());
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
  GpuExchange gpu(options.dispatcher, transport, queue);
  for (int n = 0; n < options.count; ++n) {
    const ExchangeCase exchange{.options = options.dispatcher,
                                .ranks = transport.size(),
                                .routing = options.routing,
                                .seed = options.seed * 1'000'003 + static_cast<std::uint64_t>(n)};
    exchange_once(exchange, gpu, queue, transport.rank(), n);
  }
  // A peer may still be reading results here.
  FERRY_CHECK(transport.barrier(kNoDeadline) == WaitResult::reached, "no barrier");
}

}  // namespace ferry::testing
