// Few combinations that hold every pair: most defects need two settings to meet, not seven.
#pragma once

#include <functional>
#include <vector>

namespace ferry::testing {

/// A level of each axis.
using Combination = std::vector<int>;

/// All combinations of axes with `sizes` levels that `valid` accepts.
std::vector<Combination> all_combinations(const std::vector<int>& sizes,
                                          const std::function<bool(const Combination&)>& valid);

/// Some of them, so that every pair of levels of two axes which occurs in any stands in one.
std::vector<Combination> pairwise_combinations(
    const std::vector<int>& sizes, const std::function<bool(const Combination&)>& valid);

}  // namespace ferry::testing
