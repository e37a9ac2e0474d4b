#include "ferry/router.h"

#include <algorithm>
#include <array>
#include <bitset>
#include <cmath>
#include <limits>

#include "ferry/core/error.h"
#include "ferry/core/threads.h"
#include "ferry/kernels/kernels.h"

namespace ferry {

namespace {

constexpr float kLeast = -std::numeric_limits<float>::infinity();
/// Keeps a sum of sigmoids that all underflowed from dividing by zero; lost in any other sum.
constexpr float kSumFloor = 1e-20F;
constexpr std::int64_t kScoresWorthAThread = 4096;

/// The greatest keys offered so far and whose they are, in falling order. Of equal keys the first
/// one stays ahead, so ids are offered in rising order; NaN loses to every number.
class Best {
 public:
  Best(std::span<ExpertId> ids, std::span<float> keys) : ids_(ids), keys_(keys) {}

  void offer(ExpertId id, float key) {
    if (std::isnan(key)) key = kLeast;
    if (filled_ == ids_.size() && key <= keys_[filled_ - 1]) return;
    std::size_t at = filled_ < ids_.size() ? filled_++ : filled_ - 1;
    for (; at > 0 && keys_[at - 1] < key; --at) {
      keys_[at] = keys_[at - 1];
      ids_[at] = ids_[at - 1];
    }
    keys_[at] = key;
    ids_[at] = id;
  }

 private:
  std::span<ExpertId> ids_;
  std::span<float> keys_;
  std::size_t filled_ = 0;
};

/// What one token's choice is made by.
struct Keys {
  std::span<const float> scores;  // [E]
  std::span<const float> bias;    // [E] or empty

  float operator[](std::size_t e) const { return bias.empty() ? scores[e] : scores[e] + bias[e]; }
};

float group_score(const RouterOptions& options, const Keys& keys, std::size_t first) {
  const std::size_t size = keys.scores.size() / static_cast<std::size_t>(options.groups);
  std::array<float, 2> greatest = {kLeast, kLeast};
  std::array<ExpertId, 2> ids{};
  Best best{ids, greatest};
  for (std::size_t e = first; e < first + size; ++e) best.offer(static_cast<ExpertId>(e), keys[e]);
  return options.group_score == RouterOptions::GroupScore::max ? greatest[0]
                                                               : greatest[0] + greatest[1];
}

/// The groups that take part.
std::bitset<kMaxExpertGroups> choose_groups(const RouterOptions& options, const Keys& keys) {
  const auto groups = static_cast<std::size_t>(options.groups);
  const auto chosen = static_cast<std::size_t>(options.topk_groups);
  std::bitset<kMaxExpertGroups> take_part;
  if (chosen == groups) return take_part.set();
  std::array<ExpertId, kMaxExpertGroups> ids{};
  std::array<float, kMaxExpertGroups> scores{};
  Best best{std::span(ids).first(chosen), scores};
  for (std::size_t g = 0; g < groups; ++g) {
    best.offer(static_cast<ExpertId>(g),
               group_score(options, keys, g * (keys.scores.size() / groups)));
  }
  for (const ExpertId g : std::span(ids).first(chosen)) take_part.set(static_cast<std::size_t>(g));
  return take_part;
}

void choose(const RouterOptions& options,
            const Keys& keys,
            std::span<ExpertId> ids,
            std::span<float> scratch) {
  const std::size_t size = keys.scores.size() / static_cast<std::size_t>(options.groups);
  const auto take_part = choose_groups(options, keys);
  Best best(ids, scratch);
  for (std::size_t g = 0; g < static_cast<std::size_t>(options.groups); ++g) {
    if (!take_part[g]) continue;
    for (std::size_t e = g * size; e < (g + 1) * size; ++e)
      best.offer(static_cast<ExpertId>(e), keys[e]);
  }
}

/// Logits become scores, in place.
void score(const Kernels& kernels, RouterOptions::Score formula, std::span<float> logits) {
  const auto n = static_cast<std::int64_t>(logits.size());
  if (formula == RouterOptions::Score::softmax) {
    kernels.softmax(logits.data(), n);
  } else {
    kernels.sigmoid(logits.data(), logits.data(), n);
  }
}

void check(const RouterOptions& o) {
  FERRY_CHECK(o.topk >= 1 && o.topk <= o.experts, "top-{} of {} experts", o.topk, o.experts);
  FERRY_CHECK(o.groups >= 1 && o.groups <= kMaxExpertGroups && o.experts % o.groups == 0,
              "{} experts in {} groups",
              o.experts,
              o.groups);
  FERRY_CHECK(o.topk_groups >= 1 && o.topk_groups <= o.groups &&
                  o.topk <= o.experts / o.groups * o.topk_groups,
              "top-{} of {} experts in {} of {} groups",
              o.topk,
              o.experts,
              o.topk_groups,
              o.groups);
}

/// Logits, choice and weights of some tokens.
struct Tokens {
  std::span<float> logits;      // [tokens, E]
  std::span<ExpertId> experts;  // [tokens, K]
  std::span<float> weights;     // [tokens, K]
  std::span<const float> selection_bias;
};

/// Returns how many they are.
std::size_t check(const RouterOptions& options, const Tokens& tokens) {
  check(options);
  const auto num_experts = static_cast<std::size_t>(options.experts);
  const std::size_t count = tokens.logits.size() / num_experts;
  FERRY_CHECK(tokens.experts.size() == count * static_cast<std::size_t>(options.topk) &&
                  tokens.weights.size() == tokens.experts.size(),
              "{} ids and {} weights for {} tokens",
              tokens.experts.size(),
              tokens.weights.size(),
              count);
  FERRY_CHECK(tokens.selection_bias.empty() || tokens.selection_bias.size() == num_experts,
              "selection bias of {} numbers for {} experts",
              tokens.selection_bias.size(),
              num_experts);
  return count;
}

void route_token(const Kernels& kernels,
                 const RouterOptions& options,
                 const Tokens& tokens,
                 std::size_t t) {
  const auto num_experts = static_cast<std::size_t>(options.experts);
  const auto topk = static_cast<std::size_t>(options.topk);
  const std::span<float> scores = tokens.logits.subspan(t * num_experts, num_experts);
  const std::span<float> chosen = tokens.weights.subspan(t * topk, topk);
  const std::span<ExpertId> ids = tokens.experts.subspan(t * topk, topk);
  if (!options.choose_first) score(kernels, options.score, scores);
  choose(options, {scores, tokens.selection_bias}, ids, chosen);
  for (std::size_t k = 0; k < topk; ++k) chosen[k] = scores[static_cast<std::size_t>(ids[k])];
  if (options.choose_first) score(kernels, options.score, chosen);
  if (options.renormalize) {
    float sum = 0;
    for (const float w : chosen) sum += w;
    for (float& w : chosen) w /= sum + kSumFloor;
  }
  for (float& w : chosen) w *= options.scaling;
}

}  // namespace

void route(const RouterOptions& options,
           std::span<float> logits,
           std::span<ExpertId> experts,
           std::span<float> weights,
           std::span<const float> selection_bias) {
  const Tokens tokens{logits, experts, weights, selection_bias};
  const std::size_t count = check(options, tokens);
  for (std::size_t t = 0; t < count; ++t) route_token(kernels(), options, tokens, t);
}

void route(ThreadPool& pool,
           const RouterOptions& options,
           std::span<float> logits,
           std::span<ExpertId> experts,
           std::span<float> weights,
           std::span<const float> selection_bias) {
  const Tokens tokens{logits, experts, weights, selection_bias};
  const auto count = static_cast<std::int64_t>(check(options, tokens));
  // A thread is worth waking for some thousand scores.
  const std::int64_t grain = std::max<std::int64_t>(1, kScoresWorthAThread / options.experts);
  pool.parallel_for(count, grain, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t t = begin; t < end; ++t)
      route_token(kernels_of(pool), options, tokens, static_cast<std::size_t>(t));
  });
}

}  // namespace ferry
