#include <algorithm>
#include <tuple>

#include "ferry/balance/policies.h"

namespace ferry {

namespace {

/// For each new rank of a node the old rank of that node whose place it takes: most experts in
/// common first, ties by lowest new, then old rank.
std::vector<int> match_ranks(std::span<const ExpertId> map,
                             std::span<const ExpertId> current,
                             int ranks,
                             int experts) {
  const std::size_t per_rank = map.size() / static_cast<std::size_t>(ranks);
  const auto num_ranks = static_cast<std::size_t>(ranks);
  std::vector<std::vector<int>> holders(static_cast<std::size_t>(experts));
  for (std::size_t slot = 0; slot < current.size(); ++slot) {
    if (current[slot] < 0) continue;
    std::vector<int>& h = holders[static_cast<std::size_t>(current[slot])];
    const int rank = static_cast<int>(slot / per_rank);
    if (h.empty() || h.back() != rank) h.push_back(rank);
  }
  std::vector<int> common(num_ranks * num_ranks, 0);
  for (std::size_t slot = 0; slot < map.size(); ++slot) {
    if (map[slot] < 0) continue;
    for (const int old : holders[static_cast<std::size_t>(map[slot])])
      ++common[slot / per_rank * num_ranks + static_cast<std::size_t>(old)];
  }
  std::vector<std::tuple<int, int, int>> pairs;  // -common, new, old
  for (int n = 0; n < ranks; ++n) {
    for (int o = 0; o < ranks; ++o) {
      const int c = common[static_cast<std::size_t>(n) * num_ranks + static_cast<std::size_t>(o)];
      if (c > 0) pairs.emplace_back(-c, n, o);
    }
  }
  std::sort(pairs.begin(), pairs.end());
  std::vector<int> place(num_ranks, -1);
  std::vector<bool> taken(num_ranks, false);
  for (const auto& [c, n, o] : pairs) {
    if (place[static_cast<std::size_t>(n)] >= 0 || taken[static_cast<std::size_t>(o)]) continue;
    place[static_cast<std::size_t>(n)] = o;
    taken[static_cast<std::size_t>(o)] = true;
  }
  std::size_t free = 0;
  for (int& o : place) {
    if (o >= 0) continue;
    while (taken[free]) ++free;
    o = static_cast<int>(free);
    taken[free] = true;
  }
  return place;
}

}  // namespace

void keep_slots(std::vector<ExpertId>& map, std::span<const ExpertId> current, int ranks) {
  const std::size_t per_rank = map.size() / static_cast<std::size_t>(ranks);
  std::vector<ExpertId> placed(per_rank);
  std::vector<ExpertId> rest;
  for (std::size_t first = 0; first < map.size(); first += per_rank) {
    rest.assign(map.begin() + static_cast<std::ptrdiff_t>(first),
                map.begin() + static_cast<std::ptrdiff_t>(first + per_rank));
    std::fill(placed.begin(), placed.end(), -1);
    for (std::size_t i = 0; i < per_rank; ++i) {
      const ExpertId expert = current[first + i];
      if (expert < 0) continue;
      if (const auto found = std::find(rest.begin(), rest.end(), expert); found != rest.end()) {
        placed[i] = expert;
        rest.erase(found);
      }
    }
    std::erase(rest, -1);
    auto next = rest.begin();
    for (std::size_t i = 0; i < per_rank; ++i) {
      if (placed[i] < 0 && next != rest.end()) placed[i] = *next++;
      map[first + i] = placed[i];
    }
  }
}

void keep_places(std::vector<ExpertId>& map, std::span<const ExpertId> current, const Topology& t) {
  ExpertId most = 0;
  for (const ExpertId e : map) most = std::max(most, e);
  for (const ExpertId e : current) most = std::max(most, e);
  const std::size_t per_node = map.size() / static_cast<std::size_t>(t.nodes);
  const std::size_t per_rank = map.size() / static_cast<std::size_t>(t.ranks);
  // Without groups to keep together any rank may take any other's place.
  const std::size_t domain = t.hierarchical() ? per_node : map.size();
  const std::vector<ExpertId> old = map;
  for (std::size_t first = 0; first < map.size(); first += domain) {
    const std::span<const ExpertId> mine{old.data() + first, domain};
    const std::vector<int> place = match_ranks(
        mine, current.subspan(first, domain), static_cast<int>(domain / per_rank), most + 1);
    for (std::size_t rank = 0; rank < place.size(); ++rank)
      std::copy_n(mine.begin() + static_cast<std::ptrdiff_t>(rank * per_rank),
                  per_rank,
                  map.begin() + static_cast<std::ptrdiff_t>(
                                    first + static_cast<std::size_t>(place[rank]) * per_rank));
  }
  keep_slots(map, current, t.ranks);
}

}  // namespace ferry
