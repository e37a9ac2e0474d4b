#include "apps/ferry/machine_peaks.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <vector>

#include "ferry/buffer.h"
#include "ferry/core/threads.h"
#include "ferry/kernels/kernels.h"
#include "ferry/model/mixers/mixer.h"

namespace ferry {

namespace {

constexpr std::size_t kMemory = std::size_t{1} << 30;  // far larger than a share of any cache
constexpr int kPasses = 7;  // the best counts: whatever disturbs makes only slower
constexpr std::chrono::milliseconds kPass{20};

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// One stream; the compiler makes vectors of it.
float in_order(const float* x, std::size_t n) {
  std::uint64_t bits = 0;
  for (std::size_t i = 0; i + 2 <= n; i += 2) {
    std::uint64_t two = 0;
    std::memcpy(&two, x + i, sizeof two);
    bits ^= two;
  }
  return static_cast<float>(bits);
}

/// A thread reads its part in one stream, or in four: some processors need these to read as fast as
/// they can, others (AMD Zen 4) read half as fast then.
double measure_read(ThreadPool& pool) {
  const Buffer memory(kMemory);
  const std::size_t each = kMemory / sizeof(float) / static_cast<std::size_t>(pool.size());
  const auto part = [&](int worker) {
    return memory.as<float>() + static_cast<std::size_t>(worker) * each;
  };
  pool.run([&](int worker) { std::fill_n(part(worker), each, 1.0F); });
  std::vector<float> results(static_cast<std::size_t>(pool.size()));
  double best = 0;
  for (int pass = 0; pass < 2 * kPasses; ++pass) {
    const auto start = std::chrono::steady_clock::now();
    pool.run([&](int worker) {
      results[static_cast<std::size_t>(worker)] =
          pass % 2 == 0 ? kernels_of(pool).greatest(part(worker), static_cast<std::int64_t>(each))
                        : in_order(part(worker), each);
    });
    best = std::max(best, static_cast<double>(kMemory) / seconds_since(start));
  }
  return best;
}

double measure_products(ThreadPool& pool, WeightType weights) {
  double best = 0;
  std::int64_t rounds = 1000;
  for (int pass = 0; pass < kPasses;) {
    const auto start = std::chrono::steady_clock::now();
    std::atomic<std::uint64_t> operations{0};
    pool.run([&](int) { operations += kernels_of(pool).multiply_in_registers(weights, rounds); });
    const double seconds = seconds_since(start);
    if (seconds < std::chrono::duration<double>(kPass).count()) {
      rounds *= 2;
      continue;
    }
    best = std::max(best, static_cast<double>(operations.load()) / seconds);
    ++pass;
  }
  return best;
}

}  // namespace

MachinePeaks measure_peaks(int threads, WeightType weights, Numerics numerics) {
  ThreadPool pool(threads, &kernels(numerics));
  return {.bytes_per_s = measure_read(pool), .operations_per_s = measure_products(pool, weights)};
}

double Work::seconds(const MachinePeaks& peaks) const {
  return std::max(bytes / peaks.bytes_per_s, operations / peaks.operations_per_s);
}

bool Work::memory_bound(const MachinePeaks& peaks) const {
  return bytes / peaks.bytes_per_s >= operations / peaks.operations_per_s;
}

/// Scales included. Columns of other lengths differ by a fraction of a percent.
double bytes_per_weight(WeightType type, std::int64_t k) {
  return static_cast<double>(PackedMatrix::packed_panel_bytes(type, k)) /
         static_cast<double>(k * kPanelColumns);
}

double experts_touched(int experts, int topk, double tokens) {
  const double missed = 1.0 - static_cast<double>(topk) / experts;
  return experts * (1.0 - std::pow(missed, tokens));
}

StepWeights step_weights(const Checkpoint& checkpoint, const WeightChoice& choice) {
  return {held_bytes(checkpoint, choice), activation_type(choice.type)};
}

StepWeights step_weights(const ModelConfig& config, WeightType type) {
  const double hidden = config.hidden;
  const MoeConfig& moe = config.moe;
  const double each = bytes_per_weight(type, config.hidden);
  const auto bytes = [](double count) { return static_cast<std::uint64_t>(count); };
  StepWeights weights{.activations = activation_type(type)};
  double dense = hidden * config.vocab * each;
  for (int layer = 0; layer < config.layers; ++layer) {
    const bool sparse = config.sparse(layer);
    const double block = 3 * hidden * (sparse ? moe.shared_inter : config.dense_inter);
    dense += (mixer_of(config, layer).work(config).weights + block) * each;
    if (sparse) dense += hidden * moe.experts * sizeof(float);
    weights.bytes.experts.push_back(sparse ? bytes(3 * hidden * moe.inter * each) : 0);
  }
  weights.bytes.dense = bytes(dense);
  return weights;
}

Work step_work(const ModelConfig& config, const StepWeights& weights, const StepShape& step) {
  const double hidden = config.hidden;
  const MoeConfig& moe = config.moe;
  double active = 0;    // weights that one token meets
  double position = 0;  // multiply-adds of a token for each position that it sees
  double bytes = static_cast<double>(weights.bytes.dense);
  for (int layer = 0; layer < config.layers; ++layer) {
    const MixerWork mixer = mixer_of(config, layer).work(config);
    position += mixer.position;
    active += mixer.weights;
    if (!config.sparse(layer)) {
      active += 3 * hidden * config.dense_inter;
      continue;
    }
    active += hidden * (3.0 * moe.shared_inter + 3.0 * moe.inter * moe.topk + moe.experts);
    bytes += static_cast<double>(weights.bytes.experts[static_cast<std::size_t>(layer)]) *
             experts_touched(moe.experts, moe.topk, step.tokens);
  }
  const double head = hidden * config.vocab;
  const WireType kv_type = step.kv_type.value_or(wire_type(weights.activations));
  const auto kept =
      static_cast<double>(StateLayout(state_specs(config, kv_type)).bytes_per_position());
  return {.bytes = bytes + step.cached * kept,
          .operations = 2 * (step.tokens * active + step.wanted * head + step.attended * position)};
}

Work prompt_work(const ModelConfig& config, const StepWeights& weights, int tokens, int batch) {
  const double n = tokens;
  return step_work(
      config,
      weights,
      {.tokens = n * batch, .wanted = 1.0 * batch, .attended = n * (n + 1) / 2 * batch});
}

Work decode_work(const ModelConfig& config,
                 const StepWeights& weights,
                 int tokens,
                 int batch,
                 std::optional<WireType> kv_type) {
  const double mean_length = (tokens + 1) / 2.0;
  return step_work(config,
                   weights,
                   {.tokens = 1.0 * batch,
                    .wanted = 1.0 * batch,
                    .attended = mean_length * batch,
                    .cached = (mean_length - 1) * batch,
                    .kv_type = kv_type});
}

}  // namespace ferry
