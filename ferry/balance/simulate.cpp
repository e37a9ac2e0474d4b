#include "ferry/balance/simulate.h"

#include <algorithm>
#include <span>

#include "ferry/core/error.h"

namespace ferry {

namespace {

void check(const Trace& trace, const SimulateOptions& o) {
  if (trace.empty()) fail<ConfigError>("the trace has no steps");
  if (o.interval < 1 || o.window < 1)
    fail<ConfigError>(
        "interval and window must be at least 1 step, not {} and {}", o.interval, o.window);
  if (o.share_interval < 0)
    fail<ConfigError>("share interval {}: must be at least 0", o.share_interval);
  for (const ExpertLoad& load : trace) {
    if (load.layers != trace.front().layers || load.experts != trace.front().experts)
      fail<ConfigError>("steps of the trace differ in layers or experts");
  }
}

/// The `window` steps before `end`.
std::span<const ExpertLoad> seen_before(const Trace& trace, int end, int window) {
  const int first = std::max(0, end - window);
  return std::span(trace).subspan(static_cast<std::size_t>(first),
                                  static_cast<std::size_t>(end - first));
}

/// Experts that the busiest receiver gets, all layers together.
int most_received(const Plan& plan, int ranks) {
  std::vector<std::size_t> received(static_cast<std::size_t>(ranks), 0);
  for (const LayerMoves& layer : plan.moves)
    for (std::size_t r = 0; r < received.size(); ++r) received[r] += layer.ranks[r].receives.size();
  return static_cast<int>(*std::max_element(received.begin(), received.end()));
}

/// A layer as it runs: which parts its replicas take, and how much of each expert travels.
struct RunningLayer {
  Placement placement;
  std::vector<double> off_rank;  // [E] part of the expert's rows that leave their rank
  std::vector<double> off_node;
};

RunningLayer running(const Placement& maps,
                     const std::vector<float>& shares,
                     const SimulateOptions& o) {
  const auto experts = static_cast<std::size_t>(maps.experts());
  RunningLayer layer{maps.choosing({.shares = shares}),
                     std::vector<double>(experts, 0.0),
                     std::vector<double>(experts, 0.0)};
  const int ranks = maps.ranks();
  for (Rank source = 0; source < ranks; ++source) {
    const Placement mine =
        o.nearest
            ? maps.choosing(
                  {.shares = shares, .source = source, .nearest = true, .nodes = o.topology.nodes})
            : layer.placement;
    for (ExpertId e = 0; e < maps.experts(); ++e) {
      const std::span<const SlotId> replicas = maps.replicas(e);
      for (std::size_t i = 0; i < replicas.size(); ++i) {
        const Rank rank = maps.rank_of(replicas[i]);
        const double part = mine.part(e, i) / ranks;
        const int per_node = o.topology.ranks_per_node();
        if (rank != source) layer.off_rank[static_cast<std::size_t>(e)] += part;
        if (rank / per_node != source / per_node)
          layer.off_node[static_cast<std::size_t>(e)] += part;
      }
    }
  }
  return layer;
}

std::vector<RunningLayer> running(const ExpertPlacement& placement,
                                  const std::vector<std::vector<float>>& shares,
                                  const SimulateOptions& o) {
  std::vector<RunningLayer> layers;
  for (int l = 0; l < placement.layers(); ++l) {
    layers.push_back(
        running(placement.layer(l),
                shares.empty() ? std::vector<float>{} : shares[static_cast<std::size_t>(l)],
                o));
  }
  return layers;
}

std::vector<double> loads_of(const RunningLayer& layer, std::span<const double> load) {
  std::vector<double> loads(static_cast<std::size_t>(layer.placement.ranks()), 0.0);
  for (ExpertId e = 0; e < layer.placement.experts(); ++e) {
    const std::span<const SlotId> replicas = layer.placement.replicas(e);
    for (std::size_t i = 0; i < replicas.size(); ++i)
      loads[static_cast<std::size_t>(layer.placement.rank_of(replicas[i]))] +=
          load[static_cast<std::size_t>(e)] * layer.placement.part(e, i);
  }
  return loads;
}

/// Adds one step to the means of `result`; `weight`: one over the number of steps.
void run_step(const std::vector<RunningLayer>& layers,
              const ExpertLoad& load,
              const SimulateOptions& o,
              double weight,
              Simulation& result) {
  double balance = 0;
  int busy = 0;
  double rows = 0;
  double off_rank = 0;
  double off_node = 0;
  for (int l = 0; l < load.layers; ++l) {
    const RunningLayer& layer = layers[static_cast<std::size_t>(l)];
    const std::span<const double> counts = load.layer(l);
    const std::vector<double> loads = loads_of(layer, counts);
    const double most = *std::max_element(loads.begin(), loads.end());
    if (most <= 0) continue;
    balance += balancedness(loads);
    ++busy;
    result.step_us += most * o.row_us * weight;
    for (std::size_t e = 0; e < counts.size(); ++e) {
      rows += counts[e];
      off_rank += counts[e] * layer.off_rank[e];
      off_node += counts[e] * layer.off_node[e];
    }
  }
  balance = busy > 0 ? balance / busy : 1;
  result.balancedness.push_back(balance);
  result.mean_balancedness += balance * weight;
  result.min_balancedness = std::min(result.min_balancedness, balance);
  if (rows <= 0) return;
  result.off_rank += off_rank / rows * weight;
  result.off_node += off_node / rows * weight;
}

}  // namespace

Simulation simulate(const Trace& trace, const SimulateOptions& o) {
  check(trace, o);
  const int experts = trace.front().experts;
  check_topology(o.topology, experts);
  const int redundant =
      settle_redundant(experts, o.topology.ranks, o.plan.redundant, o.plan.uneven);
  ExpertPlacement placement =
      ExpertPlacement::identity(trace.front().layers, experts, o.topology.ranks, redundant);
  std::vector<RunningLayer> layers = running(placement, {}, o);
  Simulation result;
  const auto steps = static_cast<double>(trace.size());
  for (int step = 0; step < static_cast<int>(trace.size()); ++step) {
    if (step > 0 && step % o.interval == 0) {
      Plan plan = plan_placement(seen_before(trace, step, o.window), placement, o.topology, o.plan);
      ++result.plans;
      result.transfers += plan.transfers;
      result.move_us +=
          most_received(plan, o.topology.ranks) * o.expert_bytes / o.bytes_per_us / steps;
      placement = std::move(plan.placement);
      layers = running(placement, plan.shares, o);
    } else if (o.plan.weighted && step > 0 && o.share_interval > 0 &&
               step % o.share_interval == 0) {
      const ExpertLoad load = total_load(seen_before(trace, step, o.share_interval));
      layers = running(placement, level_shares(load, placement), o);
    }
    run_step(layers, trace[static_cast<std::size_t>(step)], o, 1 / steps, result);
  }
  result.bytes_moved = result.transfers * o.expert_bytes;
  return result;
}

}  // namespace ferry
