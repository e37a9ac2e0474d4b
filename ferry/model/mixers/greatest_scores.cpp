#include "ferry/model/mixers/greatest_scores.h"

#include <algorithm>
#include <bit>
#include <functional>

#include "ferry/core/error.h"

namespace ferry {

namespace {

/// Integers in the order of the numbers. Made of bits, so that it is the same for threads that
/// flush denormals and those that do not.
std::uint32_t rank_of(float score) {
  constexpr std::uint32_t kSign = 0x80000000U;
  const auto bits = std::bit_cast<std::uint32_t>(score);
  const std::uint32_t magnitude = bits & ~kSign;
  if (magnitude > 0x7f800000U) return 0;
  if (magnitude == 0) return kSign;
  return (bits & kSign) != 0 ? ~bits : bits | kSign;
}

}  // namespace

void greatest_scores(std::span<const float> scores,
                     std::span<std::uint32_t> scratch,
                     std::span<std::int32_t> chosen) {
  FERRY_CHECK(!chosen.empty() && chosen.size() <= scores.size() && scratch.size() == scores.size(),
              "{} of {} scores, scratch for {}",
              chosen.size(),
              scores.size(),
              scratch.size());
  std::ranges::transform(scores, scratch.begin(), rank_of);
  const auto last = scratch.begin() + (std::ssize(chosen) - 1);
  std::nth_element(scratch.begin(), last, scratch.end(), std::greater<>());
  const std::uint32_t limit = *last;
  const auto greater =
      std::count_if(scratch.begin(), last, [limit](std::uint32_t rank) { return rank > limit; });
  auto equal = std::ssize(chosen) - greater;  // of those at the limit
  std::size_t n = 0;
  for (std::size_t p = 0; n < chosen.size(); ++p) {
    const std::uint32_t rank = rank_of(scores[p]);
    if (rank < limit || (rank == limit && equal-- <= 0)) continue;
    chosen[n++] = static_cast<std::int32_t>(p);
  }
}

}  // namespace ferry
