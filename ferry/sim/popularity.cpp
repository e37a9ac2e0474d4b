#include "ferry/sim/popularity.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "ferry/core/error.h"

namespace ferry {

namespace {

/// Draws of experts that a token has already, before those that are left are gone through.
constexpr int kMostRepeats = 32;

}  // namespace

Popularity::Popularity(std::span<const double> weights)
    : weights_(weights.begin(), weights.end()),
      keeps_(weights.size(), 1.0),
      alias_(weights.size()) {
  FERRY_CHECK(!weights_.empty(), "popularity of no experts");
  const double sum = std::accumulate(weights_.begin(), weights_.end(), 0.0);
  if (!(sum > 0)) std::fill(weights_.begin(), weights_.end(), 1.0);
  const double mean =
      std::accumulate(weights_.begin(), weights_.end(), 0.0) / static_cast<double>(weights_.size());
  std::vector<double> left(weights_);
  std::vector<std::size_t> small, large;
  for (std::size_t e = 0; e < left.size(); ++e) {
    alias_[e] = static_cast<ExpertId>(e);
    left[e] /= mean;
    (left[e] < 1 ? small : large).push_back(e);
  }
  while (!small.empty() && !large.empty()) {
    const std::size_t low = small.back();
    const std::size_t high = large.back();
    small.pop_back();
    keeps_[low] = left[low];
    alias_[low] = static_cast<ExpertId>(high);
    left[high] -= 1 - left[low];
    if (left[high] < 1) {
      large.pop_back();
      small.push_back(high);
    }
  }
}

Popularity Popularity::uniform(int experts) {
  return Popularity(std::vector<double>(static_cast<std::size_t>(experts), 1.0));
}

Popularity Popularity::zipf(int experts, double exponent, std::uint64_t seed) {
  std::vector<double> weights(static_cast<std::size_t>(experts));
  for (std::size_t i = 0; i < weights.size(); ++i)
    weights[i] = std::pow(static_cast<double>(i + 1), -exponent);
  Stream stream(seed);
  for (std::size_t i = weights.size(); i > 1; --i)
    std::swap(weights[i - 1], weights[stream.next() % i]);
  return Popularity(weights);
}

/// SplitMix64.
std::uint64_t Popularity::Stream::next() {
  std::uint64_t z = state_ += 0x9E3779B97F4A7C15U;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9U;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBU;
  return z ^ (z >> 31);
}

ExpertId Popularity::draw_one(Stream& stream) const {
  const double at = stream.part() * static_cast<double>(weights_.size());
  const auto cell = static_cast<std::size_t>(at);
  return at - static_cast<double>(cell) < keeps_[cell] ? static_cast<ExpertId>(cell) : alias_[cell];
}

/// Of the experts that are not taken; where none of them is popular, the first.
ExpertId Popularity::draw_left(Stream& stream, std::span<const ExpertId> taken) const {
  const auto is_left = [&](std::size_t e) {
    return std::ranges::find(taken, static_cast<ExpertId>(e)) == taken.end();
  };
  double sum = 0;
  for (std::size_t e = 0; e < weights_.size(); ++e) sum += is_left(e) ? weights_[e] : 0;
  double at = stream.part() * sum;
  ExpertId last = -1;
  for (std::size_t e = 0; e < weights_.size(); ++e) {
    if (!is_left(e) || (sum > 0 && weights_[e] == 0)) continue;
    last = static_cast<ExpertId>(e);
    at -= weights_[e];
    if (at < 0 || sum == 0) break;
  }
  return last;
}

void Popularity::draw(Stream& stream, int topk, std::span<ExpertId> chosen) const {
  FERRY_CHECK(topk >= 1 && topk <= experts(), "top-{} of {} experts", topk, experts());
  const auto k = static_cast<std::size_t>(topk);
  for (std::size_t first = 0; first + k <= chosen.size(); first += k) {
    for (std::size_t i = 0; i < k; ++i) {
      const auto taken = chosen.subspan(first, i);
      ExpertId expert = draw_one(stream);
      int repeats = 0;
      while (std::ranges::find(taken, expert) != taken.end() && ++repeats < kMostRepeats)
        expert = draw_one(stream);
      chosen[first + i] = repeats < kMostRepeats ? expert : draw_left(stream, taken);
    }
  }
}

}  // namespace ferry
