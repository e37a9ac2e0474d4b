#include "apps/ferry/moe_bench.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <ctime>
#include <numeric>

#include "ferry/core/error.h"
#include "ferry/core/threads.h"
#include "ferry/kernels/kernels.h"
#include "ferry/launch.h"
#include "ferry/moe/experts.h"
#include "ferry/placement.h"

namespace ferry {

namespace {

constexpr std::size_t kLeastIterations = 5;
constexpr std::size_t kMostIterations = 1000;
constexpr double kWeightBytes = 2.0 * (1U << 30);  // of all layers that take turns
constexpr double kMostLayers = 64;
constexpr std::int64_t kExpertRowsPerTurn = 4096;  // as in MoeContext

/// One rank's part of one iteration.
struct Sample {
  double us = 0;
  double cpu_us = 0;
  Work work;
};

/// The packed weights of one expert.
struct ExpertLayout {
  WeightType type = WeightType::f32;
  std::int64_t hidden = 0;
  std::int64_t inter = 0;

  GatedFfnWeights view(const std::byte* data) const {
    GatedFfnWeights w{.gate_up = {.type = type, .k = hidden, .n = 2 * inter, .data = data},
                      .down = {.type = type, .k = inter, .n = hidden, .data = data}};
    w.down.data += gate_up_bytes(w);
    return w;
  }

  std::size_t bytes() const {
    const GatedFfnWeights w = view(nullptr);
    return gate_up_bytes(w) + w.down.panel_bytes() * static_cast<std::size_t>(w.down.panels());
  }

 private:
  static std::size_t gate_up_bytes(const GatedFfnWeights& w) {
    return w.gate_up.panel_bytes() * static_cast<std::size_t>(w.gate_up.gated_panels());
  }
};

/// What random bits are cut down to, so that a word is a number of either sign.
struct Pattern {
  std::uint32_t kept;
  std::uint32_t set;

  /// Around 1/64, both as one f32 and as two bf16. Codes and scales of quantised types: small ones,
  /// no NaN among them; powers of two below 1.
  static Pattern of(WeightType type) {
    if (type == WeightType::mxfp4) return {0x1f1f1f1fU, 0x60606060U};
    if (is_quantized(type)) return {0xb7b7b7b7U, 0};
    return {0x807f807fU, 0x3c803c80U};
  }
};

void fill(std::byte* out, std::size_t bytes, Pattern pattern, std::uint64_t seed) {
  std::uint64_t state = seed * 0x9e3779b97f4a7c15U + 1;
  for (std::size_t i = 0; i + 4 <= bytes; i += 4) {
    state = state * 6364136223846793005U + 1442695040888963407U;
    const auto word = static_cast<std::uint32_t>(state >> 32 & pattern.kept) | pattern.set;
    std::memcpy(out + i, &word, 4);
  }
}

double thread_cpu_us() {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) * 1e6 + static_cast<double>(t.tv_nsec) * 1e-3;
}

/// One rank's side of the measurement.
class RankBench {
 public:
  RankBench(const MoeCase& moe, Transport& transport)
      : moe_(moe),
        transport_(transport),
        pool_(moe.threads, &kernels(moe.numerics)),
        placement_((moe.placement.empty() ? Placement::identity(moe.experts, moe.ranks)
                                          : Placement(moe.placement, moe.experts, moe.ranks))
                       .choosing({.shares = moe.shares,
                                  .source = transport.rank(),
                                  .nearest = moe.nearest,
                                  .nodes = equal_hosts(transport)})),
        layout_{moe.weights, moe.hidden, moe.inter},
        dispatcher_({.exchange = exchange_options(moe.backend),
                     .slots_per_rank = placement_.slots_per_rank(),
                     .hidden = moe.hidden,
                     .topk = moe.topk,
                     .max_tokens = moe.tokens,
                     .dispatch_wire = wire_type(activation_type(moe.weights)),
                     .expert_type = wire_type(activation_type(moe.weights)),
                     .combine_wire = wire_type(activation_type(moe.weights))},
                    transport,
                    pool_),
        experts_({.hidden = moe.hidden,
                  .inter = moe.inter,
                  .dtype = activation_type(moe.weights),
                  .max_rows = kExpertRowsPerTurn},
                 pool_),
        row_bytes_(static_cast<std::size_t>(moe.hidden) *
                   dtype_bytes(activation_type(moe.weights))),
        hidden_(static_cast<std::size_t>(moe.tokens) * row_bytes_),
        out_(static_cast<std::size_t>(moe.tokens * moe.hidden) * sizeof(float)),
        experts_drawn_(static_cast<std::size_t>(moe.tokens * moe.topk)),
        slots_(experts_drawn_.size()),
        expert_rows_(static_cast<std::size_t>(moe.experts)),
        weights_(slots_.size(), 1.0F / static_cast<float>(moe.topk)) {
    fill(hidden_.data(),
         hidden_.size(),
         Pattern::of(weight_type(activation_type(moe.weights))),
         static_cast<std::uint64_t>(transport.rank()) + 1);
    make_layers();
  }

  void verify();

  Sample iterate(std::size_t iteration) {
    draw(iteration);
    Sample sample;
    meet();
    const double cpu_before = cpu_us();
    meet();
    const Stopwatch watch;
    sample.work = forward(layers_[iteration % layers_.size()].slots);
    sample.us = watch.microseconds();
    sample.cpu_us = cpu_us() - cpu_before;
    return sample;
  }

  void meet() {
    if (transport_.barrier(deadline_in(std::chrono::minutes(2))) == WaitResult::timed_out)
      fail<Error>("bench: a rank did not reach the barrier in 2 minutes");
  }

  std::size_t num_layers() const { return layers_.size(); }

  /// Tokens that this rank has sent to each expert in all iterations so far.
  std::span<const std::uint64_t> expert_rows() const { return expert_rows_; }

 private:
  struct Layer {
    Buffer memory;
    std::vector<GatedFfnWeights> slots;
  };

  void make_layers() {
    const auto slots = static_cast<std::size_t>(placement_.slots_per_rank());
    const double layer_bytes =
        static_cast<double>(layout_.bytes()) * static_cast<double>(moe_.experts);
    layers_.resize(
        static_cast<std::size_t>(std::clamp(kWeightBytes / layer_bytes, 2.0, kMostLayers)));
    for (Layer& layer : layers_) {
      layer.memory = Buffer(slots * layout_.bytes());
      for (std::size_t s = 0; s < slots; ++s)
        layer.slots.push_back(layout_.view(layer.memory.data() + s * layout_.bytes()));
      // The layers' contents are alike: what counts is that they lie apart.
      pool_.parallel_for(std::ssize(layer.slots), 1, [&](std::int64_t i, std::int64_t end, int) {
        for (; i < end; ++i) {
          fill(layer.memory.data() + static_cast<std::size_t>(i) * layout_.bytes(),
               layout_.bytes(),
               Pattern::of(moe_.weights),
               seed_of(expert_at(static_cast<SlotId>(i))));
        }
      });
    }
  }

  /// What a slot of this rank holds; an empty one is filled like a last expert more.
  ExpertId expert_at(SlotId local) const {
    const ExpertId e =
        placement_.expert_of(transport_.rank() * placement_.slots_per_rank() + local);
    return e < 0 ? moe_.experts : e;
  }

  static std::uint64_t seed_of(ExpertId e) { return 1000 + static_cast<std::uint64_t>(e); }

  void draw(std::size_t iteration) {
    const auto rank = static_cast<std::size_t>(transport_.rank());
    draw_routing(moe_.routing, moe_.experts, moe_.topk, iteration * 131 + rank, experts_drawn_);
    placement_.place(experts_drawn_, moe_.topk, slots_);
    for (const ExpertId e : experts_drawn_) ++expert_rows_[static_cast<std::size_t>(e)];
  }

  double cpu_us() {
    std::vector<double> each(static_cast<std::size_t>(pool_.size()));
    pool_.run([&](int worker) { each[static_cast<std::size_t>(worker)] = thread_cpu_us(); });
    return std::accumulate(each.begin(), each.end(), 0.0);
  }

  /// The layer as MoeLayer runs it behind its router. Returns what this rank had to do at least.
  Work forward(std::span<const GatedFfnWeights> slots) {
    dispatcher_.dispatch_send({.rows = rows(),
                               .type = activation_type(moe_.weights),
                               .tokens = moe_.tokens,
                               .slots = slots_,
                               .weights = weights_});
    const ExpertRows rows = dispatcher_.dispatch_recv();
    experts_.run(rows, slots);
    Work work;
    for (const std::int32_t count : rows.counts) {
      if (count == 0) continue;
      work.bytes += static_cast<double>(layout_.bytes());
      work.operations += 6.0 * count * moe_.hidden * moe_.inter;
    }
    dispatcher_.combine_send();
    dispatcher_.combine_recv(
        {.weights = weights_,
         .rows = {out_.data(), static_cast<std::ptrdiff_t>(sizeof(float)) * moe_.hidden}});
    return work;
  }

  RowsView rows() const { return {hidden_.data(), static_cast<std::ptrdiff_t>(row_bytes_)}; }

  const MoeCase& moe_;
  Transport& transport_;
  ThreadPool pool_;
  Placement placement_;
  ExpertLayout layout_;
  Dispatcher dispatcher_;
  Experts experts_;
  std::size_t row_bytes_;
  Buffer hidden_, out_;  // [tokens, H] of the weights' type, f32 [tokens, H]
  std::vector<ExpertId> experts_drawn_;
  std::vector<SlotId> slots_;
  std::vector<std::uint64_t> expert_rows_;
  std::vector<float> weights_;
  std::vector<Layer> layers_;
};

/// The first token's experts one after another, from weights made again: theirs may lie elsewhere.
void RankBench::verify() {
  draw(0);
  forward(layers_[0].slots);
  const Buffer expert(layout_.bytes());
  const auto hidden = static_cast<std::size_t>(moe_.hidden);
  std::vector<float> sum(hidden), one(hidden);
  for (std::size_t k = 0; k < static_cast<std::size_t>(moe_.topk); ++k) {
    fill(expert.data(), expert.size(), Pattern::of(moe_.weights), seed_of(experts_drawn_[k]));
    const GatedFfnWeights ffn = layout_.view(expert.data());
    const std::int32_t count = 1;
    const std::int64_t offset = 0;
    experts_.run({.counts = {&count, 1},
                  .offsets = {&offset, 1},
                  .in = rows(),
                  .in_type = wire_type(activation_type(moe_.weights)),
                  .out = {reinterpret_cast<std::byte*>(one.data()), 0},
                  .hidden = moe_.hidden},
                 {&ffn, 1});
    for (std::size_t h = 0; h < hidden; ++h) sum[h] += weights_[k] * one[h];
  }
  float largest = 0;
  float wrong = 0;
  for (std::size_t h = 0; h < hidden; ++h) {
    largest = std::max(largest, std::abs(sum[h]));
    wrong = std::max(wrong, std::abs(sum[h] - out_.as<float>()[h]));
  }
  if (!(wrong <= 0.02F * largest)) {
    fail<Error>("bench: {} is wrong on rank {}, by {} of {}",
                backend_name(moe_.backend),
                transport_.rank(),
                wrong,
                largest);
  }
}

/// Ranks must agree on the number of iterations: rank 0's wins.
void run_rank(const MoeCase& moe,
              Transport& transport,
              const SharedArray<Sample>& samples,
              const SharedArray<double>& expert_rows,
              const SharedArray<std::size_t>& iterations) {
  RankBench bench(moe, transport);
  bench.verify();
  const std::size_t warmup = bench.num_layers();
  std::vector<double> times;
  for (std::size_t i = 1; i <= warmup; ++i) times.push_back(bench.iterate(i).us);
  if (transport.rank() == 0) {
    const double fitting = moe.seconds * 1e6 / summarize(times).min;
    iterations[0] = std::clamp(
        static_cast<std::size_t>(std::min(fitting, 1e9)), kLeastIterations, kMostIterations);
  }
  spread_from_first(transport, iterations.bytes());
  const std::size_t first = static_cast<std::size_t>(transport.rank()) * kMostIterations;
  for (std::size_t i = 0; i < iterations[0]; ++i)
    samples[first + i] = bench.iterate(warmup + 1 + i);
  const auto drawn = static_cast<double>(1 + warmup + iterations[0]);  // one to verify
  const auto experts = static_cast<std::size_t>(moe.experts);
  for (std::size_t e = 0; e < experts; ++e)
    expert_rows[static_cast<std::size_t>(transport.rank()) * experts + e] =
        static_cast<double>(bench.expert_rows()[e]) / drawn;
  gather_at_first(transport, samples.bytes());
  gather_at_first(transport, expert_rows.bytes());
  spread_from_first(transport, expert_rows.bytes());  // all plan by it
}

}  // namespace

MoeResult measure_moe(const MoeCase& moe, const MachinePeaks& peaks) {
  const auto ranks = static_cast<std::size_t>(moe.ranks);
  const SharedArray<Sample> samples(ranks * kMostIterations);
  const auto experts = static_cast<std::size_t>(moe.experts);
  const SharedArray<double> expert_rows(ranks * experts);
  const SharedArray<std::size_t> iterations(1);
  const int status = run_ranks(moe.launch, [&](Transport& transport) {
    run_rank(moe, transport, samples, expert_rows, iterations);
    return 0;
  });
  if (status != 0) fail<Error>("bench moe: a rank failed; its reason is above");

  MoeResult result;
  result.expert_rows.resize(experts);
  for (std::size_t i = 0; i < ranks * experts; ++i)
    result.expert_rows[i % experts] += expert_rows[i];
  if (!speaks_for_all()) return result;
  const std::size_t n = iterations[0];
  const auto share = static_cast<double>(ranks);
  const MachinePeaks rank_peaks{peaks.bytes_per_s / share, peaks.operations_per_s / share};
  result.times_us.resize(n);
  result.floors_us.resize(n);
  for (std::size_t rank = 0; rank < ranks; ++rank) {
    std::vector<double> own;
    double cpu = 0;
    for (std::size_t i = 0; i < n; ++i) {
      const Sample& s = samples[rank * kMostIterations + i];
      own.push_back(s.us);
      cpu += s.cpu_us / static_cast<double>(n);
      result.times_us[i] = std::max(result.times_us[i], s.us);
      result.floors_us[i] = std::max(result.floors_us[i], s.work.seconds(rank_peaks) * 1e6);
      result.work.bytes += s.work.bytes / static_cast<double>(n);
      result.work.operations += s.work.operations / static_cast<double>(n);
    }
    result.rank_us.push_back(summarize(std::move(own)).p50);
    result.rank_cpu_us.push_back(cpu);
  }
  result.memory_bound = result.work.memory_bound(peaks);
  return result;
}

}  // namespace ferry
