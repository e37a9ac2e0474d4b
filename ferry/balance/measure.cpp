#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <queue>
#include <tuple>

#include "ferry/balance/flow.h"
#include "ferry/core/error.h"
#include "ferry/expert_load.h"

namespace ferry {

namespace {

/// Depth-first search over groups, heaviest first; a branch ends where it cannot beat the best.
class PackingSearch {
 public:
  PackingSearch(std::vector<double> groups, int nodes)
      : groups_(std::move(groups)),
        per_node_(static_cast<int>(groups_.size()) / nodes),
        order_(groups_.size()),
        load_(static_cast<std::size_t>(nodes), 0.0),
        count_(static_cast<std::size_t>(nodes), 0),
        node_of_(groups_.size(), 0) {
    std::iota(order_.begin(), order_.end(), 0);
    std::stable_sort(order_.begin(), order_.end(), [&](std::size_t a, std::size_t b) {
      return groups_[a] > groups_[b];
    });
  }

  GroupPacking run() {
    descend(0, 0.0);
    const double total = std::accumulate(groups_.begin(), groups_.end(), 0.0);
    double bound = best_.heaviest;
    if (visited_ >= kMaxVisited) {  // not exact: what is certain is the mean and the largest group
      double company = groups_[order_.front()];
      for (int i = 1; i < per_node_; ++i)
        company += groups_[order_[order_.size() - static_cast<std::size_t>(i)]];
      bound = std::max(total / static_cast<double>(load_.size()), company);
    }
    best_.heaviest_bound = bound;
    return best_;
  }

 private:
  static constexpr int kMaxVisited = 20000;

  void descend(std::size_t depth, double heaviest) {
    const bool found = !best_.node_of_group.empty();
    if (found && (heaviest >= best_.heaviest || ++visited_ >= kMaxVisited)) return;
    if (depth == order_.size()) {
      best_.node_of_group = node_of_;
      best_.heaviest = heaviest;
      return;
    }
    // Lightest node first, so that the first leaf is already good.
    std::vector<std::size_t> nodes(load_.size());
    std::iota(nodes.begin(), nodes.end(), 0);
    std::stable_sort(nodes.begin(), nodes.end(), [&](std::size_t a, std::size_t b) {
      return load_[a] < load_[b];
    });
    const std::size_t group = order_[depth];
    bool tried_empty = false;
    for (const std::size_t node : nodes) {
      if (count_[node] == per_node_ || (count_[node] == 0 && tried_empty)) continue;
      tried_empty = tried_empty || count_[node] == 0;  // empty nodes are all alike
      const double before = load_[node];
      load_[node] += groups_[group];
      ++count_[node];
      node_of_[group] = static_cast<int>(node);
      descend(depth + 1, std::max(heaviest, load_[node]));
      load_[node] = before;
      --count_[node];
    }
  }

  std::vector<double> groups_;
  int per_node_;
  std::vector<std::size_t> order_;  // groups, heaviest first
  std::vector<double> load_;        // of each node
  std::vector<int> count_;          // groups on each node
  std::vector<int> node_of_;
  GroupPacking best_;
  int visited_ = 0;
};

}  // namespace

ExpertLoad total_load(std::span<const ExpertLoad> steps) {
  if (steps.empty()) fail<ConfigError>("a window without steps");
  ExpertLoad sum = steps.front();
  for (const ExpertLoad& step : steps.subspan(1)) {
    if (step.layers != sum.layers || step.experts != sum.experts)
      fail<ConfigError>("steps differ in layers or experts");
    std::transform(step.counts.begin(),
                   step.counts.end(),
                   sum.counts.begin(),
                   sum.counts.begin(),
                   std::plus<>());
  }
  return sum;
}

std::vector<double> rank_loads(std::span<const double> load,
                               std::span<const ExpertId> slot_experts,
                               int ranks) {
  return sum_by_rank(even_loads(load, slot_experts), ranks);
}

std::vector<double> rank_loads(const LayerProblem& p, std::span<const ExpertId> slot_experts) {
  const int ranks = p.topology.ranks;
  return sum_by_rank(
      p.weighted ? level_loads(p.load, slot_experts, ranks) : even_loads(p.load, slot_experts),
      ranks);
}

double balancedness(std::span<const double> loads) {
  const double max = *std::max_element(loads.begin(), loads.end());
  if (max <= 0) return 1;
  const double mean =
      std::accumulate(loads.begin(), loads.end(), 0.0) / static_cast<double>(loads.size());
  return std::min(1.0, mean / max);
}

double mean_balancedness(const ExpertLoad& load, const ExpertPlacement& placement) {
  double sum = 0;
  int layers = 0;
  for (int l = 0; l < load.layers; ++l) {
    const std::vector<double> loads =
        rank_loads(load.layer(l), placement.physical_to_logical(l), placement.ranks());
    if (*std::max_element(loads.begin(), loads.end()) <= 0) continue;
    sum += balancedness(loads);
    ++layers;
  }
  return layers > 0 ? sum / layers : 1;
}

std::vector<int> replica_counts(std::span<const double> load, int replicas, int most) {
  std::vector<int> counts(load.size(), 1);
  using Share = std::tuple<double, int, int>;  // load/count, -count, -expert: the largest is next
  const auto share = [&](std::size_t e) {
    return Share(load[e] / counts[e], -counts[e], -static_cast<int>(e));
  };
  std::priority_queue<Share> next;
  if (most > 1)
    for (std::size_t e = 0; e < load.size(); ++e) next.push(share(e));
  for (int left = replicas - static_cast<int>(load.size()); left > 0 && !next.empty(); --left) {
    const auto e = static_cast<std::size_t>(-std::get<2>(next.top()));
    next.pop();
    if (++counts[e] < most) next.push(share(e));
  }
  return counts;
}

double best_balancedness(const LayerProblem& p) {
  const double total = std::accumulate(p.load.begin(), p.load.end(), 0.0);
  if (total <= 0) return 1;
  const Topology& t = p.topology;
  const std::vector<int> counts =
      replica_counts(p.load, p.replicas, t.hierarchical() ? t.ranks_per_node() : t.ranks);
  const double mean = total / t.ranks;
  double max = mean;
  for (std::size_t e = 0; e < p.load.size(); ++e) max = std::max(max, p.load[e] / counts[e]);
  if (t.hierarchical()) max = std::max(max, pack_groups(p).heaviest_bound / t.ranks_per_node());
  return mean / max;
}

int fewest_transfers(const LayerProblem& p, std::span<const ExpertId> current, double most) {
  constexpr double kSlack = 1e-6;  // rounding must not make it too high
  most *= 1 + kSlack;
  const double total = std::accumulate(p.load.begin(), p.load.end(), 0.0);
  if (total <= 0 || most <= 0) return 0;
  const auto ranks = static_cast<std::size_t>(p.topology.ranks);
  const std::size_t per_rank = current.size() / ranks;
  std::vector<int> holders(p.load.size(), 0);
  std::vector<double> capacity(ranks, 0.0);  // of a rank that receives nothing
  for (std::size_t r = 0; r < ranks; ++r) {
    std::vector<ExpertId> held(current.begin() + static_cast<std::ptrdiff_t>(r * per_rank),
                               current.begin() + static_cast<std::ptrdiff_t>((r + 1) * per_rank));
    std::sort(held.begin(), held.end());
    held.erase(std::unique(held.begin(), held.end()), held.end());
    for (const ExpertId e : held) {
      if (e < 0) continue;
      ++holders[static_cast<std::size_t>(e)];
      capacity[r] += p.load[static_cast<std::size_t>(e)];
    }
    capacity[r] = std::min(capacity[r], most);
  }
  int copies = 0;
  for (std::size_t e = 0; e < p.load.size(); ++e)
    copies += std::max(0, static_cast<int>(std::ceil(p.load[e] / most - kSlack)) - holders[e]);
  std::sort(capacity.begin(), capacity.end());
  double missing = total * (1 - kSlack) - std::accumulate(capacity.begin(), capacity.end(), 0.0);
  int receivers = 0;
  for (std::size_t r = 0; r < ranks && missing > 0; ++r, ++receivers) missing -= most - capacity[r];
  return std::max(copies, receivers);
}

GroupPacking pack_groups(const LayerProblem& p) {
  const auto num_groups = static_cast<std::size_t>(p.topology.groups);
  const std::size_t width = p.load.size() / num_groups;
  std::vector<double> groups(num_groups, 0.0);
  for (std::size_t e = 0; e < p.load.size(); ++e) groups[e / width] += p.load[e];
  return PackingSearch(std::move(groups), p.topology.nodes).run();
}

int count_duplicates(std::span<const ExpertId> slot_experts, int experts, int ranks) {
  const std::size_t per_rank = slot_experts.size() / static_cast<std::size_t>(ranks);
  std::vector<std::size_t> last_rank(static_cast<std::size_t>(experts), slot_experts.size());
  int duplicates = 0;
  for (std::size_t slot = 0; slot < slot_experts.size(); ++slot) {
    if (slot_experts[slot] < 0) continue;
    std::size_t& last = last_rank[static_cast<std::size_t>(slot_experts[slot])];
    if (last == slot / per_rank) ++duplicates;
    last = slot / per_rank;
  }
  return duplicates;
}

}  // namespace ferry
