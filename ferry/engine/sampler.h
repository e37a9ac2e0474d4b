// From logits to a token: greedy, or temperature with top-k and top-p.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "ferry/sampling_options.h"

namespace ferry {

/// Throws ConfigError that names the option, its range and what was found.
void check_sampling(const SamplingOptions& options);

/// A number in [0, 1) that depends on the seed and the counter alone, so that a request's choices
/// are the same on any rank and in any batch.
double uniform_number(std::uint64_t seed, std::uint64_t counter) noexcept;

/// Owns scratch for one vocabulary; otherwise a pure function. Threads: one at a time.
class Sampler {
 public:
  /// The id chosen from `logits` as token number `index` of its request. Throws ModelError when a
  /// logit is NaN or +infinity, or all are -infinity. REQUIRES: options passed check_sampling.
  std::int32_t sample(std::span<const float> logits,
                      const SamplingOptions& options,
                      std::uint64_t index);

 private:
  struct Candidate {
    double weight;
    std::int32_t id;
  };

  static bool less_probable(const Candidate& a, const Candidate& b);
  void keep_top_k(int k);
  void keep_top_p(double p);

  std::vector<Candidate> candidates_;
};

}  // namespace ferry
