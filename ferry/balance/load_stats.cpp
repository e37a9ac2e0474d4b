#include "ferry/balance/load_stats.h"

#include <algorithm>
#include <numeric>
#include <span>
#include <tuple>

#include "ferry/core/error.h"

namespace ferry {

namespace {

double total(std::span<const double> values) {
  return std::accumulate(values.begin(), values.end(), 0.0);
}

std::vector<HotExpert> hottest_of(const ExpertLoad& load,
                                  const ExpertPlacement& placement,
                                  int num_hottest) {
  std::vector<HotExpert> all;
  for (int l = 0; l < load.layers; ++l) {
    const std::span<const double> counts = load.layer(l);
    const double sum = total(counts);
    if (sum <= 0) continue;
    for (ExpertId e = 0; e < load.experts; ++e) {
      const double part = counts[static_cast<std::size_t>(e)] / sum;
      all.push_back({l, e, part, part * placement.ranks(), placement.replica_count(l, e)});
    }
  }
  const std::size_t kept = std::min(all.size(), static_cast<std::size_t>(num_hottest));
  std::partial_sort(all.begin(),
                    all.begin() + static_cast<std::ptrdiff_t>(kept),
                    all.end(),
                    [](const HotExpert& a, const HotExpert& b) {
                      return std::tuple(-a.part, a.layer, a.expert) <
                             std::tuple(-b.part, b.layer, b.expert);
                    });
  all.resize(kept);
  return all;
}

}  // namespace

LoadStats load_stats(const Trace& steps, const ExpertPlacement& placement, int num_hottest) {
  const ExpertLoad sum = total_load(steps);
  if (sum.layers != placement.layers() || sum.experts != placement.experts()) {
    fail<ConfigError>("load of {} layers and {} experts, a placement of {} and {}",
                      sum.layers,
                      sum.experts,
                      placement.layers(),
                      placement.experts());
  }
  LoadStats stats;
  std::vector<double> balance;
  for (const ExpertLoad& step : steps) balance.push_back(mean_balancedness(step, placement));
  const auto last = [&](std::size_t n) {
    n = std::min(n, balance.size());
    return total(std::span(balance).last(n)) / static_cast<double>(n);
  };
  stats.current = balance.back();
  stats.last_10 = last(10);
  stats.last_100 = last(100);
  stats.last_1000 = last(1000);
  stats.sum = mean_balancedness(sum, placement);
  stats.rank_load.assign(static_cast<std::size_t>(placement.ranks()), 0.0);
  for (int l = 0; l < sum.layers; ++l) {
    const std::vector<double> loads =
        rank_loads(sum.layer(l), placement.physical_to_logical(l), placement.ranks());
    std::transform(loads.begin(),
                   loads.end(),
                   stats.rank_load.begin(),
                   stats.rank_load.begin(),
                   std::plus<>());
  }
  stats.hottest = hottest_of(sum, placement, num_hottest);
  return stats;
}

}  // namespace ferry
