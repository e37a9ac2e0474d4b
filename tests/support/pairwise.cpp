#include "support/pairwise.h"

#include <algorithm>
#include <random>
#include <set>
#include <tuple>

namespace ferry::testing {

namespace {

using Pair = std::tuple<std::size_t, int, std::size_t, int>;

constexpr int kTries = 400;      // to find a valid combination around a pair
constexpr int kCandidates = 20;  // valid ones, of which the best is taken

std::vector<Pair> pairs_of(const Combination& combination) {
  std::vector<Pair> pairs;
  for (std::size_t a = 0; a < combination.size(); ++a)
    for (std::size_t b = a + 1; b < combination.size(); ++b)
      pairs.emplace_back(a, combination[a], b, combination[b]);
  return pairs;
}

std::set<Pair> pairs_of_axes(const std::vector<int>& sizes) {
  std::set<Pair> pairs;
  for (std::size_t a = 0; a < sizes.size(); ++a)
    for (std::size_t b = a + 1; b < sizes.size(); ++b)
      for (int i = 0; i < sizes[a]; ++i)
        for (int j = 0; j < sizes[b]; ++j) pairs.emplace(a, i, b, j);
  return pairs;
}

}  // namespace

std::vector<Combination> all_combinations(const std::vector<int>& sizes,
                                          const std::function<bool(const Combination&)>& valid) {
  std::vector<Combination> all;
  Combination next(sizes.size(), 0);
  for (;;) {
    if (valid(next)) all.push_back(next);
    std::size_t axis = 0;
    while (axis < sizes.size() && ++next[axis] == sizes[axis]) next[axis++] = 0;
    if (axis == sizes.size()) return all;
  }
}

/// Pair by pair: of some random combinations around one that is still missing, the one with most
/// that are.
std::vector<Combination> pairwise_combinations(
    const std::vector<int>& sizes, const std::function<bool(const Combination&)>& valid) {
  std::mt19937 engine(1);
  std::set<Pair> missing = pairs_of_axes(sizes);
  const auto fresh = [&](const Combination& c) {
    const std::vector<Pair> pairs = pairs_of(c);
    return std::count_if(
        pairs.begin(), pairs.end(), [&](const Pair& pair) { return missing.contains(pair); });
  };
  std::vector<Combination> taken;
  while (!missing.empty()) {
    const auto [a, i, b, j] = *missing.begin();
    Combination best;
    for (int tries = 0, found = 0; tries < kTries && found < kCandidates; ++tries) {
      Combination c;
      for (const int size : sizes)
        c.push_back(static_cast<int>(engine() % static_cast<unsigned>(size)));
      c[a] = i;
      c[b] = j;
      if (!valid(c)) continue;
      ++found;
      if (best.empty() || fresh(c) > fresh(best)) best = c;
    }
    missing.erase({a, i, b, j});  // if no combination was found, there is none
    if (best.empty()) continue;
    for (const Pair& pair : pairs_of(best)) missing.erase(pair);
    taken.push_back(best);
  }
  return taken;
}

}  // namespace ferry::testing
