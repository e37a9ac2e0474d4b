// A cut is found between two weights that draw closer. A few weights, taken at even distances, say
// where it may lie; one pass over all of them counts what lies above and copies what lies between;
// the next round looks at the copy alone. A guess that was wrong costs another pass and changes no
// result.
#include "ferry/engine/token_weights.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <utility>

#include "ferry/core/error.h"
#include "ferry/core/types.h"
#include "ferry/kernels/kernels.h"

namespace ferry {

namespace {

/// One above the greatest weight.
constexpr std::uint32_t kEnd = (1U << kWeightBits) + 1;
/// So many are looked at one by one.
constexpr std::size_t kFew = 128;
constexpr std::size_t kSamples = 256;
/// What pick_weights() may overwrite behind what it picks.
constexpr std::size_t kSpare = 16;

std::uint64_t measure(const TokenMass& mass, bool by_sum) {
  return by_sum ? mass.sum : mass.tokens;
}

TokenMass plus(const TokenMass& mass, const WeightCount& count) {
  return {.tokens = mass.tokens + count.tokens, .sum = mass.sum + count.sum};
}

WeightCount count_above(std::span<const std::uint32_t> weights, std::uint32_t limit) {
  return kernels().count_weights(weights.data(), std::ssize(weights), limit);
}

using Samples = std::array<std::uint32_t, kSamples>;

/// The weights at even distances that lie in [low, high), greatest first.
std::span<const std::uint32_t> take_samples(std::span<const std::uint32_t> data,
                                            std::uint32_t low,
                                            std::uint32_t high,
                                            Samples& samples) {
  std::size_t n = 0;
  for (std::size_t i = 0; i < kSamples; ++i) {
    const std::uint32_t weight = data[i * data.size() / kSamples];
    if (weight >= low && weight < high) samples[n++] = weight;
  }
  const std::span<std::uint32_t> taken = std::span(samples).first(n);
  std::sort(taken.begin(), taken.end(), std::greater<>());
  return taken;
}

/// How many samples are likely above a cut that leaves `left` of the sum below it.
double samples_above(std::span<const std::uint32_t> samples, double each_is, double left) {
  std::size_t n = samples.size();
  for (double sum = 0; n > 0; --n) {
    sum += static_cast<double>(samples[n - 1]) * each_is;
    if (sum > left) break;
  }
  return static_cast<double>(n);
}

/// Where the least weight of a cut lies: from `low` to below `high`.
struct Bracket {
  std::uint32_t low = 1;
  std::uint32_t high = kEnd;
  std::uint64_t sum_from_low = 0;
  TokenMass above = {};                      ///< of those from `high` on
  std::span<const std::uint32_t> data = {};  ///< all weights, or those of the bracket alone
  bool inside = false;                       ///< the latter

  /// A narrower one that is likely to have it too.
  std::pair<std::uint32_t, std::uint32_t> guess(std::uint64_t target, bool by_sum) const {
    Samples memory;
    const std::span<const std::uint32_t> samples = take_samples(data, low, high, memory);
    const auto m = static_cast<double>(samples.size());
    const double each_is = static_cast<double>(data.size()) / kSamples;
    const double expected =
        by_sum ? samples_above(samples, each_is, static_cast<double>(sum_from_low - target))
               : std::min(m, static_cast<double>(target - above.tokens) / each_is);
    const double margin = 3 + 3 * std::sqrt(expected * (m - expected) / std::max(m, 1.0));
    std::uint32_t from = low;
    std::uint32_t to = high;
    if (expected + margin < m) from = samples[static_cast<std::size_t>(expected + margin)];
    if (expected - margin >= 0) to = samples[static_cast<std::size_t>(expected - margin)] + 1;
    if (inside && from == low && to == high) to = low + (high - low) / 2;
    return {from, to};
  }

  /// The cut, where the bracket holds one weight or few tokens.
  TokenCut cut(std::uint64_t target, bool by_sum) const {
    const auto with = [&](const TokenMass& before, std::uint64_t weight) {
      const std::uint64_t unit = by_sum ? weight : 1;
      const std::uint64_t ties = (target - measure(before, by_sum) + unit - 1) / unit;
      return TokenCut{.weight = static_cast<std::uint32_t>(weight),
                      .ties = ties,
                      .sum = before.sum + ties * weight};
    };
    if (high - low == 1) return with(above, low);
    std::array<std::uint32_t, kFew> memory;
    std::size_t n = 0;
    for (const std::uint32_t weight : data)
      if (weight >= low && weight < high) memory[n++] = weight;
    const std::span<std::uint32_t> few = std::span(memory).first(n);
    std::sort(few.begin(), few.end(), std::greater<>());
    TokenMass before = above;
    TokenMass all = above;
    for (std::size_t i = 0; i < n; ++i) {
      if (i > 0 && few[i] != few[i - 1]) before = all;
      all = {.tokens = all.tokens + 1, .sum = all.sum + few[i]};
      if (measure(all, by_sum) >= target) return with(before, few[i]);
    }
    fail<Error>("no cut of tokens reaches {}", target);
  }
};

}  // namespace

std::uint64_t share_of(const TokenCut& cut, double share) {
  const auto wanted = static_cast<std::uint64_t>(std::ceil(share * static_cast<double>(cut.sum)));
  return std::clamp(wanted, std::uint64_t{1}, cut.sum);
}

TokenCut TokenWeights::reach(std::uint64_t target,
                             bool by_sum,
                             std::uint32_t low,
                             std::uint64_t sum_from_low) {
  Bracket bracket{.low = low, .sum_from_low = sum_from_low, .data = source_};
  while (bracket.high - bracket.low > 1 && bracket.data.size() > kFew) {
    const auto [from, to] = bracket.guess(target, by_sum);
    const WeightPick pick = kernels().pick_weights(
        bracket.data.data(), std::ssize(bracket.data), from, to, picked_.data());
    const auto picked =
        std::span<const std::uint32_t>(picked_).first(static_cast<std::size_t>(pick.picked));
    const TokenMass above = plus(bracket.inside ? bracket.above : TokenMass{}, pick.rest);
    const TokenMass from_low = plus(above, count_above(picked, 0));
    if (measure(above, by_sum) >= target) {
      bracket.low = to;
      bracket.sum_from_low = above.sum;
    } else if (measure(from_low, by_sum) < target) {
      bracket.high = from;
      bracket.above = from_low;
    } else {
      bracket = {.low = from,
                 .high = to,
                 .sum_from_low = from_low.sum,
                 .above = above,
                 .data = picked,
                 .inside = true};
      continue;
    }
    bracket.data = source_;
    bracket.inside = false;
  }
  return bracket.cut(target, by_sum);
}

void TokenWeights::resize(std::size_t vocab) {
  weights_.resize(vocab);
  heavy_.resize(vocab + kSpare);
  picked_.resize(vocab + kSpare);
  source_ = weights_;
  block_sums_.resize(static_cast<std::size_t>(ceil_div(static_cast<std::int64_t>(vocab), kBlock)));
}

void TokenWeights::weigh(std::span<const float> logits,
                         std::int64_t first_block,
                         std::int64_t last_block,
                         float most,
                         float factor) {
  for (std::int64_t block = first_block; block < last_block; ++block) {
    const std::int64_t begin = block * kBlock;
    const std::int64_t n = std::min(kBlock, std::ssize(logits) - begin);
    block_sums_[static_cast<std::size_t>(block)] =
        kernels().weigh(logits.data() + begin, n, most, factor, weights_.data() + begin);
  }
}

TokenCut TokenWeights::all() const {
  std::uint64_t sum = 0;
  for (const std::uint64_t s : block_sums_) sum += s;
  return {.weight = 0, .ties = 0, .sum = sum};
}

TokenCut TokenWeights::heaviest(std::uint64_t tokens) {
  // Mostly few of a vocabulary, which are put aside for what follows.
  const Bracket whole{.data = weights_};
  const std::uint32_t from = whole.guess(tokens, /*by_sum=*/false).first;
  const WeightPick pick =
      kernels().pick_weights(weights_.data(), std::ssize(weights_), from, kEnd, heavy_.data());
  const auto heavy =
      std::span<const std::uint32_t>(heavy_).first(static_cast<std::size_t>(pick.picked));
  const bool enough = heavy.size() >= tokens;
  if (!enough && count_above(weights_, 0).tokens <= tokens) return all();
  source_ = enough ? heavy : std::span<const std::uint32_t>(weights_);
  return reach(tokens, /*by_sum=*/false, enough ? from : 1, count_above(source_, 0).sum);
}

TokenCut TokenWeights::with_share(const TokenCut& cut, double share) {
  const std::uint64_t target = share_of(cut, share);
  if (target == cut.sum) return cut;
  // More tokens than the cut's ties may have its least weight. They come behind those.
  const std::uint64_t sum = cut.weight == 0 ? cut.sum : count_above(source_, cut.weight - 1).sum;
  return reach(target, /*by_sum=*/true, std::max(cut.weight, 1U), sum);
}

TokenCut TokenWeights::at_least(const TokenCut& cut, std::uint32_t weight) const {
  if (weight <= std::max(cut.weight, 1U)) return cut;
  return {.weight = weight - 1, .ties = 0, .sum = count_above(weights_, weight - 1).sum};
}

TokenMass TokenWeights::before(std::int32_t token) const {
  const auto at = static_cast<std::size_t>(token);
  const std::span<const std::uint32_t> all(weights_);
  const TokenMass first = plus({}, count_above(all.first(at), weights_[at] - 1));
  return plus(first, count_above(all.subspan(at), weights_[at]));
}

std::int32_t TokenWeights::at(const TokenCut& cut, std::uint64_t place) const {
  std::uint64_t ties = cut.ties;
  for (std::size_t block = 0; block < block_sums_.size(); ++block) {
    const auto begin = static_cast<std::int64_t>(block) * kBlock;
    const std::span<const std::uint32_t> weights = std::span(weights_).subspan(
        static_cast<std::size_t>(begin),
        static_cast<std::size_t>(std::min(kBlock, std::ssize(weights_) - begin)));
    std::uint64_t sum = block_sums_[block];
    std::uint64_t equal = 0;
    if (cut.weight > 0) {
      const WeightCount above = count_above(weights, cut.weight);
      if (ties > 0)
        equal = std::min(ties, count_above(weights, cut.weight - 1).tokens - above.tokens);
      sum = above.sum + equal * cut.weight;
    }
    if (place >= sum) {
      place -= sum;
      ties -= equal;
      continue;
    }
    for (std::size_t i = 0;; ++i) {
      const std::uint32_t weight = weights[i];
      if (weight < cut.weight || (weight == cut.weight && ties == 0)) continue;
      if (weight == cut.weight) --ties;
      if (place < weight) return static_cast<std::int32_t>(static_cast<std::size_t>(begin) + i);
      place -= weight;
    }
  }
  fail<Error>("no token stands at place {} of a draw", place);
}

}  // namespace ferry
