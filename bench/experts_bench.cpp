// The experts of one MoE layer (hidden 2048, inter 1024, 64 experts, top-8, uniform routing, bf16
// weights), ours and oneDNN's where the build found it, in one run: rows lie expert by expert, so
// nothing but the three projections and the activation is timed. x_floor: time over the larger of
// the touched experts' bytes at measured read bandwidth and operations at the measured peak of the
// FMA or tile unit that our kernels use. oneDNN may use another unit (VDPBF16PS), and so be below.
//   FERRY_BENCH_COLD_MB  memory for one side's weights, default 1024; fewer experts when small
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "apps/ferry/machine_peaks.h"
#include "bench/experts_peer.h"
#include "ferry/buffer.h"
#include "ferry/core/threads.h"
#include "ferry/moe/experts.h"

namespace ferry {

namespace {

constexpr int kHidden = 2048;
constexpr int kInter = 1024;
constexpr int kMostExperts = 64;
constexpr int kTopk = 8;
constexpr int kMostTokens = 2048;
constexpr int kDraws = 4;  // of routing, that take turns
constexpr double kExpertWeights = 3.0 * kHidden * kInter;

int num_experts() {
  const char* mb = std::getenv("FERRY_BENCH_COLD_MB");
  const double bytes = (mb != nullptr ? std::atof(mb) : 1024.0) * (1 << 20);
  return std::clamp(static_cast<int>(bytes / (kExpertWeights * 2)), kTopk, kMostExperts);
}

/// Small bf16 numbers of both signs.
Buffer random_bf16(std::size_t count, unsigned seed) {
  Buffer buffer(count * 2);
  std::minstd_rand engine(seed);
  auto* p = buffer.as<std::uint16_t>();
  for (std::size_t i = 0; i < count; ++i)
    p[i] = static_cast<std::uint16_t>((0x3c80U + engine() % 128) | (engine() % 2) << 15);
  return buffer;
}

/// Every expert's matrices as a checkpoint has them; all experts have the same numbers.
struct PlainWeights {
  Buffer gate = random_bf16(std::size_t{kInter} * kHidden, 1);
  Buffer up = random_bf16(std::size_t{kInter} * kHidden, 2);
  Buffer down = random_bf16(std::size_t{kHidden} * kInter, 3);
};

/// Rows of each expert.
using Counts = std::vector<std::int32_t>;

Counts draw(int tokens, unsigned seed) {
  std::mt19937 engine(seed);
  Counts counts(static_cast<std::size_t>(num_experts()));
  std::vector<int> experts(counts.size());
  std::iota(experts.begin(), experts.end(), 0);
  for (int t = 0; t < tokens; ++t) {
    for (int k = 0; k < kTopk; ++k) {
      std::uniform_int_distribution<std::size_t> other(static_cast<std::size_t>(k),
                                                       experts.size() - 1);
      std::swap(experts[static_cast<std::size_t>(k)], experts[other(engine)]);
      ++counts[static_cast<std::size_t>(experts[static_cast<std::size_t>(k)])];
    }
  }
  return counts;
}

Work work_of(const Counts& counts) {
  const auto touched = std::count_if(counts.begin(), counts.end(), [](int n) { return n > 0; });
  const double rows = std::accumulate(counts.begin(), counts.end(), 0.0);
  return {.bytes = static_cast<double>(touched) * kExpertWeights * 2,
          .operations = 2 * rows * kExpertWeights};
}

/// Rows in and out, and our experts.
class Layer {
 public:
  Layer()
      : in_(random_bf16(std::size_t{kMostTokens} * kTopk * kHidden, 4)),
        out_(std::size_t{kMostTokens} * kTopk * kHidden * sizeof(float)) {
    const PackedMatrix gate_up{WeightType::bf16, kHidden, 2 * kInter, nullptr};
    const PackedMatrix down{WeightType::bf16, kInter, kHidden, nullptr};
    const std::size_t gate_up_bytes =
        gate_up.panel_bytes() * static_cast<std::size_t>(gate_up.gated_panels());
    const std::size_t down_bytes = down.panel_bytes() * static_cast<std::size_t>(down.panels());
    weights_ = Buffer((gate_up_bytes + down_bytes) * static_cast<std::size_t>(num_experts()));
    std::byte* next = weights_.data();
    for (int e = 0; e < num_experts(); ++e) {
      pack(checkpoint_.gate, kHidden, kInter, next, 2);
      pack(checkpoint_.up, kHidden, kInter, next + gate_up.panel_bytes(), 2);
      pack(checkpoint_.down, kInter, kHidden, next + gate_up_bytes, 1);
      experts_.push_back({.gate_up = gate_up, .down = down});
      experts_.back().gate_up.data = next;
      experts_.back().down.data = next + gate_up_bytes;
      next += gate_up_bytes + down_bytes;
    }
  }

  const PlainWeights& checkpoint() const { return checkpoint_; }

  const std::byte* in() const { return in_.data(); }

  float* out() const { return out_.as<float>(); }

  void run(Experts& experts, const Counts& counts) const {
    std::vector<std::int64_t> offsets(counts.size());
    std::exclusive_scan(counts.begin(), counts.end(), offsets.begin(), std::int64_t{0});
    experts.run({.format = DispatchFormat::ragged,
                 .counts = counts,
                 .offsets = offsets,
                 .in = {in_.data(), kHidden * 2},
                 .in_type = WireType::bf16,
                 .out = {out_.data(), kHidden * 4},
                 .out_type = DType::f32,
                 .hidden = kHidden},
                experts_);
  }

 private:
  static void pack(
      const Buffer& source, std::int64_t k, std::int64_t n, std::byte* out, std::int64_t step) {
    pack_matrix({.type = WeightType::bf16,
                 .source = source.data(),
                 .source_type = DType::bf16,
                 .k = k,
                 .n = n,
                 .out = out,
                 .panel_step = step});
  }

  PlainWeights checkpoint_;
  Buffer in_;   // bf16 [rows, hidden]
  Buffer out_;  // f32 [rows, hidden]
  Buffer weights_;
  std::vector<GatedFfnWeights> experts_;
};

const Layer& layer() {
  static const Layer all;
  return all;
}

const MachinePeaks& peaks(int threads) {
  static std::map<int, MachinePeaks> known;
  const auto found = known.find(threads);
  if (found != known.end()) return found->second;
  return known[threads] = measure_peaks(threads, WeightType::bf16);
}

/// Times run(counts) over draws of routing for state.range(0) tokens and state.range(1) threads.
template <class Run>
void measure(benchmark::State& state, Run run) {
  const int threads = static_cast<int>(state.range(1));
  std::vector<Counts> draws;
  double floor = 0;
  for (unsigned i = 0; i < kDraws; ++i) {
    draws.push_back(draw(static_cast<int>(state.range(0)), i));
    floor += work_of(draws.back()).seconds(peaks(threads)) / kDraws;
    run(draws.back());
  }
  std::size_t done = 0;
  const auto start = std::chrono::steady_clock::now();
  for (auto _ : state) run(draws[done++ % kDraws]);
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  state.counters["floor_ms"] = floor * 1e3;
  state.counters["x_floor"] = took.count() / static_cast<double>(done) / floor;
}

void ours(benchmark::State& state) {
  ThreadPool pool(static_cast<int>(state.range(1)));
  Experts experts(
      {.hidden = kHidden, .inter = kInter, .dtype = DType::bf16, .max_rows = kMostTokens * kTopk},
      pool);
  measure(state, [&](const Counts& counts) { layer().run(experts, counts); });
}

void peer(benchmark::State& state, ExpertsPeer& experts) {
  ThreadPool pool(static_cast<int>(state.range(1)));
  // What is compared is the same computation: results must be alike.
  Experts own(
      {.hidden = kHidden, .inter = kInter, .dtype = DType::bf16, .max_rows = kMostTokens * kTopk},
      pool);
  const Counts counts = draw(4, 7);
  const auto numbers = static_cast<std::size_t>(4 * kTopk * kHidden);
  layer().run(own, counts);
  const std::vector<float> want(layer().out(), layer().out() + numbers);
  experts.run(pool, counts, layer().in(), layer().out());
  const float most = std::abs(*std::max_element(
      want.begin(), want.end(), [](float a, float b) { return std::abs(a) < std::abs(b); }));
  for (std::size_t i = 0; i < numbers; ++i) {
    if (!(std::abs(layer().out()[i] - want[i]) <= 0.02F * most))
      return state.SkipWithError("results differ from ours");
  }
  measure(state, [&](const Counts& c) { experts.run(pool, c, layer().in(), layer().out()); });
}

void register_all(ExpertsPeer* experts_peer) {
  for (const int threads : {1, 2}) {
    for (const int tokens : {1, 16, 128, 512, kMostTokens}) {
      const auto add = [&](const std::string& name, auto function) {
        benchmark::RegisterBenchmark(("Experts/" + name + "/tokens,threads").c_str(), function)
            ->Args({tokens, threads})
            ->UseRealTime()
            ->Unit(benchmark::kMillisecond);
      };
      add("ferry", ours);
      if (experts_peer != nullptr)
        add(experts_peer->name(), [experts_peer](benchmark::State& s) { peer(s, *experts_peer); });
    }
  }
}

}  // namespace

}  // namespace ferry

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  const auto& source = ferry::layer().checkpoint();
  const std::unique_ptr<ferry::ExpertsPeer> peer =
      ferry::make_experts_peer({.hidden = ferry::kHidden,
                                .inter = ferry::kInter,
                                .experts = ferry::num_experts(),
                                .gate = source.gate.data(),
                                .up = source.up.data(),
                                .down = source.down.data()});
  ferry::register_all(peer.get());
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
