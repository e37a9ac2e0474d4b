#include "apps/ferry/gpu_bench.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <random>
#include <set>
#include <span>

#include "ferry/core/error.h"
#include "ferry/core/shared_array.h"
#include "ferry/core/threads.h"
#include "ferry/exchange/gpu/gpu_exchange.h"
#include "ferry/kernels/gpu/elements.h"
#include "ferry/launch.h"
#include "ferry/moe/gpu_experts.h"

namespace ferry {

namespace {

using Json = nlohmann::ordered_json;

constexpr std::uint16_t kOneBf16 = 0x3f80;
constexpr int kWarmup = 5;
constexpr int kLeastIterations = 5;
constexpr int kMostIterations = 500;

double median(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

/// One rank's side.
class GpuRank {
 public:
  GpuRank(const A2aCase& a2a, Transport& transport, GpuQueue& queue)
      : a2a_(a2a),
        transport_(transport),
        queue_(queue),
        exchange_(a2a.dispatcher(), transport, queue),
        layout_(exchange_.options(), transport.size()) {
    const auto tokens = static_cast<std::size_t>(a2a.tokens);
    const auto hidden = static_cast<std::size_t>(a2a.hidden);
    const std::size_t entries = tokens * static_cast<std::size_t>(a2a.topk);
    std::vector<SlotId> slots(entries);
    draw_routing(a2a.routing,
                 a2a.experts,
                 a2a.topk,
                 static_cast<std::uint64_t>(transport.rank()) + 1,
                 slots);
    num_tokens_ = upload<int>(queue, std::array{a2a.tokens});
    slots_ = upload<SlotId>(queue, slots);
    weights_ = upload<float>(queue, std::vector(entries, 1.0F));
    sums_ = count_sums(slots);
    rows_ = upload<std::uint16_t>(queue, std::vector(tokens * hidden, kOneBf16));
    out_ = queue.allocate(tokens * hidden * sizeof(std::uint16_t));
    if (a2a.inter > 0) make_experts();
  }

  GpuTimes run() {
    verify();
    for (int i = 0; i < kWarmup; ++i) exchange();
    queue_.synchronise();
    GpuTimes times{.iterations = agreed_iterations()};
    measure_phases(times);
    if (experts_of_device_) measure_experts(times);
    times.floor_dispatch = measure_copy(times.iterations, dispatch_bytes() / 2);
    times.floor_combine = measure_copy(times.iterations, combine_bytes() / 2);
    times.exchange = measure_exchanges(times.iterations, [&] { exchange(); });
    const std::unique_ptr<GpuGraph> graph = queue_.capture([&] { exchange(); });
    times.graph = measure_exchanges(times.iterations, [&] { graph->launch(); });
    exchange_.leave();
    return times;
  }

 private:
  std::size_t bytes_of_weight() const { return a2a_.weights == WeightType::fp8 ? 1 : 2; }

  /// Of one expert.
  std::size_t weights_bytes() const {
    return 3 * static_cast<std::size_t>(a2a_.hidden) * static_cast<std::size_t>(a2a_.inter) *
           bytes_of_weight();
  }

  /// Random weights, of a size that keeps numbers as they are; the same for every expert.
  void make_experts() {
    const auto hidden = static_cast<std::size_t>(a2a_.hidden);
    const auto inter = static_cast<std::size_t>(a2a_.inter);
    const auto slots = static_cast<std::size_t>(layout_.slots);
    const bool fp8 = a2a_.weights == WeightType::fp8;
    const auto weights = [&](std::size_t of_expert, std::size_t depth) {
      std::mt19937 engine(1);
      std::vector<std::byte> all(slots * of_expert * bytes_of_weight());
      const float greatest = fp8 ? 448.0F : 1.0F / std::sqrt(static_cast<float>(depth));
      for (std::size_t i = 0; i < of_expert; ++i) {
        const float x = (static_cast<float>(engine()) / 2147483648.0F - 1.0F) * greatest;
        if (fp8) {
          all[i] = static_cast<std::byte>(gpu::f32_to_fp8(x));
        } else {
          const std::uint16_t bits = gpu::f32_to_bf16(x);
          std::memcpy(&all[2 * i], &bits, sizeof bits);
        }
      }
      for (std::size_t i = of_expert * bytes_of_weight(); i < all.size(); ++i)
        all[i] = all[i - of_expert * bytes_of_weight()];
      return all;
    };
    const auto scales = [&](std::int64_t out, std::int64_t in, int depth) {
      const auto n = fp8 ? slots * static_cast<std::size_t>(out * in) : 0;
      return std::vector(n, 1.0F / 448.0F / std::sqrt(static_cast<float>(depth)));
    };
    const std::int64_t hidden_blocks = ceil_div(a2a_.hidden, kFp8Block);
    const std::int64_t inter_blocks = ceil_div(a2a_.inter, kFp8Block);
    const auto w13 = weights(2 * inter * hidden, hidden);
    const auto w2 = weights(hidden * inter, inter);
    const auto w13_scales = scales(2 * inter_blocks, hidden_blocks, a2a_.hidden);
    const auto w2_scales = scales(hidden_blocks, inter_blocks, a2a_.inter);
    experts_of_device_ =
        std::make_unique<GpuExperts>(GpuExpertsOptions{.slots = layout_.slots,
                                                       .hidden = a2a_.hidden,
                                                       .inter = a2a_.inter,
                                                       .max_rows = exchange_.expert_rows()},
                                     GpuExpertWeights{.type = a2a_.weights,
                                                      .w13 = w13,
                                                      .w2 = w2,
                                                      .w13_scales = w13_scales,
                                                      .w2_scales = w2_scales},
                                     queue_);
  }

  /// Operations a second of the tensor cores that this rank has a share of.
  double measure_peak(int iterations) {
    const int blocks = queue_.resident_blocks(gpu::ProductPeak::kThreads);
    const int rounds = std::max(1, static_cast<int>(a2a_.seconds * 1024));
    const auto out = queue_.allocate(static_cast<std::size_t>(blocks) * gpu::ProductPeak::kThreads *
                                     sizeof(float));
    const double us = median_of(iterations, [&] {
      queue_.launch(gpu::ProductPeak{.out = out->as<float>(), .rounds = rounds},
                    {.blocks = blocks, .threads = gpu::ProductPeak::kThreads});
    });
    return gpu::ProductPeak::operations(blocks, rounds) / us * 1e6;
  }

  void measure_experts(GpuTimes& times) {
    meet();
    dispatch();
    times.experts = median_of(times.iterations, [&] { experts_of_device_->run(experts_); });
    combine();
    exchange_.synchronise();
    std::size_t busy = 0;  // experts that have rows
    const auto counts = download(queue_, experts_.counts.data(), experts_.counts.size());
    for (const std::int32_t count : counts) {
      times.rows += count;
      busy += count > 0 ? 1 : 0;
    }
    times.floor_weights = measure_copy(times.iterations, busy * weights_bytes() / 2);
    meet();
    times.floor_operations =
        operations_of_experts(a2a_, times) / measure_peak(times.iterations) * 1e6;
  }

  std::size_t entries() const {
    return static_cast<std::size_t>(a2a_.tokens) * static_cast<std::size_t>(a2a_.topk);
  }

  std::ptrdiff_t stride() const {
    return static_cast<std::ptrdiff_t>(sizeof(std::uint16_t)) * a2a_.hidden;
  }

  /// Read and written: every record's row; or its address, written.
  std::size_t dispatch_bytes() const {
    const std::int64_t read = layout_.pointers ? 0 : layout_.dispatch_row_bytes;
    return entries() * static_cast<std::size_t>(read + layout_.input_row_bytes);
  }

  /// Read: every result. Written: every token's sum. Where ranks sum, results are read as experts
  /// wrote them, and the ranks' sums are written and read.
  std::size_t combine_bytes() const {
    const auto travels = static_cast<std::size_t>(layout_.combine_row_bytes);
    const std::size_t results =
        layout_.sums
            ? entries() * static_cast<std::size_t>(layout_.output_row_bytes) + 2 * sums_ * travels
            : entries() * travels;
    return results + static_cast<std::size_t>(a2a_.tokens) * static_cast<std::size_t>(stride());
  }

  /// Pairs of a token and a rank that has experts of it.
  std::size_t count_sums(std::span<const SlotId> slots) const {
    std::size_t sums = 0;
    for (std::size_t first = 0; first < slots.size();
         first += static_cast<std::size_t>(a2a_.topk)) {
      std::set<Rank> ranks;
      for (const SlotId slot : slots.subspan(first, static_cast<std::size_t>(a2a_.topk)))
        ranks.insert(slot / layout_.slots);
      sums += ranks.size();
    }
    return sums;
  }

  void meet() {
    if (transport_.barrier(deadline_in(std::chrono::seconds(60))) == WaitResult::timed_out)
      fail<Error>("bench: a rank did not reach the barrier in 60 s");
  }

  void dispatch() {
    exchange_.dispatch_send({.rows = {rows_->data(), stride()},
                             .type = DType::bf16,
                             .count = a2a_.tokens,
                             .tokens = num_tokens_->as<int>(),
                             .slots = slots_->as<SlotId>(),
                             .weights = weights_->as<float>()});
    experts_ = exchange_.dispatch_recv();
  }

  void combine() {
    exchange_.combine_send();
    exchange_.combine_recv(
        {.weights = weights_->as<float>(), .rows = {out_->data(), stride()}, .type = DType::bf16});
  }

  void exchange() {
    dispatch();
    combine();
  }

  /// Experts answer ones: every element of the sums is then topk.
  void verify() {
    meet();
    dispatch();
    exchange_.synchronise();
    answer_ones();
    combine();
    exchange_.synchronise();
    const auto sums =
        download(queue_,
                 out_->as<const std::uint16_t>(),
                 static_cast<std::size_t>(a2a_.tokens) * static_cast<std::size_t>(a2a_.hidden));
    for (const std::uint16_t bits : sums) {
      const auto sum = std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
      if (std::abs(sum - static_cast<float>(a2a_.topk)) > 0.01F * static_cast<float>(a2a_.topk))
        fail<Error>("bench: a sum of {} ones is {}", a2a_.topk, sum);
    }
    meet();
  }

  /// The rows that came, which are ones, where they have the results' type; else written here.
  void answer_ones() {
    const std::size_t bytes = static_cast<std::size_t>(layout_.expert_rows) *
                              static_cast<std::size_t>(layout_.output_row_bytes);
    if (!layout_.pointers && element_type(layout_.expert_type) == layout_.output_type) {
      queue_.copy(experts_.out.base, experts_.in.base, bytes);
    } else if (layout_.output_type == DType::f32) {
      fill(std::vector<float>(bytes / sizeof(float), 1.0F));
    } else {
      fill(std::vector<std::uint16_t>(bytes / sizeof(std::uint16_t), kOneBf16));
    }
    queue_.synchronise();
  }

  template <class T>
  void fill(const std::vector<T>& values) {
    queue_.copy(experts_.out.base, values.data(), values.size() * sizeof(T));
    queue_.synchronise();
  }

  /// As many as fit into the time by this rank's clock; rank 0's number is all ranks'.
  int agreed_iterations() {
    meet();
    const Stopwatch watch;
    exchange();
    exchange_.synchronise();
    int iterations = std::clamp(static_cast<int>(a2a_.seconds * 1e6 / 4 / watch.microseconds()),
                                kLeastIterations,
                                kMostIterations);
    spread_from_first(transport_, std::as_writable_bytes(std::span(&iterations, std::size_t{1})));
    return iterations;
  }

  void measure_phases(GpuTimes& times) {
    meet();
    for (int i = 0; i < times.iterations; ++i) {
      queue_.mark();
      dispatch();
      queue_.mark();
      combine();
      queue_.mark();
    }
    exchange_.synchronise();
    std::vector<double> dispatches;
    std::vector<double> combines;
    for (std::size_t i = 0; i < static_cast<std::size_t>(times.iterations); ++i) {
      dispatches.push_back(queue_.microseconds(3 * i, 3 * i + 1));
      combines.push_back(queue_.microseconds(3 * i + 1, 3 * i + 2));
    }
    queue_.forget_marks();
    times.dispatch = median(dispatches);
    times.combine = median(combines);
  }

  /// Back to back, all ranks at a time: of one.
  double measure_exchanges(int iterations, FunctionRef<void()> one) {
    meet();
    const std::size_t begin = queue_.mark();
    for (int i = 0; i < iterations; ++i) one();
    const std::size_t end = queue_.mark();
    exchange_.synchronise();
    const double each = queue_.microseconds(begin, end) / iterations;
    queue_.forget_marks();
    meet();
    return each;
  }

  /// All ranks at a time.
  double measure_copy(int iterations, std::size_t bytes) {
    if (from_ == nullptr || from_->size() < bytes) {
      from_ = queue_.allocate(bytes);
      to_ = queue_.allocate(bytes);
    }
    meet();
    return median_of(iterations, [&] { queue_.copy(to_->data(), from_->data(), bytes); });
  }

  /// Microseconds of what `body` puts on the queue.
  template <class Body>
  double median_of(int iterations, Body body) {
    std::vector<double> all;
    queue_.mark();
    for (int i = 0; i < iterations; ++i) {
      body();
      queue_.mark();
    }
    queue_.synchronise();
    for (std::size_t i = 0; i < static_cast<std::size_t>(iterations); ++i)
      all.push_back(queue_.microseconds(i, i + 1));
    queue_.forget_marks();
    return median(all);
  }

  const A2aCase& a2a_;
  Transport& transport_;
  GpuQueue& queue_;
  GpuExchange exchange_;
  const gpu::GpuLayout layout_;
  std::size_t sums_ = 0;
  ExpertRows experts_;
  std::unique_ptr<GpuExperts> experts_of_device_;
  std::unique_ptr<GpuMemory> num_tokens_, slots_, weights_, rows_, out_, from_, to_;
};

}  // namespace

GpuTimes measure_gpu_exchange(const A2aCase& a2a, const MakeGpuQueue& make_queue) {
  LaunchOptions launch = a2a.launch;
  launch.transport = a2a.transport;
  launch.ranks = a2a.ranks;
  SharedArray<GpuTimes> all(static_cast<std::size_t>(a2a.ranks));
  const int status = run_ranks(launch, [&](Transport& transport) {
    const FlushDenormals flush;
    const std::unique_ptr<GpuQueue> queue = make_queue(transport);
    all[static_cast<std::size_t>(transport.rank())] = GpuRank(a2a, transport, *queue).run();
    gather_at_first(transport, all.bytes());
    return 0;
  });
  if (status != 0) fail<Error>("bench a2a: a rank failed; its reason is above");
  GpuTimes slowest;
  for (std::size_t rank = 0; rank < static_cast<std::size_t>(a2a.ranks); ++rank) {
    const GpuTimes& own = all[rank];
    slowest.iterations = own.iterations;
    if (own.experts > slowest.experts) slowest.rows = own.rows;  // whose floors stand below
    for (const auto field : {&GpuTimes::dispatch,
                             &GpuTimes::combine,
                             &GpuTimes::experts,
                             &GpuTimes::floor_weights,
                             &GpuTimes::floor_operations,
                             &GpuTimes::floor_dispatch,
                             &GpuTimes::floor_combine,
                             &GpuTimes::exchange,
                             &GpuTimes::graph})
      slowest.*field = std::max(slowest.*field, own.*field);
  }
  return slowest;
}

double operations_of_experts(const A2aCase& a2a, const GpuTimes& t) {
  return 6.0 * a2a.hidden * a2a.inter * static_cast<double>(t.rows);
}

double tflops(const A2aCase& a2a, const GpuTimes& t) {
  return t.experts <= 0 ? 0 : operations_of_experts(a2a, t) / t.experts / 1e6;
}

std::string gpu_heading(const A2aCase& first, const std::string& device) {
  return fmt::format(
      "H {}, {} experts, top-{}, {}/{}, {} {}; us, median on the slowest rank; floor: "
      "the device's copy of as many bytes; graph: the exchange, captured and launched again\n"
      "ep  tokens  dispatch   floor      x   combine   floor      x  exchange     graph{}  "
      "backend\n",
      first.hidden,
      first.experts,
      first.topk,
      wire_type_name(first.dispatch_wire),
      wire_type_name(first.combine_wire),
      first.transport == "inproc" ? "ranks on one" : "each rank on its own",
      device,
      first.inter > 0 ? fmt::format("   experts ({})  floor: weights  operations      x  TFLOP/s",
                                    weight_type_name(first.weights))
                      : "");
}

std::string gpu_line(const A2aCase& a2a, const GpuTimes& t) {
  std::string experts;
  if (a2a.inter > 0) {
    experts = fmt::format("  {:15.1f}  {:14.1f}  {:10.1f}{:7.2f}  {:7.1f}",
                          t.experts,
                          t.floor_weights,
                          t.floor_operations,
                          t.experts / std::max(t.floor_weights, t.floor_operations),
                          tflops(a2a, t));
  }
  return fmt::format(
      "{:2}  {:6}  {:8.1f}{:8.1f}{:7.2f}  {:8.1f}{:8.1f}{:7.2f}  {:8.1f}  {:8.1f}{}  {}\n",
      a2a.ranks,
      a2a.tokens,
      t.dispatch,
      t.floor_dispatch,
      t.dispatch / t.floor_dispatch,
      t.combine,
      t.floor_combine,
      t.combine / t.floor_combine,
      t.exchange,
      t.graph,
      experts,
      backend_label(a2a));
}

std::string gpu_json(const std::vector<std::pair<A2aCase, GpuTimes>>& all,
                     const std::string& device) {
  Json rows = Json::array();
  for (const auto& [a2a, t] : all) {
    rows.push_back({{"device", device},
                    {"backend", a2a.backend},
                    {"mode", a2a.mode},
                    {"ranks", a2a.ranks},
                    {"transport", a2a.transport},
                    {"tokens", a2a.tokens},
                    {"hidden", a2a.hidden},
                    {"experts", a2a.experts},
                    {"topk", a2a.topk},
                    {"dispatch_wire", wire_type_name(a2a.dispatch_wire)},
                    {"combine_wire", wire_type_name(a2a.combine_wire)},
                    {"iterations", t.iterations},
                    {"dispatch_us", t.dispatch},
                    {"dispatch_floor_us", t.floor_dispatch},
                    {"combine_us", t.combine},
                    {"combine_floor_us", t.floor_combine},
                    {"exchange_us", t.exchange},
                    {"graph_us", t.graph},
                    {"inter", a2a.inter},
                    {"expert_rows", t.rows},
                    {"experts_us", t.experts},
                    {"weights", weight_type_name(a2a.weights)},
                    {"experts_weights_floor_us", t.floor_weights},
                    {"experts_operations_floor_us", t.floor_operations},
                    {"experts_tflops", tflops(a2a, t)}});
  }
  return rows.dump(2) + "\n";
}

}  // namespace ferry
