#include "ferry/balance/flow.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>

namespace ferry {

namespace {

using Index = std::size_t;

/// One replica of each rank that holds the expert: a second one there could not help.
std::vector<std::vector<Index>> slots_to_level(std::span<const ExpertId> map,
                                               Index experts,
                                               Index per_rank) {
  std::vector<std::vector<Index>> slots(experts);
  for (Index slot = 0; slot < map.size(); ++slot) {
    if (map[slot] < 0) continue;
    std::vector<Index>& mine = slots[static_cast<Index>(map[slot])];
    if (mine.empty() || mine.back() / per_rank != slot / per_rank) mine.push_back(slot);
  }
  std::erase_if(slots, [](const std::vector<Index>& s) { return s.size() < 2; });
  return slots;
}

}  // namespace

double water_level(std::span<double> bases, double total) {
  std::sort(bases.begin(), bases.end());
  double sum = total;
  for (Index i = 0; i < bases.size(); ++i) {
    sum += bases[i];
    const double level = sum / static_cast<double>(i + 1);
    if (i + 1 == bases.size() || level <= bases[i + 1]) return level;
  }
  return total;
}

std::vector<double> even_loads(std::span<const double> load, std::span<const ExpertId> map) {
  std::vector<int> copies(load.size(), 0);
  for (const ExpertId e : map)
    if (e >= 0) ++copies[static_cast<Index>(e)];
  std::vector<double> carried(map.size(), 0.0);
  for (Index slot = 0; slot < map.size(); ++slot) {
    if (map[slot] < 0) continue;
    const auto e = static_cast<Index>(map[slot]);
    carried[slot] = load[e] / copies[e];
  }
  return carried;
}

std::vector<double> sum_by_rank(std::span<const double> slot_loads, int ranks) {
  std::vector<double> loads(static_cast<Index>(ranks), 0.0);
  const Index per_rank = slot_loads.size() / loads.size();
  for (Index slot = 0; slot < slot_loads.size(); ++slot) loads[slot / per_rank] += slot_loads[slot];
  return loads;
}

std::vector<double> level_loads(std::span<const double> load,
                                std::span<const ExpertId> map,
                                int ranks) {
  constexpr int kMaxRounds = 200;
  constexpr double kStill = 1e-5;  // of the mean
  const Index per_rank = map.size() / static_cast<Index>(ranks);
  std::vector<double> carried = even_loads(load, map);
  const std::vector<std::vector<Index>> replicated = slots_to_level(map, load.size(), per_rank);
  for (const std::vector<Index>& slots : replicated) {  // second copies on a rank carry nothing
    const auto e = static_cast<Index>(map[slots.front()]);
    for (Index slot = 0; slot < map.size(); ++slot)
      if (map[slot] == static_cast<ExpertId>(e)) carried[slot] = 0;
    for (const Index slot : slots) carried[slot] = load[e] / static_cast<double>(slots.size());
  }
  std::vector<double> loads = sum_by_rank(carried, ranks);
  const double mean = std::accumulate(loads.begin(), loads.end(), 0.0) / static_cast<double>(ranks);
  std::vector<double> bases;
  for (int round = 0; round < kMaxRounds; ++round) {
    double largest_change = 0;
    for (const std::vector<Index>& slots : replicated) {
      bases.clear();
      for (const Index slot : slots) {
        loads[slot / per_rank] -= carried[slot];
        bases.push_back(loads[slot / per_rank]);
      }
      const double level = water_level(bases, load[static_cast<Index>(map[slots.front()])]);
      for (const Index slot : slots) {
        const double now = std::max(0.0, level - loads[slot / per_rank]);
        largest_change = std::max(largest_change, std::abs(now - carried[slot]));
        carried[slot] = now;
        loads[slot / per_rank] += now;
      }
    }
    if (largest_change <= kStill * mean) break;
  }
  return carried;
}

}  // namespace ferry
