#include "ferry/logprobs.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace ferry {

Logprobs logprobs_of(std::span<const float> logits, std::int32_t chosen, int top) {
  const double greatest = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - greatest);
  const double log_sum = greatest + std::log(sum);
  const auto logprob = [&](std::int32_t id) {
    return static_cast<float>(static_cast<double>(logits[static_cast<std::size_t>(id)]) - log_sum);
  };

  Logprobs result{.chosen = logprob(chosen), .top = {}};
  top = std::min(top, static_cast<int>(logits.size()));
  if (top == 0) return result;
  std::vector<std::int32_t> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  std::partial_sort(ids.begin(), ids.begin() + top, ids.end(), [&](std::int32_t a, std::int32_t b) {
    const float x = logits[static_cast<std::size_t>(a)];
    const float y = logits[static_cast<std::size_t>(b)];
    return x != y ? x > y : a < b;
  });
  for (int i = 0; i < top; ++i) {
    const std::int32_t id = ids[static_cast<std::size_t>(i)];
    result.top.push_back({.id = id, .logprob = logprob(id)});
  }
  return result;
}

}  // namespace ferry
