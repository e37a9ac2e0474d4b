// How one token is chosen from logits.
#pragma once

#include <cstdint>

namespace ferry {

struct SamplingOptions {
  double temperature = 0.0;  ///< 0 = greedy: the greatest logit, ties to the lowest id
  int top_k = 0;             ///< only the k most probable; 0 = all
  double top_p = 1.0;        ///< then the fewest whose share of what is left reaches p
  double min_p = 0.0;        ///< then those that are at least so probable beside the most probable
  std::uint64_t seed = 0;
};

}  // namespace ferry
