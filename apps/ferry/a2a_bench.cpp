#include "apps/ferry/a2a_bench.h"

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <random>

#include "apps/ferry/classic_alltoallv.h"
#include "ferry/core/error.h"
#include "ferry/core/threads.h"
#include "ferry/kernels/kernels.h"
#include "ferry/moe/placement.h"
#include "ferry/transport/launch.h"

namespace ferry {

namespace {

constexpr int kLeastIterations = 10;
constexpr int kMostIterations = 2000;

/// What ranks tell the launching process, also when they are processes themselves: memory that a
/// fork shares.
struct Shared {
  std::atomic<int> iterations;
  std::atomic<std::uint64_t> bytes_dispatch, bytes_combine, wire_bytes;
  A2aIteration samples[1];  // [ranks][kMostIterations]
};

class SharedMemory {
 public:
  explicit SharedMemory(int ranks)
      : bytes_(sizeof(Shared) +
               static_cast<std::size_t>(ranks) * kMostIterations * sizeof(A2aIteration)),
        data_(mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)) {
    if (data_ == MAP_FAILED) fail<Error>("bench: cannot map {} bytes for the samples", bytes_);
  }

  ~SharedMemory() { munmap(data_, bytes_); }

  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  Shared* operator->() const { return static_cast<Shared*>(data_); }

  A2aIteration* samples_of(Rank rank) const {
    return (*this)->samples + static_cast<std::ptrdiff_t>(rank) * kMostIterations;
  }

 private:
  std::size_t bytes_;
  void* data_;
};

float bf16_value(const std::byte* row, std::size_t i) {
  std::uint16_t bits = 0;
  std::memcpy(&bits, row + 2 * i, sizeof bits);
  const std::uint32_t wide = static_cast<std::uint32_t>(bits) << 16;
  float value = 0;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

/// One rank's side of the measurement.
class RankBench {
 public:
  RankBench(const A2aCase& a2a, Transport& transport, const SharedMemory& shared)
      : a2a_(a2a),
        transport_(transport),
        shared_(shared),
        pool_(a2a.threads),
        placement_(Placement::identity(a2a.experts, a2a.ranks)),
        dispatcher_({.exchange = exchange_options(a2a.backend),
                     .slots_per_rank = placement_.slots_per_rank(),
                     .hidden = a2a.hidden,
                     .topk = a2a.topk,
                     .max_tokens = a2a.tokens,
                     .dispatch_wire = a2a.dispatch_wire,
                     .expert_type = a2a.dispatch_wire,
                     .combine_wire = a2a.combine_wire},
                    transport,
                    pool_),
        classic_({.slots_per_rank = placement_.slots_per_rank(),
                  .hidden = a2a.hidden,
                  .topk = a2a.topk,
                  .max_tokens = a2a.tokens},
                 transport),
        row_bytes_(static_cast<std::size_t>(a2a.hidden) * dtype_bytes(DType::bf16)),
        rows_(static_cast<std::size_t>(a2a.tokens) * row_bytes_),
        out_(static_cast<std::size_t>(a2a.tokens) * row_bytes_) {
    // As large as the padded layout: every slot has room for every token of all ranks.
    floor_rows_ = Buffer(
        static_cast<std::size_t>(placement_.slots_per_rank() * a2a.ranks * a2a.tokens) * row_bytes_,
        Buffer::Use::sparse);
    slots_.resize(static_cast<std::size_t>(a2a.tokens) * static_cast<std::size_t>(a2a.topk));
    weights_.resize(slots_.size());
    fill_rows();
  }

  void run() {
    new_routing(0);
    verify();
    // Long enough that every slot's pages have been touched: later exchanges find them in place.
    const std::size_t exchange_bytes = slots_.size() * row_bytes_;
    const int warmup = exchange_bytes < (std::size_t{4} << 20) ? 100 : 10;
    std::vector<double> durations;
    for (int i = 1; i <= warmup; ++i) {
      const Stopwatch watch;
      iterate(i);
      durations.push_back(watch.microseconds());
    }
    // Ranks must agree on the count: rank 0's wins.
    if (transport_.rank() == 0) {
      std::sort(durations.begin(), durations.end());
      const double fitting = a2a_.seconds * 1e6 / durations[durations.size() / 2];
      shared_->iterations =
          std::clamp(static_cast<int>(fitting), kLeastIterations, kMostIterations);
    }
    meet();
    const std::uint64_t wire_before = dispatcher_.stats().bytes_wire;
    const int iterations = shared_->iterations;
    for (int i = 0; i < iterations; ++i)
      shared_.samples_of(transport_.rank())[i] = iterate(warmup + i + 1);
    if (transport_.rank() == 0) {
      const auto entries = static_cast<std::uint64_t>(slots_.size());
      const auto hidden = static_cast<std::uint64_t>(a2a_.hidden);
      shared_->bytes_dispatch = entries * hidden * dtype_bytes(a2a_.dispatch_wire);
      shared_->bytes_combine = entries * hidden * dtype_bytes(a2a_.combine_wire);
      shared_->wire_bytes =
          (dispatcher_.stats().bytes_wire - wire_before) / static_cast<std::uint64_t>(iterations);
    }
  }

 private:
  void meet() {
    if (transport_.barrier(deadline_in(std::chrono::seconds(60))) == WaitResult::timed_out)
      fail<Error>("bench: a rank did not reach the barrier in 60 s");
  }

  void fill_rows() {
    std::mt19937 engine(static_cast<unsigned>(transport_.rank()) + 1);
    auto* elements = rows_.as<std::uint16_t>();
    // Bit patterns of small positive numbers: exponents around 1, any mantissa.
    for (std::size_t i = 0; i < rows_.size() / 2; ++i)
      elements[i] = static_cast<std::uint16_t>(0x3F00 + engine() % 0x100);
  }

  /// Every iteration has its own routing, distinct experts for each token.
  void new_routing(int iteration) {
    const auto seed = static_cast<unsigned>(iteration * 131 + transport_.rank());
    draw_routing(a2a_.routing, a2a_.experts, a2a_.topk, seed, slots_);
    std::mt19937 engine(seed);
    for (float& weight : weights_) weight = static_cast<float>(1 + engine() % 100) / 400.0F;
  }

  RoutedTokens tokens() const {
    return {.rows = {rows_.data(), static_cast<std::ptrdiff_t>(row_bytes_)},
            .type = DType::bf16,
            .tokens = a2a_.tokens,
            .slots = slots_,
            .weights = weights_};
  }

  CombineTarget target() const {
    return {.weights = weights_,
            .rows = {out_.data(), static_cast<std::ptrdiff_t>(row_bytes_)},
            .type = DType::bf16};
  }

  /// Stands for the experts: reads every delivered row once and writes every result row once.
  void consume(const ExpertRows& rows) {
    pool_.parallel_for(
        static_cast<std::int64_t>(rows.counts.size()),
        1,
        [&](std::int64_t begin, std::int64_t end, int) {
          for (std::int64_t slot = begin; slot < end; ++slot) {
            const auto s = static_cast<std::size_t>(slot);
            for (std::int64_t i = 0; i < rows.counts[s]; ++i) {
              const std::int64_t row = rows.offsets[s] + i;
              kernels().convert(
                  rows.in.row(row), rows.in_type, rows.out.row(row), rows.out_type, rows.hidden);
            }
          }
        });
  }

  /// With experts that return their input, combine must give weight sums times the row.
  void verify() {
    const auto check = [&](std::string_view what) {
      for (std::size_t t = 0; t < static_cast<std::size_t>(a2a_.tokens); ++t) {
        float sum = 0;
        for (std::size_t k = 0; k < static_cast<std::size_t>(a2a_.topk); ++k)
          sum += weights_[t * static_cast<std::size_t>(a2a_.topk) + k];
        for (std::size_t h = 0; h < static_cast<std::size_t>(a2a_.hidden); ++h) {
          const float expected = sum * bf16_value(rows_.data() + t * row_bytes_, h);
          const float got = bf16_value(out_.data() + t * row_bytes_, h);
          if (std::abs(got - expected) > 0.02F * std::abs(expected)) {
            fail<Error>("bench: {} is wrong on rank {}, token {}, element {}: {} instead of {}",
                        what,
                        transport_.rank(),
                        t,
                        h,
                        got,
                        expected);
          }
        }
      }
      std::memset(out_.data(), 0, out_.size());
    };
    dispatcher_.dispatch_send(tokens());
    consume(dispatcher_.dispatch_recv());
    dispatcher_.combine_send();
    dispatcher_.combine_recv(target());
    check(backend_name(a2a_.backend));
    classic_.dispatch(rows_.data(), a2a_.tokens, slots_);
    classic_.combine(weights_, out_.data());
    check("the baseline");
  }

  A2aIteration iterate(int iteration) {
    new_routing(iteration);
    A2aIteration times;
    meet();
    {
      const Stopwatch watch;
      dispatcher_.dispatch_send(tokens());
      const ExpertRows rows = dispatcher_.dispatch_recv();
      times.dispatch = watch.microseconds();
      const Stopwatch consumer;
      consume(rows);
      times.consumer = consumer.microseconds();
    }
    meet();
    {
      const Stopwatch watch;
      dispatcher_.combine_send();
      dispatcher_.combine_recv(target());
      times.combine = watch.microseconds();
    }
    times.total = times.dispatch + times.combine;
    measure_floor(times);
    meet();
    {
      const Stopwatch watch;
      classic_.dispatch(rows_.data(), a2a_.tokens, slots_);
      times.classic_dispatch = watch.microseconds();
    }
    consume_classic();
    meet();
    {
      const Stopwatch watch;
      classic_.combine(weights_, out_.data());
      times.classic_combine = watch.microseconds();
    }
    return times;
  }

  void consume_classic() {
    std::byte* rows = classic_.expert_rows();
    for (std::int64_t i = 0; i < classic_.received(); ++i) {
      std::byte* row = rows + static_cast<std::size_t>(i) * row_bytes_;
      kernels().convert(row, DType::bf16, row, DType::bf16, a2a_.hidden);
    }
  }

  /// The same bytes without planning, messages or waiting: as many rows as this rank receives on
  /// average, each source row read once and in cache for its other copies, written where the padded
  /// layout would have them under this iteration's routing; then those rows read and their sums
  /// written.
  void measure_floor(A2aIteration& times) {
    const auto topk = static_cast<std::size_t>(a2a_.topk);
    const auto slots = static_cast<std::size_t>(placement_.slots_per_rank());
    const auto capacity =
        static_cast<std::size_t>(a2a_.ranks) * static_cast<std::size_t>(a2a_.tokens);
    std::vector<std::size_t> used(slots);
    std::vector<std::byte*> places(slots_.size());
    for (std::size_t i = 0; i < places.size(); ++i) {
      const std::size_t slot = static_cast<std::size_t>(slots_[i]) % slots;
      places[i] = floor_rows_.data() + (slot * capacity + used[slot]++) * row_bytes_;
    }
    meet();
    {
      const Stopwatch watch;
      pool_.parallel_for(a2a_.tokens, 8, [&](std::int64_t begin, std::int64_t end, int) {
        for (auto i = static_cast<std::size_t>(begin) * topk;
             i < static_cast<std::size_t>(end) * topk;
             ++i) {
          std::memcpy(places[i], rows_.data() + i / topk * row_bytes_, row_bytes_);
        }
      });
      times.floor_dispatch = watch.microseconds();
    }
    meet();
    {
      const Stopwatch watch;
      pool_.parallel_for(a2a_.tokens, 8, [&](std::int64_t begin, std::int64_t end, int) {
        for (auto t = static_cast<std::size_t>(begin); t < static_cast<std::size_t>(end); ++t) {
          kernels().weighted_sum({.rows = places.data() + t * topk,
                                  .weights = weights_.data() + t * topk,
                                  .k = a2a_.topk,
                                  .n = a2a_.hidden,
                                  .in_type = DType::bf16,
                                  .out = out_.data() + t * row_bytes_,
                                  .out_type = DType::bf16});
        }
      });
      times.floor_combine = watch.microseconds();
    }
  }

  const A2aCase& a2a_;
  Transport& transport_;
  const SharedMemory& shared_;
  ThreadPool pool_;
  Placement placement_;
  Dispatcher dispatcher_;
  ClassicAllToAllV classic_;
  std::size_t row_bytes_;
  Buffer rows_, out_, floor_rows_;
  std::vector<SlotId> slots_;
  std::vector<float> weights_;
};

}  // namespace

A2aResult measure_a2a(const A2aCase& a2a) {
  const SharedMemory shared(a2a.ranks);
  const int status =
      run_ranks({.transport = a2a.transport, .ranks = a2a.ranks}, [&](Transport& transport) {
        RankBench(a2a, transport, shared).run();
        return 0;
      });
  if (status != 0) fail<Error>("bench a2a: a rank failed; its reason is above");
  A2aResult result;
  result.iterations.resize(static_cast<std::size_t>(shared->iterations));
  for (std::size_t i = 0; i < result.iterations.size(); ++i) {
    A2aIteration& slowest = result.iterations[i];
    for (Rank rank = 0; rank < a2a.ranks; ++rank) {
      const A2aIteration& sample = shared.samples_of(rank)[i];
      const auto take = [&](double A2aIteration::*field) {
        slowest.*field = std::max(slowest.*field, sample.*field);
      };
      for (const auto field : {&A2aIteration::dispatch,
                               &A2aIteration::consumer,
                               &A2aIteration::combine,
                               &A2aIteration::total,
                               &A2aIteration::floor_dispatch,
                               &A2aIteration::floor_combine,
                               &A2aIteration::classic_dispatch,
                               &A2aIteration::classic_combine})
        take(field);
    }
  }
  result.bytes_dispatch = shared->bytes_dispatch;
  result.bytes_combine = shared->bytes_combine;
  result.wire_bytes = shared->wire_bytes;
  return result;
}

}  // namespace ferry
