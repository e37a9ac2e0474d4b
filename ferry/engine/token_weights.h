// The weights of one vocabulary's tokens, and the draw of one of them. Weights are integers, so
// that sums are exact in any order, and which tokens may be drawn is found by counting: nothing is
// sorted.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace ferry {

/// Which tokens may be drawn: those whose weight is above `weight`, and as many that equal it as
/// `ties` says, those of the lowest ids.
struct TokenCut {
  std::uint32_t weight = 0;
  std::uint64_t ties = 0;
  std::uint64_t sum = 0;  ///< of the weights of all of them
};

struct TokenMass {
  std::uint64_t tokens = 0;
  std::uint64_t sum = 0;  ///< of their weights
};

/// How much of a cut a share is, at least 1.
std::uint64_t share_of(const TokenCut& cut, double share);

/// Owns the weights and scratch of their size. Threads: weigh() may run for several blocks at once.
class TokenWeights {
 public:
  /// Tokens of a block.
  static constexpr std::int64_t kBlock = 4096;

  /// Begins a draw from so many tokens.
  void resize(std::size_t vocab);

  /// Weighs the tokens of some blocks. REQUIRES: none of them is above `most`.
  void weigh(std::span<const float> logits,
             std::int64_t first_block,
             std::int64_t last_block,
             float most,
             float factor);

  // All blocks are weighed from here on.

  /// Every token that has a weight.
  TokenCut all() const;

  /// The `tokens` heaviest of those.
  TokenCut heaviest(std::uint64_t tokens);

  /// The fewest of a cut that have this share of its sum, heaviest first. REQUIRES: 0 < share <= 1;
  /// heaviest() gave the cut, or all().
  TokenCut with_share(const TokenCut& cut, double share);

  /// Those of a cut that have at least `weight`.
  TokenCut at_least(const TokenCut& cut, std::uint32_t weight) const;

  /// The token at a place of a cut's weights, laid out by id. REQUIRES: place < cut.sum.
  std::int32_t at(const TokenCut& cut, std::uint64_t place) const;

  std::uint32_t weight(std::int32_t token) const {
    return weights_[static_cast<std::size_t>(token)];
  }

  /// What comes before a token when the heaviest come first, and of equal ones the lowest id.
  TokenMass before(std::int32_t token) const;

 private:
  /// The fewest whose number, or the sum of whose weights, reaches the target; `low` is a lower
  /// bound of their weights. REQUIRES: those from `low` on, whose sum is given, do.
  TokenCut reach(std::uint64_t target, bool by_sum, std::uint32_t low, std::uint64_t sum_from_low);

  std::vector<std::uint32_t> weights_;
  std::vector<std::uint64_t> block_sums_;
  std::vector<std::uint32_t> heavy_;       // weights from some weight on, by id
  std::span<const std::uint32_t> source_;  // these or all, where cuts are looked for
  std::vector<std::uint32_t> picked_;
};

}  // namespace ferry
