// One token's choice from a vocabulary of 150k on one thread. Floor: reading the logits once.
#include <benchmark/benchmark.h>

#include <cmath>
#include <random>
#include <vector>

#include "ferry/core/threads.h"
#include "ferry/engine/sampler.h"
#include "ferry/kernels/kernels.h"
#include "ferry/logprobs.h"

namespace ferry {
namespace {

constexpr std::size_t kVocab = 150000;

/// Normal, as random weights give them; or falling off as a language's words do, which is peaked.
std::vector<float> logits(bool peaked) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> out(kVocab);
  for (std::size_t i = 0; i < kVocab; ++i) {
    out[i] = normal(random);
    if (peaked) out[i] = 16 - 2.2F * std::log(static_cast<float>(random() % kVocab + 1)) + out[i];
  }
  return out;
}

void choose(benchmark::State& state, const SamplingOptions& options, bool peaked) {
  ThreadPool pool(1);
  Sampler sampler(pool);
  const FlushDenormals flush;
  const std::vector<float> row = logits(peaked);
  std::vector<Draw> draw{{.logits = row, .options = &options}};
  for (auto _ : state) {
    ++draw[0].index;
    sampler.sample(draw);
    benchmark::DoNotOptimize(draw[0].token);
  }
}

void log_probabilities(benchmark::State& state) {
  const std::vector<float> row = logits(true);
  for (auto _ : state)
    benchmark::DoNotOptimize(logprobs_of(row, 5, static_cast<int>(state.range(0))));
}

void floor(benchmark::State& state) {
  const std::vector<float> row = logits(false);
  for (auto _ : state) benchmark::DoNotOptimize(kernels().greatest(row.data(), std::ssize(row)));
}

BENCHMARK(floor);
BENCHMARK_CAPTURE(choose, greedy, SamplingOptions{}, false);
BENCHMARK_CAPTURE(choose, temperature, SamplingOptions{.temperature = 1}, false);
BENCHMARK_CAPTURE(choose, top_p_flat, SamplingOptions{.temperature = 1, .top_p = 0.95}, false);
BENCHMARK_CAPTURE(choose, top_p_peaked, SamplingOptions{.temperature = 1, .top_p = 0.95}, true);
BENCHMARK_CAPTURE(choose, top_k_50, SamplingOptions{.temperature = 1, .top_k = 50}, true);
BENCHMARK_CAPTURE(choose, min_p, SamplingOptions{.temperature = 1, .min_p = 0.05}, true);
BENCHMARK_CAPTURE(choose,
                  top_k_top_p,
                  SamplingOptions{.temperature = 0.7, .top_k = 20, .top_p = 0.8},
                  true);
BENCHMARK(log_probabilities)->Arg(0)->Arg(20);

}  // namespace
}  // namespace ferry

BENCHMARK_MAIN();
