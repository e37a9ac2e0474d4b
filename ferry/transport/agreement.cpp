#include "ferry/agreement.h"

#include <algorithm>
#include <map>

#include "ferry/core/error.h"

namespace ferry {

std::string ranks_text(const std::vector<Rank>& ranks) {
  std::string text = ranks.size() == 1 ? "rank " : "ranks ";
  for (std::size_t i = 0; i < ranks.size(); ++i) {
    if (i > 0) text += i + 1 == ranks.size() ? " and " : ", ";
    text += std::to_string(ranks[i]);
  }
  return text;
}

Difference find_difference(const std::vector<Agreement>& agreements) {
  const Agreement& first = agreements.front();
  for (std::size_t i = 0; i < first.size(); ++i) {
    std::map<std::string, std::vector<Rank>> holders;
    for (std::size_t r = 0; r < agreements.size(); ++r) {
      const Agreement& theirs = agreements[r];
      const bool same_question = i < theirs.size() && theirs[i].first == first[i].first;
      holders[same_question ? theirs[i].second : "nothing"].push_back(static_cast<Rank>(r));
    }
    if (holders.size() == 1) continue;
    std::vector<std::pair<std::vector<Rank>, std::string>> sides;
    for (const auto& [value, ranks] : holders)
      sides.emplace_back(ranks, value.empty() ? "(not given)" : value);
    std::sort(sides.begin(), sides.end());
    std::string text;
    for (const auto& [ranks, value] : sides)
      text += fmt::format("{}{} {}", text.empty() ? "" : ", ", ranks_text(ranks), value);
    return {.text = fmt::format("ranks differ in {}: {}", first[i].first, text),
            .rank = sides.back().first.front()};
  }
  return {};
}

}  // namespace ferry
