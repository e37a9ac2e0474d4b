#include "ferry/balance/simulate.h"

#include <algorithm>
#include <numeric>

#include "ferry/core/error.h"

namespace ferry {

namespace {

void check(const Trace& trace, const SimulateOptions& o) {
  if (trace.empty()) fail<ConfigError>("the trace has no steps");
  if (o.interval < 1 || o.window < 1)
    fail<ConfigError>(
        "interval and window must be at least 1 step, not {} and {}", o.interval, o.window);
  for (const ExpertLoad& load : trace) {
    if (load.layers != trace.front().layers || load.experts != trace.front().experts)
      fail<ConfigError>("steps of the trace differ in layers or experts");
  }
}

/// Sum of the `window` steps before `end`.
ExpertLoad seen_before(const Trace& trace, int end, int window) {
  ExpertLoad sum(trace.front().layers, trace.front().experts);
  for (int step = std::max(0, end - window); step < end; ++step) {
    const std::vector<double>& counts = trace[static_cast<std::size_t>(step)].counts;
    std::transform(
        counts.begin(), counts.end(), sum.counts.begin(), sum.counts.begin(), std::plus<>());
  }
  return sum;
}

/// Experts that the busiest receiver gets, all layers together.
int most_received(const Plan& plan, int ranks) {
  std::vector<std::size_t> received(static_cast<std::size_t>(ranks), 0);
  for (const LayerMoves& layer : plan.moves)
    for (std::size_t r = 0; r < received.size(); ++r) received[r] += layer.ranks[r].receives.size();
  return static_cast<int>(*std::max_element(received.begin(), received.end()));
}

}  // namespace

Simulation simulate(const Trace& trace, const SimulateOptions& o) {
  check(trace, o);
  const int experts = trace.front().experts;
  const int layers = trace.front().layers;
  check_topology(o.topology, experts);
  const int redundant =
      settle_redundant(experts, o.topology.ranks, o.plan.redundant, o.plan.uneven);
  ExpertPlacement placement =
      ExpertPlacement::identity(layers, experts, o.topology.ranks, redundant);
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
    }
    const ExpertLoad& load = trace[static_cast<std::size_t>(step)];
    double balance = 0;
    for (int l = 0; l < layers; ++l) {
      const std::vector<double> loads =
          rank_loads(load.layer(l), placement.physical_to_logical(l), o.topology.ranks);
      balance += balancedness(loads) / layers;
      result.step_us += *std::max_element(loads.begin(), loads.end()) * o.row_us / steps;
    }
    result.balancedness.push_back(balance);
    result.mean_balancedness += balance / steps;
    result.min_balancedness = std::min(result.min_balancedness, balance);
  }
  result.bytes_moved = result.transfers * o.expert_bytes;
  return result;
}

}  // namespace ferry
