// Router: logits -> the K experts of each token and their weights. Pure functions, f32 throughout.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "ferry/core/types.h"

namespace ferry {

/// A formula as data. Which family uses which: docs/routing.md.
struct RouterOptions {
  enum class Score : std::uint8_t { softmax };

  Score score = Score::softmax;
  int experts = 0;           ///< E
  int topk = 0;              ///< K <= E
  bool renormalize = false;  ///< weights divided by their sum (norm_topk_prob)
};

/// Chooses for each token the K experts with the greatest score, in falling order of score; ties go
/// to the lowest expert id. NaN logits never win over numbers.
///   logits   [tokens, E], overwritten with the scores
///   experts  [tokens, K]   weights [tokens, K]
///   selection_bias  [E] or empty: added to the scores for the choice and its order only; weights
///                   are made of the scores alone
void route(const RouterOptions& options,
           std::span<float> logits,
           std::span<ExpertId> experts,
           std::span<float> weights,
           std::span<const float> selection_bias = {});

}  // namespace ferry
