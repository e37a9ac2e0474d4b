#include "ferry/logprobs.h"

#include <algorithm>

#include "ferry/core/portable_math.h"
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

Logprobs logprobs_of(std::span<const float> logits,
                     std::int32_t chosen,
                     int top,
                     std::span<const std::int32_t> asked) {
  const double log_sum = log_sum_exp(logits);
  const auto logprob = [&](std::int32_t id) {
    return static_cast<float>(static_cast<double>(logits[static_cast<std::size_t>(id)]) - log_sum);
  };
  Logprobs result{.chosen = logprob(chosen), .top = {}};
  for (const std::int32_t id : greatest_ids(logits, static_cast<std::size_t>(top)))
    result.top.push_back({.id = id, .logprob = logprob(id)});
  for (const std::int32_t id : asked) result.asked.push_back({.id = id, .logprob = logprob(id)});
  return result;
}

}  // namespace ferry
