#include "ferry/planner.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "ferry/balance/flow.h"
#include "ferry/balance/incremental.h"
#include "ferry/balance/policies.h"
#include "ferry/core/error.h"
#include "ferry/core/types.h"

namespace ferry {

namespace {

constexpr std::array kPolicies{
    Policy::identity, Policy::deepseek, Policy::greedy, Policy::incremental, Policy::risk};

void check_load(const ExpertLoad& load) {
  if (load.layers < 1 || load.experts < 1)
    fail<ConfigError>("load of {} layers and {} experts", load.layers, load.experts);
  FERRY_CHECK(load.counts.size() ==
                  static_cast<std::size_t>(load.layers) * static_cast<std::size_t>(load.experts),
              "{} counts",
              load.counts.size());
  for (std::size_t i = 0; i < load.counts.size(); ++i) {
    if (std::isfinite(load.counts[i]) && load.counts[i] >= 0) continue;
    fail<ConfigError>("load of layer {}, expert {} is {}: must be finite and not negative",
                      i / static_cast<std::size_t>(load.experts),
                      i % static_cast<std::size_t>(load.experts),
                      load.counts[i]);
  }
}

void check_current(const ExpertPlacement& current, const ExpertLoad& load, int ranks) {
  if (current.layers() == load.layers && current.experts() == load.experts &&
      current.ranks() == ranks) {
    return;
  }
  fail<ConfigError>(
      "the current placement has {} layers, {} experts, {} ranks; the plan is for {}, {}, {}",
      current.layers(),
      current.experts(),
      current.ranks(),
      load.layers,
      load.experts,
      ranks);
}

std::vector<LayerProblem> problems(const ExpertLoad& load,
                                   const Topology& topology,
                                   const PlanOptions& options,
                                   int redundant) {
  const auto per_rank = static_cast<int>(ceil_div(load.experts + redundant, topology.ranks));
  LayerProblem problem{{}, topology, per_rank, load.experts + redundant, options.weighted};
  if (options.policy == Policy::deepseek) problem.replicas = problem.slots();
  if (topology.hierarchical() &&
      topology.ranks_per_node() * per_rank < load.experts / topology.nodes) {
    fail<ConfigError>("{} slots of a node cannot hold its {} experts",
                      topology.ranks_per_node() * per_rank,
                      load.experts / topology.nodes);
  }
  std::vector<LayerProblem> layers(static_cast<std::size_t>(load.layers), problem);
  for (int l = 0; l < load.layers; ++l) layers[static_cast<std::size_t>(l)].load = load.layer(l);
  return layers;
}

/// One layer of the window as at most kSamples equal runs of steps: [sample][expert].
std::vector<float> samples_of(std::span<const ExpertLoad> window, int layer) {
  constexpr std::size_t kSamples = 16;
  const std::size_t samples = std::min(kSamples, window.size());
  const auto experts = static_cast<std::size_t>(window.front().experts);
  std::vector<float> result(samples * experts, 0.0F);
  for (std::size_t step = 0; step < window.size(); ++step) {
    float* const sample = result.data() + step * samples / window.size() * experts;
    const std::span<const double> counts = window[step].layer(layer);
    for (std::size_t e = 0; e < experts; ++e) sample[e] += static_cast<float>(counts[e]);
  }
  return result;
}

/// Whether each group of experts lies on one node.
bool keeps_groups(std::span<const ExpertId> map, const LayerProblem& p) {
  const std::size_t per_node = map.size() / static_cast<std::size_t>(p.topology.nodes);
  const std::size_t group_size = p.load.size() / static_cast<std::size_t>(p.topology.groups);
  std::vector<int> node_of(static_cast<std::size_t>(p.topology.groups), -1);
  for (std::size_t slot = 0; slot < map.size(); ++slot) {
    if (map[slot] < 0) continue;
    int& node = node_of[static_cast<std::size_t>(map[slot]) / group_size];
    if (node >= 0 && node != static_cast<int>(slot / per_node)) return false;
    node = static_cast<int>(slot / per_node);
  }
  return true;
}

/// The best that a placement of the same kind as `map` can reach: with or without groups on nodes.
double bound_for(std::span<const ExpertId> map, LayerProblem p) {
  if (p.topology.hierarchical() && !keeps_groups(map, p)) p.topology.groups = p.topology.nodes = 1;
  return best_balancedness(p);
}

/// A fresh plan near the current placement; the current one where that is no worse and as sound.
std::vector<ExpertId> greedy_from(const LayerProblem& p, std::span<const ExpertId> current) {
  std::vector<ExpertId> map = greedy_layer(p);
  polish_layer(p, map);
  if (!p.samples.empty()) {
    spread_risk(p, map);
    if (current.size() == map.size()) keep_places(map, current, p.topology);
    return map;
  }
  if (current.size() != map.size()) return map;
  keep_places(map, current, p.topology);
  const auto filled = [](std::span<const ExpertId> m) {
    return std::count_if(m.begin(), m.end(), [](ExpertId e) { return e >= 0; });
  };
  const int ranks = p.topology.ranks;
  const bool sound = count_duplicates(current, p.experts(), ranks) == 0 &&
                     filled(current) <= p.replicas &&
                     (!p.topology.hierarchical() || keeps_groups(current, p));
  if (sound && balancedness(rank_loads(p, current)) >= balancedness(rank_loads(p, map)))
    map.assign(current.begin(), current.end());
  return map;
}

std::vector<std::vector<ExpertId>> make_maps(const std::vector<LayerProblem>& layers,
                                             const ExpertPlacement& current,
                                             const PlanOptions& options) {
  if (options.policy == Policy::incremental) return incremental_maps(layers, current, options);
  std::vector<std::vector<ExpertId>> maps;
  maps.reserve(layers.size());
  for (const LayerProblem& problem : layers) {
    const auto l = static_cast<int>(maps.size());
    if (options.policy == Policy::identity) {
      const Placement identity = Placement::identity(
          problem.experts(), problem.topology.ranks, problem.replicas - problem.experts());
      maps.emplace_back(identity.expert_of_slots().begin(), identity.expert_of_slots().end());
    } else if (options.policy == Policy::deepseek) {
      maps.push_back(deepseek_layer(problem));
    } else {
      maps.push_back(greedy_from(problem, current.physical_to_logical(l)));
    }
  }
  return maps;
}

/// Everything about the plan that follows from its placement.
void assess(Plan& plan, const std::vector<LayerProblem>& layers, const ExpertPlacement& current) {
  const Topology& t = layers.front().topology;
  plan.moves.reserve(layers.size());
  const auto idle = [](const LayerProblem& p) {  // dense layers have no load
    return std::all_of(p.load.begin(), p.load.end(), [](double count) { return count <= 0; });
  };
  const auto busy = static_cast<double>(static_cast<std::ptrdiff_t>(layers.size()) -
                                        std::count_if(layers.begin(), layers.end(), idle));
  if (busy > 0) plan.balance = {0, 0, 0};
  for (const LayerProblem& p : layers) {
    const auto l = static_cast<int>(plan.moves.size());
    const auto before = current.physical_to_logical(l);
    const auto after = plan.placement.physical_to_logical(l);
    plan.moves.push_back(make_moves(current.layer(l), plan.placement.layer(l), t.nodes));
    const std::vector<double> loads = rank_loads(p, after);
    plan.layers.push_back(
        {balancedness(rank_loads(p, before)), balancedness(loads), bound_for(after, p)});
    const double share = busy > 0 && !idle(p) ? 1 / busy : 0;
    plan.balance.before += plan.layers.back().before * share;
    plan.balance.after += plan.layers.back().after * share;
    plan.balance.bound += plan.layers.back().bound * share;
    plan.transfers += plan.moves.back().num_transfers();
    if (before.size() == after.size()) {
      const double most = *std::max_element(loads.begin(), loads.end());
      plan.transfers_bound += fewest_transfers(p, before, most);
    }
    plan.duplicates += count_duplicates(after, p.experts(), t.ranks);
  }
}

}  // namespace

Policy parse_policy(std::string_view name) {
  for (const Policy policy : kPolicies)
    if (policy_name(policy) == name) return policy;
  fail<ConfigError>("unknown policy \"{}\": use one of {}", name, kPolicyNames);
}

std::string_view policy_name(Policy policy) {
  switch (policy) {
    case Policy::identity:
      return "identity";
    case Policy::deepseek:
      return "deepseek";
    case Policy::greedy:
      return "greedy";
    case Policy::incremental:
      return "incremental";
    case Policy::risk:
      return "risk";
  }
  return "";
}

Plan plan_placement(const ExpertLoad& load,
                    const std::optional<ExpertPlacement>& current,
                    const Topology& topology,
                    const PlanOptions& options) {
  return plan_placement(std::span(&load, 1), current, topology, options);
}

std::vector<std::vector<float>> level_shares(const ExpertLoad& load,
                                             const ExpertPlacement& placement) {
  FERRY_CHECK(load.layers == placement.layers() && load.experts == placement.experts(),
              "load of {} layers and {} experts, placement of {} and {}",
              load.layers,
              load.experts,
              placement.layers(),
              placement.experts());
  std::vector<std::vector<float>> shares;
  for (int l = 0; l < load.layers; ++l) {
    const std::vector<double> carried =
        level_loads(load.layer(l), placement.physical_to_logical(l), placement.ranks());
    shares.emplace_back(carried.begin(), carried.end());
  }
  return shares;
}

Plan plan_placement(std::span<const ExpertLoad> window,
                    const std::optional<ExpertPlacement>& given,
                    const Topology& topology,
                    const PlanOptions& options) {
  for (const ExpertLoad& step : window) check_load(step);
  const ExpertLoad load = total_load(window);
  check_topology(topology, load.experts);
  const int redundant =
      settle_redundant(load.experts, topology.ranks, options.redundant, options.uneven);
  std::vector<LayerProblem> layers = problems(load, topology, options, redundant);
  std::vector<std::vector<float>> samples;
  if (options.policy == Policy::risk && window.size() > 1) {
    for (int l = 0; l < load.layers; ++l) samples.push_back(samples_of(window, l));
    for (std::size_t l = 0; l < layers.size(); ++l) layers[l].samples = samples[l];
  }
  if (given) check_current(*given, load, topology.ranks);
  const ExpertPlacement current =
      given ? *given
            : ExpertPlacement::identity(load.layers, load.experts, topology.ranks, redundant);
  if (options.policy == Policy::incremental && current.slots() != layers.front().slots()) {
    fail<ConfigError>("incremental needs a current placement of {} slots, this one has {}",
                      layers.front().slots(),
                      current.slots());
  }
  Plan plan{ExpertPlacement(make_maps(layers, current, options), load.experts, topology.ranks)};
  assess(plan, layers, current);
  if (options.weighted) plan.shares = level_shares(load, plan.placement);
  return plan;
}

}  // namespace ferry
