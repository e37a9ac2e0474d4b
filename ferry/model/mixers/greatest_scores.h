// Which positions an indexer chooses, given their scores.
#pragma once

#include <cstdint>
#include <span>

namespace ferry {

/// The positions of the greatest scores, as many as `chosen` holds, in rising order. Of equal ones
/// the lowest come first; 0 and -0 are equal, and a NaN is less than any number. `scratch`: as long
/// as `scores`. REQUIRES: 1 <= chosen.size() <= scores.size().
void greatest_scores(std::span<const float> scores,
                     std::span<std::uint32_t> scratch,
                     std::span<std::int32_t> chosen);

}  // namespace ferry
