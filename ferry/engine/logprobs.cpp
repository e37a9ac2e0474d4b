#include "ferry/logprobs.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "ferry/kernels/kernels.h"

namespace ferry {

namespace {

/// Logits that are passed over at once where none of them is among the greatest so far.
constexpr std::size_t kBlock = 256;

/// ln of the sum of e^x over all logits.
double log_sum_exp(std::span<const float> logits) {
  const float greatest = kernels().greatest(logits.data(), std::ssize(logits));
  const ExpSum sum = kernels().exp_sum(logits.data(), std::ssize(logits), greatest);
  return static_cast<double>(greatest) + natural_log(static_cast<double>(sum.whole) * 0x1p-30 +
                                                     static_cast<double>(sum.rest) * 0x1p-50);
}

/// The ids of the greatest logits, greatest first; ties: the lowest id first.
std::vector<std::int32_t> greatest_ids(std::span<const float> logits, std::size_t n) {
  std::vector<std::int32_t> ids;
  const auto before = [&](float logit, std::int32_t other) {
    return logit > logits[static_cast<std::size_t>(other)];
  };
  for (std::size_t begin = 0; n > 0 && begin < logits.size(); begin += kBlock) {
    const auto block = logits.subspan(begin, std::min(kBlock, logits.size() - begin));
    if (ids.size() == n && !before(kernels().greatest(block.data(), std::ssize(block)), ids.back()))
      continue;
    for (std::size_t i = 0; i < block.size(); ++i) {
      if (ids.size() == n && !before(block[i], ids.back())) continue;
      if (ids.size() == n) ids.pop_back();
      const auto place = std::find_if(
          ids.begin(), ids.end(), [&](std::int32_t other) { return before(block[i], other); });
      ids.insert(place, static_cast<std::int32_t>(begin + i));
    }
  }
  return ids;
}

}  // namespace

/// With x = 2^e m, m near 1: e ln 2 + 2 artanh((m - 1) / (m + 1)), by its series.
double natural_log(double x) noexcept {
  constexpr double kLn2 = 0x1.62e42fefa39efp-1;
  constexpr double kRootOfTwo = 0x1.6a09e667f3bcdp+0;
  const auto bits = std::bit_cast<std::uint64_t>(x);
  auto exponent = static_cast<int>(bits >> 52) - 1023;
  double m = std::bit_cast<double>((bits & 0xfffffffffffffULL) | (1023ULL << 52));
  if (m > kRootOfTwo) {
    m *= 0.5;
    ++exponent;
  }
  const double s = (m - 1) / (m + 1);
  double series = 0;
  for (int power = 21; power >= 1; power -= 2) series = series * (s * s) + 1.0 / power;
  return exponent * kLn2 + 2 * s * series;
}

Logprobs logprobs_of(std::span<const float> logits, std::int32_t chosen, int top) {
  const double log_sum = log_sum_exp(logits);
  const auto logprob = [&](std::int32_t id) {
    return static_cast<float>(static_cast<double>(logits[static_cast<std::size_t>(id)]) - log_sum);
  };
  Logprobs result{.chosen = logprob(chosen), .top = {}};
  for (const std::int32_t id : greatest_ids(logits, static_cast<std::size_t>(top)))
    result.top.push_back({.id = id, .logprob = logprob(id)});
  return result;
}

}  // namespace ferry
