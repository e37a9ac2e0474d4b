#include "ferry/sim/link_levels.h"

#include <algorithm>

#include "ferry/core/error.h"

namespace ferry {

LinkLevels::LinkLevels(int ranks, std::span<const int> spans) : ranks_(ranks) {
  FERRY_CHECK(ranks >= 1 && !spans.empty(), "{} ranks, {} levels of links", ranks, spans.size());
  for (const int span : spans) {
    if (!spans_.empty() && spans_.back() >= ranks) break;  // nobody is further away
    if (!spans_.empty() && span % spans_.back() != 0)
      fail<ConfigError>(
          "links that join {} ranks do not join whole runs of {}", span, spans_.back());
    if (spans_.empty() && ranks % std::min(span, ranks) != 0)
      fail<ConfigError>("{} ranks are not a multiple of {} ranks a host", ranks, span);
    spans_.push_back(std::min(span, ranks));
  }
  if (spans_.size() + 1 > kMaxLinkLevels)
    fail<ConfigError>("{} levels of links; at most {}", spans_.size(), kMaxLinkLevels - 1);
  if (spans_.back() < ranks)
    fail<ConfigError>("the last level of links joins {} of {} ranks", spans_.back(), ranks);
}

std::size_t LinkLevels::between(Rank a, Rank b) const {
  if (a == b) return kOwnLevel;
  std::size_t level = kHostLevel;
  for (const int span : spans_) {
    if (a / span == b / span) break;
    ++level;
  }
  return level;
}

LinkLevels LinkLevels::track(int stride) const {
  if (ranks_per_host() % stride != 0)
    fail<ConfigError>(
        "{} slices of experts on hosts of {} ranks: no memory is shared", stride, ranks_per_host());
  std::vector<int> spans;
  for (const int span : spans_) spans.push_back(span / stride);
  return {ranks_ / stride, spans};
}

}  // namespace ferry
