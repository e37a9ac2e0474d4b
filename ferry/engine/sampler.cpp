#include "ferry/engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "ferry/core/error.h"

namespace ferry {

namespace {

/// SplitMix64's finaliser: every input bit reaches every output bit.
std::uint64_t mix(std::uint64_t x) noexcept {
  x += 0x9e3779b97f4a7c15ULL;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

std::int32_t greatest(std::span<const float> logits) {
  std::int32_t best = -1;
  float best_logit = -std::numeric_limits<float>::infinity();
  for (std::size_t i = 0; i < logits.size(); ++i) {
    const float logit = logits[i];
    if (std::isnan(logit) || logit == std::numeric_limits<float>::infinity()) {
      fail<ModelError>(
          "logit of token id {} is {}, so no token can be chosen; the weights are damaged or "
          "overflow: check the checkpoint, or try --weights f32",
          i,
          logit);
    }
    if (logit > best_logit) {
      best = static_cast<std::int32_t>(i);
      best_logit = logit;
    }
  }
  if (best < 0) {
    fail<ModelError>(
        "none of the {} logits is finite, so no token can be chosen; check the checkpoint",
        logits.size());
  }
  return best;
}

}  // namespace

void check_sampling(const SamplingOptions& options) {
  if (!std::isfinite(options.temperature) || options.temperature < 0) {
    fail<ConfigError>("temperature {} is out of range: it must be 0 (greedy) or a positive number",
                      options.temperature);
  }
  if (options.top_k < 0)
    fail<ConfigError>("top-k {} is out of range: it must be 0 (all) or more", options.top_k);
  if (!(options.top_p > 0 && options.top_p <= 1))
    fail<ConfigError>("top-p {} is out of range: it must be above 0 and at most 1", options.top_p);
}

double uniform_number(std::uint64_t seed, std::uint64_t counter) noexcept {
  return static_cast<double>(mix(mix(seed) + counter) >> 11) * 0x1.0p-53;
}

bool Sampler::less_probable(const Candidate& a, const Candidate& b) {
  return a.weight != b.weight ? a.weight < b.weight : a.id > b.id;
}

void Sampler::keep_top_k(int k) {
  const auto more_probable = [](const Candidate& a, const Candidate& b) {
    return less_probable(b, a);
  };
  std::nth_element(candidates_.begin(), candidates_.begin() + k, candidates_.end(), more_probable);
  candidates_.resize(static_cast<std::size_t>(k));
  std::sort(candidates_.begin(), candidates_.end(), more_probable);
}

void Sampler::keep_top_p(double p) {
  double total = 0;
  for (const Candidate& c : candidates_) total += c.weight;
  // A heap, since usually a few candidates out of a large vocabulary hold the share. It grows
  // smaller at the front, and what it gave up stands behind its end.
  auto heap_end = candidates_.end();
  std::make_heap(candidates_.begin(), heap_end, less_probable);
  double share = 0;
  while (heap_end != candidates_.begin() && (share == 0 || share < p * total)) {
    std::pop_heap(candidates_.begin(), heap_end, less_probable);
    --heap_end;
    share += heap_end->weight;
  }
  candidates_.erase(candidates_.begin(), heap_end);
}

std::int32_t Sampler::sample(std::span<const float> logits,
                             const SamplingOptions& options,
                             std::uint64_t index) {
  const std::int32_t best = greatest(logits);
  if (options.temperature == 0) return best;

  candidates_.clear();
  const double max_logit = logits[static_cast<std::size_t>(best)];
  for (std::size_t i = 0; i < logits.size(); ++i) {
    candidates_.push_back(
        {std::exp((static_cast<double>(logits[i]) - max_logit) / options.temperature),
         static_cast<std::int32_t>(i)});
  }
  if (options.top_k > 0 && static_cast<std::size_t>(options.top_k) < candidates_.size())
    keep_top_k(options.top_k);
  if (options.top_p < 1) keep_top_p(options.top_p);

  double total = 0;
  for (const Candidate& c : candidates_) total += c.weight;
  double left = uniform_number(options.seed, index) * total;
  std::int32_t chosen = best;
  for (const Candidate& c : candidates_) {
    if (c.weight == 0) continue;
    chosen = c.id;
    left -= c.weight;
    if (left < 0) break;
  }
  return chosen;
}

}  // namespace ferry
