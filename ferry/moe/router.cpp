#include "ferry/moe/router.h"

#include <cmath>
#include <limits>

#include "ferry/core/error.h"
#include "ferry/kernels/kernels.h"

namespace ferry {

namespace {

/// The best expert not yet taken: greatest score, lowest id among equals. Scores that are NaN lose
/// to every number.
ExpertId best_untaken(std::span<const float> scores, std::span<const ExpertId> taken) {
  ExpertId best = -1;
  for (std::size_t e = 0; e < scores.size(); ++e) {
    bool is_taken = false;
    for (const ExpertId t : taken) is_taken |= static_cast<std::size_t>(t) == e;
    if (is_taken) continue;
    if (best < 0 || scores[e] > scores[static_cast<std::size_t>(best)] ||
        (std::isnan(scores[static_cast<std::size_t>(best)]) && !std::isnan(scores[e]))) {
      best = static_cast<ExpertId>(e);
    }
  }
  return best;
}

}  // namespace

void route(const RouterOptions& options,
           std::span<float> logits,
           std::span<ExpertId> experts,
           std::span<float> weights) {
  const auto num_experts = static_cast<std::size_t>(options.experts);
  const auto topk = static_cast<std::size_t>(options.topk);
  FERRY_CHECK(topk >= 1 && topk <= num_experts, "top-{} of {} experts", topk, num_experts);
  const std::size_t tokens = logits.size() / num_experts;
  FERRY_CHECK(experts.size() == tokens * topk && weights.size() == experts.size(),
              "{} ids and {} weights for {} tokens", experts.size(), weights.size(), tokens);

  for (std::size_t t = 0; t < tokens; ++t) {
    const std::span<float> scores = logits.subspan(t * num_experts, num_experts);
    kernels().softmax(scores.data(), options.experts);
    const std::span<ExpertId> ids = experts.subspan(t * topk, topk);
    float sum = 0;
    for (std::size_t k = 0; k < topk; ++k) {
      ids[k] = best_untaken(scores, ids.first(k));
      weights[t * topk + k] = scores[static_cast<std::size_t>(ids[k])];
      sum += weights[t * topk + k];
    }
    if (options.renormalize) {
      for (std::size_t k = 0; k < topk; ++k) weights[t * topk + k] /= sum;
    }
  }
}

}  // namespace ferry
