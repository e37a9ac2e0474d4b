#include "ferry/moe/router.h"

#include <cmath>
#include <limits>

#include "ferry/core/error.h"
#include "ferry/kernels/kernels.h"

namespace ferry {

namespace {

/// Puts the K greatest of scores + bias (if there is one) and their experts into ids and best, in
/// falling order; ties go to the lowest id, and NaN loses to every number.
void top_k(std::span<const float> scores,
           std::span<const float> bias,
           std::span<ExpertId> ids,
           std::span<float> best) {
  std::size_t filled = 0;
  for (std::size_t e = 0; e < scores.size(); ++e) {
    const float biased = bias.empty() ? scores[e] : scores[e] + bias[e];
    const float score = std::isnan(biased) ? -std::numeric_limits<float>::infinity() : biased;
    if (filled == ids.size() && score <= best[filled - 1]) continue;
    std::size_t at = filled < ids.size() ? filled++ : filled - 1;
    for (; at > 0 && best[at - 1] < score; --at) {
      best[at] = best[at - 1];
      ids[at] = ids[at - 1];
    }
    best[at] = score;
    ids[at] = static_cast<ExpertId>(e);
  }
}

}  // namespace

void route(const RouterOptions& options,
           std::span<float> logits,
           std::span<ExpertId> experts,
           std::span<float> weights,
           std::span<const float> selection_bias) {
  const auto num_experts = static_cast<std::size_t>(options.experts);
  const auto topk = static_cast<std::size_t>(options.topk);
  FERRY_CHECK(topk >= 1 && topk <= num_experts, "top-{} of {} experts", topk, num_experts);
  const std::size_t tokens = logits.size() / num_experts;
  FERRY_CHECK(experts.size() == tokens * topk && weights.size() == experts.size(),
              "{} ids and {} weights for {} tokens",
              experts.size(),
              weights.size(),
              tokens);
  FERRY_CHECK(selection_bias.empty() || selection_bias.size() == num_experts,
              "selection bias of {} numbers for {} experts",
              selection_bias.size(),
              num_experts);

  for (std::size_t t = 0; t < tokens; ++t) {
    const std::span<float> scores = logits.subspan(t * num_experts, num_experts);
    kernels().softmax(scores.data(), options.experts);
    const std::span<float> best = weights.subspan(t * topk, topk);
    const std::span<ExpertId> ids = experts.subspan(t * topk, topk);
    top_k(scores, selection_bias, ids, best);
    if (!selection_bias.empty()) {
      for (std::size_t k = 0; k < topk; ++k) best[k] = scores[static_cast<std::size_t>(ids[k])];
    }
    if (options.renormalize) {
      float sum = 0;
      for (const float w : best) sum += w;
      for (float& w : best) w /= sum;
    }
  }
}

}  // namespace ferry
