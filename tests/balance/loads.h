// Loads to plan for, the same on every run and machine.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "ferry/expert_load.h"

namespace ferry::test {

/// Uniform in 0..n-1; std::uniform_int_distribution differs between libraries.
inline int below(std::mt19937_64& random, int n) {
  return static_cast<int>(random() % static_cast<std::uint64_t>(n));
}

/// Expert popularity 1/rank^exponent, shuffled anew in each layer.
inline ExpertLoad zipf_load(int layers, int experts, double exponent, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  ExpertLoad load(layers, experts);
  for (int l = 0; l < layers; ++l) {
    const auto counts = load.layer(l);
    for (int e = 0; e < experts; ++e)
      counts[static_cast<std::size_t>(e)] = std::round(1e6 / std::pow(e + 1, exponent));
    for (int e = experts - 1; e > 0; --e)
      std::swap(counts[static_cast<std::size_t>(e)],
                counts[static_cast<std::size_t>(below(random, e + 1))]);
  }
  return load;
}

/// Any kind of load: flat, skewed, sparse, all on one expert, none at all.
inline ExpertLoad random_load(int layers, int experts, std::mt19937_64& random) {
  ExpertLoad load(layers, experts);
  const int kind = below(random, 6);
  for (double& count : load.counts) {
    const int n = below(random, 1000);
    count = kind == 0   ? 0
            : kind == 1 ? 7
            : kind == 2 ? n
            : kind == 3 ? (n < 900 ? 0 : n)
            : kind == 4 ? std::exp(n / 100.0)
                        : 0;
  }
  if (kind == 5)
    for (int l = 0; l < layers; ++l)
      load.layer(l)[static_cast<std::size_t>(below(random, experts))] = 1000;
  return load;
}

}  // namespace ferry::test
