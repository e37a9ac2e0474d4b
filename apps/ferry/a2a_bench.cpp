#include "apps/ferry/a2a_bench.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <random>

#include "apps/ferry/a2a_floor.h"
#include "apps/ferry/classic_alltoallv.h"
#include "apps/ferry/raw_mpi.h"
#include "ferry/core/error.h"
#include "ferry/core/threads.h"
#include "ferry/kernels/kernels.h"
#include "ferry/launch.h"
#include "ferry/placement.h"

namespace ferry {

namespace {

constexpr int kLeastIterations = 10;
constexpr int kMostIterations = 2000;

/// What ranks tell the launching process and one another, also when they are processes.
struct Shared {
  explicit Shared(const A2aCase& a2a)
      : samples(static_cast<std::size_t>(a2a.ranks) * kMostIterations),
        waits(static_cast<std::size_t>(a2a.ranks) * static_cast<std::size_t>(a2a.ranks)),
        bytes(static_cast<std::size_t>(a2a.ranks)),
        iterations(1),
        hosts(1),
        floor(a2a) {}

  SharedArray<A2aIteration> samples;  // [ranks][kMostIterations]
  SharedArray<A2aWait> waits;         // [ranks][ranks]
  SharedArray<A2aBytes> bytes;        // [ranks]
  SharedArray<int> iterations;
  SharedArray<int> hosts;
  FloorMemory floor;
};

float bf16_value(const std::byte* row, std::size_t i) {
  std::uint16_t bits = 0;
  std::memcpy(&bits, row + 2 * i, sizeof bits);
  const std::uint32_t wide = static_cast<std::uint32_t>(bits) << 16;
  float value = 0;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

/// Whether the baseline can be MPI's own alltoallv: its ranks are those of the case.
bool baseline_over_mpi(const A2aCase& a2a) {
  const std::optional<World>& world = a2a.launch.world;
  if (!world || world->size != a2a.ranks) return false;
  const bool by_mpirun =
      world->launcher == World::Launcher::open_mpi || world->launcher == World::Launcher::mpich;
  return a2a.transport == "mpi" || (by_mpirun && has_mpi());
}

/// One rank's side of the measurement.
class RankBench {
 public:
  RankBench(const A2aCase& a2a, Transport& transport, const Shared& shared)
      : a2a_(a2a),
        transport_(transport),
        shared_(shared),
        pool_(a2a.threads),
        dispatcher_(a2a.dispatcher(), transport, pool_),
        classic_({.slots_per_rank = a2a.slots_per_rank(),
                  .hidden = a2a.hidden,
                  .topk = a2a.topk,
                  .max_tokens = a2a.tokens,
                  .over_mpi = baseline_over_mpi(a2a)},
                 transport),
        floor_(a2a, transport.rank(), shared.floor, pool_),
        row_bytes_(static_cast<std::size_t>(a2a.hidden) * dtype_bytes(DType::bf16)),
        rows_(static_cast<std::size_t>(a2a.tokens) * row_bytes_),
        out_(static_cast<std::size_t>(a2a.tokens) * row_bytes_) {
    const std::size_t entries =
        static_cast<std::size_t>(a2a.tokens) * static_cast<std::size_t>(a2a.topk);
    slots_ = slots_of(transport.rank());
    weights_.resize(entries);
    fill_rows();
  }

  void run() {
    new_routing(0);
    meet();
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
      shared_.iterations[0] =
          std::clamp(static_cast<int>(fitting), kLeastIterations, kMostIterations);
      shared_.hosts[0] = 0;
      for (Rank r = 0; r < transport_.size(); ++r)
        shared_.hosts[0] = std::max(shared_.hosts[0], transport_.host_of(r) + 1);
    }
    spread_from_first(transport_, shared_.iterations.bytes());
    bytes_ = {};
    const std::vector<SourceStats> before(dispatcher_.source_stats().begin(),
                                          dispatcher_.source_stats().end());
    const int iterations = shared_.iterations[0];
    const std::size_t first = static_cast<std::size_t>(transport_.rank()) * kMostIterations;
    for (int i = 0; i < iterations; ++i)
      shared_.samples[first + static_cast<std::size_t>(i)] = iterate(warmup + i + 1);
    const auto rows = static_cast<double>(slots_.size());
    for (const auto field : {&A2aBytes::wire_dispatch,
                             &A2aBytes::wire_combine,
                             &A2aBytes::network_dispatch,
                             &A2aBytes::network_combine})
      bytes_.*field /= iterations;
    bytes_.logical_dispatch =
        rows * static_cast<double>(wire_row_bytes(a2a_.dispatch_wire, a2a_.hidden));
    bytes_.logical_combine =
        rows * static_cast<double>(wire_row_bytes(a2a_.combine_wire, a2a_.hidden));
    shared_.bytes[static_cast<std::size_t>(transport_.rank())] = bytes_;
    gather_at_first(transport_, shared_.samples.bytes());
    gather_at_first(transport_, shared_.bytes.bytes());
    note_waits(before, iterations);
  }

 private:
  void meet() {
    if (transport_.barrier(deadline_in(std::chrono::seconds(60))) == WaitResult::timed_out)
      fail<Error>("bench: a rank did not reach the barrier in 60 s");
  }

  void note_waits(const std::vector<SourceStats>& before, int iterations) {
    const auto ranks = static_cast<std::size_t>(transport_.size());
    for (std::size_t source = 0; source < ranks; ++source) {
      const SourceStats waited = dispatcher_.source_stats()[source] - before[source];
      const auto mean = [&](std::uint64_t sum) { return static_cast<double>(sum) / iterations; };
      shared_.waits[static_cast<std::size_t>(transport_.rank()) * ranks + source] = {
          .dispatch_us = mean(waited.dispatch_wait_ns) / 1e3,
          .combine_us = mean(waited.combine_wait_ns) / 1e3,
          .rows = mean(waited.rows_received)};
    }
    gather_at_first(transport_, shared_.waits.bytes());
  }

  /// In the memory that peers read, where rows travel as they are.
  void fill_rows() {
    std::mt19937 engine(static_cast<unsigned>(transport_.rank()) + 1);
    auto* elements = rows_.as<std::uint16_t>();
    // Bit patterns of small positive numbers: exponents around 1, any mantissa.
    for (std::size_t i = 0; i < rows_.size() / 2; ++i)
      elements[i] = static_cast<std::uint16_t>(0x3F00 + engine() % 0x100);
    input_ = {rows_.data(), static_cast<std::ptrdiff_t>(row_bytes_)};
    if (a2a_.dispatch_wire != WireType::bf16) return;
    const MutableRowsView registered = dispatcher_.registered_input();
    for (std::int64_t t = 0; t < a2a_.tokens; ++t)
      std::memcpy(registered.row(t), input_.row(t), row_bytes_);
    input_ = {registered.base, registered.stride};
  }

  /// Every iteration has its own routing, distinct experts for each token. Slots are the experts'
  /// numbers. All ranks have read the last one's before they meet for the classic path.
  void new_routing(int iteration) {
    const auto seed_of = [&](Rank r) { return static_cast<unsigned>(iteration * 131 + r); };
    // Where ranks share no memory each draws all routings, for its floor.
    for (Rank r = 0; r < a2a_.ranks; ++r) {
      if (r == transport_.rank() || a2a_.launch.world)
        draw_routing(a2a_.routing, a2a_.experts, a2a_.topk, seed_of(r), slots_of(r));
    }
    std::mt19937 engine(seed_of(transport_.rank()));
    for (float& weight : weights_) weight = static_cast<float>(1 + engine() % 100) / 400.0F;
  }

  /// [tokens, topk] of a rank, in this iteration.
  std::span<SlotId> slots_of(Rank rank) const {
    const std::size_t entries =
        static_cast<std::size_t>(a2a_.tokens) * static_cast<std::size_t>(a2a_.topk);
    return shared_.floor.slots().subspan(static_cast<std::size_t>(rank) * entries, entries);
  }

  RoutedTokens tokens() const {
    return {.rows = input_,
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
              kernels().decode(
                  rows.in.row(row), rows.in_type, rows.out.row(row), rows.out_type, rows.hidden);
            }
          }
        });
  }

  void verify();
  void check_sums(std::string_view what, WireType dispatch, WireType expert, WireType combine);
  A2aIteration iterate(int iteration);
  void exchange_in_phases(A2aIteration& times);
  void exchange_fused(A2aIteration& times);
  void measure_floor(A2aIteration& times);
  void measure_counts(A2aIteration& times);
  void measure_classic(A2aIteration& times);

  const A2aCase& a2a_;
  Transport& transport_;
  const Shared& shared_;
  ThreadPool pool_;
  Dispatcher dispatcher_;
  ClassicAllToAllV classic_;
  A2aFloor floor_;
  std::size_t row_bytes_;
  Buffer rows_, out_;
  RowsView input_;
  std::span<SlotId> slots_;  // of this rank, where all can read them
  std::vector<float> weights_;
  A2aBytes bytes_;
};

void RankBench::verify() {
  A2aIteration times;
  a2a_.fused() ? exchange_fused(times) : exchange_in_phases(times);
  check_sums(a2a_.backend, a2a_.dispatch_wire, a2a_.expert_type, a2a_.combine_wire);
  measure_classic(times);
  check_sums("the baseline", WireType::bf16, WireType::bf16, WireType::bf16);
}

/// With experts that return their input, combine must give weight sums times the row, but for what
/// each rounding on the way may do: the wires', the experts' type's, and that of the result.
void RankBench::check_sums(std::string_view what,
                           WireType dispatch,
                           WireType expert,
                           WireType combine) {
  const auto topk = static_cast<std::size_t>(a2a_.topk);
  for (std::size_t t = 0; t < static_cast<std::size_t>(a2a_.tokens); ++t) {
    const std::byte* row = rows_.data() + t * row_bytes_;
    double sum = 0;
    for (std::size_t k = 0; k < topk; ++k) sum += double{weights_[t * topk + k]};
    double greatest = 0;
    const auto hidden = static_cast<std::size_t>(a2a_.hidden);
    for (std::size_t h = 0; h < hidden; ++h)
      greatest = std::max(greatest, double{bf16_value(row, h)});
    for (std::size_t h = 0; h < hidden; ++h) {
      const double x = bf16_value(row, h);
      double off = 0;
      for (const WireType type : {dispatch, expert == dispatch ? WireType::f32 : expert, combine})
        off += wire_error_bound(type, x + off, greatest + off);
      const double expected = sum * x;
      const double bound = sum * off + wire_error_bound(WireType::bf16, sum * (x + off), 0);
      const double got = bf16_value(out_.data() + t * row_bytes_, h);
      if (!(std::abs(got - expected) <= bound + 1e-5 * expected)) {
        fail<Error>("bench: {} is wrong on rank {}, token {}, element {}: {} instead of {} +- {}",
                    what,
                    transport_.rank(),
                    t,
                    h,
                    got,
                    expected,
                    bound);
      }
    }
  }
  std::memset(out_.data(), 0, out_.size());
}

A2aIteration RankBench::iterate(int iteration) {
  new_routing(iteration);
  A2aIteration times;
  meet();
  a2a_.fused() ? exchange_fused(times) : exchange_in_phases(times);
  measure_floor(times);
  measure_counts(times);
  measure_classic(times);
  return times;
}

void RankBench::exchange_in_phases(A2aIteration& times) {
  const ExchangeStats before = dispatcher_.stats();
  {
    const Stopwatch watch;
    dispatcher_.dispatch_send(tokens());
    const ExpertRows rows = dispatcher_.dispatch_recv();
    times.dispatch = watch.microseconds();
    const Stopwatch consumer;
    consume(rows);
    times.consumer = consumer.microseconds();
  }
  const ExchangeStats dispatched = dispatcher_.stats();
  meet();
  {
    const Stopwatch watch;
    dispatcher_.combine_send();
    dispatcher_.combine_recv(target());
    times.combine = watch.microseconds();
  }
  times.total = times.dispatch + times.combine;
  const ExchangeStats& combined = dispatcher_.stats();
  bytes_.wire_dispatch += static_cast<double>(dispatched.bytes_wire - before.bytes_wire);
  bytes_.wire_combine += static_cast<double>(combined.bytes_wire - dispatched.bytes_wire);
  bytes_.network_dispatch += static_cast<double>(dispatched.bytes_network - before.bytes_network);
  bytes_.network_combine += static_cast<double>(combined.bytes_network - dispatched.bytes_network);
}

void RankBench::exchange_fused(A2aIteration& times) {
  const ExchangeStats before = dispatcher_.stats();
  const Stopwatch watch;
  dispatcher_.dispatch_send(tokens());
  dispatcher_.dispatch_recv([&](const ExpertRows& rows) {
    const Stopwatch consumer;
    consume(rows);
    times.consumer += consumer.microseconds();
  });
  dispatcher_.combine_send();
  dispatcher_.combine_recv(target());
  times.total = watch.microseconds() - times.consumer;
  const ExchangeStats& after = dispatcher_.stats();
  bytes_.wire_dispatch += static_cast<double>(after.bytes_wire - before.bytes_wire);
  bytes_.network_dispatch += static_cast<double>(after.bytes_network - before.bytes_network);
}

void RankBench::measure_floor(A2aIteration& times) {
  floor_.prepare();
  meet();
  {
    const Stopwatch watch;
    floor_.dispatch();
    times.floor_dispatch = watch.microseconds();
  }
  floor_.consume();
  meet();
  const Stopwatch watch;
  floor_.combine(weights_, out_.data());
  times.floor_combine = watch.microseconds();
}

void RankBench::measure_counts(A2aIteration& times) {
  meet();
  const Stopwatch watch;
  classic_.exchange_counts();
  times.counts = watch.microseconds();
}

void RankBench::measure_classic(A2aIteration& times) {
  meet();
  {
    const Stopwatch watch;
    classic_.dispatch(rows_.data(), a2a_.tokens, slots_);
    times.classic_dispatch = watch.microseconds();
  }
  std::byte* rows = classic_.expert_rows();
  for (std::int64_t i = 0; i < classic_.received(); ++i) {
    std::byte* row = rows + static_cast<std::size_t>(i) * row_bytes_;
    kernels().convert(row, DType::bf16, row, DType::bf16, a2a_.hidden);
  }
  meet();
  const Stopwatch watch;
  classic_.combine(weights_, out_.data());
  times.classic_combine = watch.microseconds();
}

A2aIteration slower(const A2aIteration& a, const A2aIteration& b) {
  A2aIteration most = a;
  for (const auto field : {&A2aIteration::dispatch,
                           &A2aIteration::consumer,
                           &A2aIteration::combine,
                           &A2aIteration::total,
                           &A2aIteration::floor_dispatch,
                           &A2aIteration::floor_combine,
                           &A2aIteration::classic_dispatch,
                           &A2aIteration::classic_combine,
                           &A2aIteration::counts})
    most.*field = std::max(a.*field, b.*field);
  return most;
}

}  // namespace

A2aResult measure_a2a(const A2aCase& a2a) {
  const Shared shared(a2a);
  if (a2a.transport != "mpi" && baseline_over_mpi(a2a)) start_mpi();
  const int status = run_ranks(a2a.launch, [&](Transport& transport) {
    const FlushDenormals flush;
    RankBench(a2a, transport, shared).run();
    return 0;
  });
  if (status != 0) fail<Error>("bench a2a: a rank failed; its reason is above");
  A2aResult result{.hosts = shared.hosts[0],
                   .baseline = baseline_over_mpi(a2a) ? "mpi" : "classic"};
  if (!speaks_for_all()) return result;
  for (std::size_t i = 0; i < static_cast<std::size_t>(a2a.ranks * a2a.ranks); ++i)
    result.waits.push_back(shared.waits[i]);
  result.slowest.resize(static_cast<std::size_t>(shared.iterations[0]));
  for (std::size_t rank = 0; rank < static_cast<std::size_t>(a2a.ranks); ++rank) {
    for (std::size_t i = 0; i < result.slowest.size(); ++i) {
      const A2aIteration& sample = shared.samples[rank * kMostIterations + i];
      result.slowest[i] = slower(result.slowest[i], sample);
      result.all_ranks.push_back(sample);
    }
    const A2aBytes& bytes = shared.bytes[rank];
    for (const auto field : {&A2aBytes::logical_dispatch,
                             &A2aBytes::logical_combine,
                             &A2aBytes::wire_dispatch,
                             &A2aBytes::wire_combine,
                             &A2aBytes::network_dispatch,
                             &A2aBytes::network_combine})
      result.bytes.*field += bytes.*field / a2a.ranks;
  }
  return result;
}

}  // namespace ferry
