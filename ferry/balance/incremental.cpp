#include "ferry/balance/incremental.h"

#include <queue>
#include <tuple>

#include "ferry/balance/layer_search.h"
#include "ferry/balance/policies.h"

namespace ferry {

void polish_layer(const LayerProblem& p, std::vector<ExpertId>& map) {
  constexpr double kTolerance = 0.002;
  if (balancedness(rank_loads(p, map)) >= best_balancedness(p) - kTolerance) return;
  LayerSearch search(p, map, {.tolerance = kTolerance});
  for (int step = 0; step < p.slots(); ++step) {
    const Step next = search.best_step();
    if (!next.found()) break;
    search.apply(next);
  }
  map = search.map();
}

std::vector<std::vector<ExpertId>> incremental_maps(const std::vector<LayerProblem>& layers,
                                                    const ExpertPlacement& current,
                                                    const PlanOptions& options) {
  std::vector<LayerSearch> searches;
  searches.reserve(layers.size());
  using Index = std::size_t;
  const LayerSearch::Options limits{.tolerance = options.tolerance,
                                    .pair_limit = options.max_transfers_per_pair};
  std::vector<Step> next(layers.size());
  std::priority_queue<std::tuple<double, int>> queue;  // gain rate, -layer
  const auto look = [&](Index l) {
    next[l] = searches[l].best_step();
    if (next[l].found())
      queue.emplace(next[l].gain_rate * searches[l].weight(), -static_cast<int>(l));
  };
  for (Index l = 0; l < layers.size(); ++l) {
    searches.emplace_back(layers[l], current.physical_to_logical(static_cast<int>(l)), limits);
    look(l);
  }
  // The potential falls with every step, so this ends; the limit is for loads that fall by crumbs.
  const Index limit = 4 * layers.size() * static_cast<Index>(layers.front().slots());
  int transfers = 0;
  for (Index step = 0; step < limit && !queue.empty(); ++step) {
    const auto l = static_cast<Index>(-std::get<1>(queue.top()));
    queue.pop();
    if (options.max_transfers > 0 && transfers + next[l].transfers > options.max_transfers)
      continue;
    transfers += next[l].transfers;
    searches[l].apply(next[l]);
    look(l);
  }
  std::vector<std::vector<ExpertId>> maps;
  maps.reserve(layers.size());
  for (LayerSearch& search : searches) {
    for (Step saving = search.saving_step(); saving.found(); saving = search.saving_step())
      search.apply(saving);
    maps.push_back(search.map());
    keep_slots(maps.back(),
               current.physical_to_logical(static_cast<int>(maps.size()) - 1),
               layers.front().topology.ranks);
  }
  return maps;
}

}  // namespace ferry
