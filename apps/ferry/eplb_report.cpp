#include "apps/ferry/eplb_report.h"

#include <fmt/core.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string_view>
#include <vector>

namespace ferry {

namespace {

/// A line of text for a number from 0 to 1 over time.
std::string sparkline(const std::vector<double>& values) {
  constexpr std::string_view kLevels = " .:-=+*#%@";
  constexpr std::size_t kWidth = 50;
  const std::size_t width = std::min(kWidth, values.size());
  std::string line;
  for (std::size_t i = 0; i < width; ++i) {
    const std::size_t first = i * values.size() / width;
    const std::size_t last = (i + 1) * values.size() / width;
    double sum = 0;
    for (std::size_t j = first; j < last; ++j) sum += values[j];
    line += kLevels[static_cast<std::size_t>(
        std::clamp(10 * sum / static_cast<double>(last - first), 0.0, 9.0))];
  }
  return line;
}

}  // namespace

std::string gigabytes(double bytes) { return fmt::format("{:.2f} GB", bytes / 1e9); }

void print_load_stats(const LoadStats& stats, std::size_t steps, const ExpertPlacement& placement) {
  fmt::print("{} steps, {} layers, {} experts in {} slots on {} ranks\n",
             steps,
             placement.layers(),
             placement.experts(),
             placement.slots(),
             placement.ranks());
  fmt::print(
      "  balancedness   {:.4f} in the last step; last 10: {:.4f}, 100: {:.4f}, 1000: {:.4f}; steps "
      "added up: {:.4f}\n",
      stats.current,
      stats.last_10,
      stats.last_100,
      stats.last_1000,
      stats.sum);
  const double mean =
      std::accumulate(stats.rank_load.begin(), stats.rank_load.end(), 0.0) / placement.ranks();
  fmt::print("  rank           rows   of the mean\n");
  for (std::size_t r = 0; r < stats.rank_load.size(); ++r) {
    const double of_mean = mean > 0 ? stats.rank_load[r] / mean : 0;
    fmt::print("  {:>4} {:>14.0f} {:>9.2f} {}\n",
               r,
               stats.rank_load[r],
               of_mean,
               std::string(static_cast<std::size_t>(std::min(20 * of_mean, 60.0)), '#'));
  }
  fmt::print("  hottest experts: layer, expert, part of the layer's rows, of a rank's, replicas\n");
  for (const HotExpert& e : stats.hottest)
    fmt::print("  {:>6} {:>6} {:>7.2f} % {:>7.2f} x {:>4}\n",
               e.layer,
               e.expert,
               100 * e.part,
               e.of_a_rank,
               e.replicas);
}

nlohmann::ordered_json load_stats_json(const LoadStats& stats,
                                       std::size_t steps,
                                       const ExpertPlacement& placement) {
  nlohmann::ordered_json hottest = nlohmann::ordered_json::array();
  for (const HotExpert& e : stats.hottest)
    hottest.push_back({{"layer", e.layer},
                       {"expert", e.expert},
                       {"part", e.part},
                       {"of_a_rank", e.of_a_rank},
                       {"replicas", e.replicas}});
  return {{"steps", steps},
          {"layers", placement.layers()},
          {"experts", placement.experts()},
          {"slots", placement.slots()},
          {"ranks", placement.ranks()},
          {"balancedness", stats.current},
          {"last_10_average_balancedness", stats.last_10},
          {"last_100_average_balancedness", stats.last_100},
          {"last_1000_average_balancedness", stats.last_1000},
          {"balancedness_of_sum", stats.sum},
          {"rank_rows", stats.rank_load},
          {"hottest", hottest}};
}

void print_simulation_head() {
  fmt::print(
      "{:<12} {:>8} {:>8} {:>6} {:>8} {:>10} {:>11} {:>10} {:>9} {:>9}  balancedness over time\n",
      "policy",
      "mean",
      "lowest",
      "plans",
      "moves",
      "moved",
      "step us",
      "+ moves us",
      "off rank",
      "off node");
}

void print_simulation(const std::string& policy, const Simulation& s) {
  fmt::print(
      "{:<12} {:>8.4f} {:>8.4f} {:>6} {:>8} {:>10} {:>11.0f} {:>10.0f} {:>7.1f} % {:>7.1f} %  "
      "|{}|\n",
      policy,
      s.mean_balancedness,
      s.min_balancedness,
      s.plans,
      s.transfers,
      gigabytes(s.bytes_moved),
      s.step_us,
      s.move_us,
      100 * s.off_rank,
      100 * s.off_node,
      sparkline(s.balancedness));
}

}  // namespace ferry
