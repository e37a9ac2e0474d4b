// From logits to a token: greedy, or temperature with top-k, top-p and min-p.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "ferry/core/threads.h"
#include "ferry/sampling_options.h"

namespace ferry {

/// Throws ConfigError that names the option, its range and what was found.
void check_sampling(const SamplingOptions& options);

/// A number in [0, 1) that depends on the seed and the counter alone, so that a request's choices
/// are the same on any rank and in any batch.
double uniform_number(std::uint64_t seed, std::uint64_t counter) noexcept;

/// One token to choose. Borrows logits and options for the call.
struct Draw {
  std::span<const float> logits;
  const SamplingOptions* options = nullptr;  ///< REQUIRES: they passed check_sampling
  std::uint64_t index = 0;                   ///< of the token in its request
  std::int32_t token = -1;                   ///< the id that was chosen
};

/// Splits over sequences where there are many, and else over the vocabulary. What is chosen depends
/// on a draw alone: not on the others, the threads or the instruction set. Owns scratch, and
/// borrows the pool. Threads: one at a time.
class Sampler {
 public:
  explicit Sampler(ThreadPool& pool);
  ~Sampler();

  /// Throws ModelError when a logit is NaN or +infinity, or all of a draw are -infinity.
  void sample(std::span<Draw> draws);

 private:
  class Row;

  ThreadPool& pool_;
  std::vector<std::unique_ptr<Row>> rows_;  // one for each thread
};

}  // namespace ferry
