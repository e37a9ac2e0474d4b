// Router: logits -> the K experts of each token and their weights. Pure functions, f32 throughout.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "ferry/export.h"
#include "ferry/types.h"

namespace ferry {

class ThreadPool;

/// Groups are few: DeepSeek-V3 has 8.
inline constexpr int kMaxExpertGroups = 64;

/// A formula as data; docs/checkpoints.md says which family uses which. For each token:
///   1. keys = the scores of all experts (choose_first: the logits), plus the selection bias;
///   2. groups of E / groups neighbouring experts, of which the topk_groups best take part;
///   3. the K experts with the greatest keys;
///   4. their weights are their scores, divided by their sum where renormalize says so, times
///      scaling.
struct RouterOptions {
  enum class Score : std::uint8_t {
    softmax,  ///< over all experts (choose_first: over the K chosen)
    sigmoid,  ///< of each logit by itself
  };
  /// What a group is worth.
  enum class GroupScore : std::uint8_t {
    max,         ///< its greatest key (DeepSeek-V2)
    sum_of_two,  ///< the sum of its two greatest keys (DeepSeek-V3)
  };

  Score score = Score::softmax;
  int experts = 0;            ///< E
  int topk = 0;               ///< K <= E
  bool renormalize = false;   ///< weights divided by their sum (norm_topk_prob)
  bool choose_first = false;  ///< the choice is made among logits; scores are of the chosen alone
  int groups = 1;             ///< a divisor of E, at most kMaxExpertGroups
  int topk_groups = 1;        ///< at most groups, and with room for K experts
  GroupScore group_score = GroupScore::max;
  float scaling = 1.0F;  ///< routed_scaling_factor
};

/// Chooses for each token K experts in falling order of their keys; ties, of groups and of experts,
/// go to the lowest id, and NaN loses to every number. An expert outside the chosen groups is never
/// chosen, whatever the signs of the keys.
///   logits   [tokens, E], overwritten
///   experts  [tokens, K]   weights [tokens, K]
///   selection_bias  [E] or empty: added for the choice and its order only; weights are made of
///                   the scores alone
FERRY_API void route(const RouterOptions& options,
                     std::span<float> logits,
                     std::span<ExpertId> experts,
                     std::span<float> weights,
                     std::span<const float> selection_bias = {});

/// The same on all threads of a pool: tokens are independent, so no bit changes.
FERRY_API void route(ThreadPool& pool,
                     const RouterOptions& options,
                     std::span<float> logits,
                     std::span<ExpertId> experts,
                     std::span<float> weights,
                     std::span<const float> selection_bias = {});

}  // namespace ferry
