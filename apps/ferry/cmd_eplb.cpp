// ferry eplb: plan a placement of experts from recorded load, replay traces against the planner's
// policies, show how load lies on the ranks. Needs no model and no ranks.
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "apps/ferry/command.h"
#include "apps/ferry/eplb_dump.h"
#include "ferry/balance/heat_map.h"
#include "ferry/balance/planner.h"
#include "ferry/balance/simulate.h"
#include "ferry/core/error.h"

namespace ferry {

namespace {

using Json = nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

constexpr int kMaxRanks = 1024;

struct EplbOptions {
  std::string stats;
  int ranks = 1;
  int nodes = 1;
  int groups = 1;
  int redundant = -1;  // -1: as the dump's placement, else none
  std::string policy = "greedy";
  bool strict = false;
  bool adjust = false;
  int max_transfers = 0;
  int max_transfers_per_pair = 0;
  double expert_bytes = 3.0 * 7168 * 2048;  // an expert of DeepSeek-V3 in FP8
  bool json = false;
  std::string plot;

  // simulate
  std::string trace = "zipf";
  std::vector<std::string> policies{"identity", "deepseek", "greedy", "incremental"};
  TraceOptions synthetic;
  int interval = 50;
  int window = 50;
  double row_us = 1;
  double gigabytes_per_s = 10;

  Topology topology() const { return {ranks, nodes, groups}; }
};

/// A dump, the placement it was recorded under, and options that agree with both.
struct Input {
  LoadDump dump;
  ExpertLoad load;
  std::optional<ExpertPlacement> current;
};

PlanOptions plan_options(const EplbOptions& o, const std::string& policy, int experts) {
  if (o.ranks < 1 || o.ranks > kMaxRanks)
    fail<ConfigError>("--ranks must be 1 to {}, not {}", kMaxRanks, o.ranks);
  if (o.max_transfers < 0 || o.max_transfers_per_pair < 0)
    fail<ConfigError>("--max-transfers and --max-transfers-per-pair must be at least 0");
  if (!(o.expert_bytes > 0)) fail<ConfigError>("--expert-bytes must be more than 0");
  PlanOptions options{.policy = parse_policy(policy), .redundant = std::max(0, o.redundant)};
  options.uneven = o.strict   ? UnevenSlots::strict
                   : o.adjust ? UnevenSlots::adjust
                              : UnevenSlots::allow_empty;
  options.max_transfers = o.max_transfers;
  options.max_transfers_per_pair = o.max_transfers_per_pair;
  const int settled = settle_redundant(experts, o.ranks, options.redundant, options.uneven);
  if (settled != options.redundant)
    spdlog::info(
        "{} redundant experts instead of {}: no slot stays empty", settled, options.redundant);
  options.redundant = settled;
  return options;
}

Input read_input(EplbOptions& o) {
  Input input{read_load_dump(o.stats), {}, {}};
  input.load = total_load(input.dump.steps);
  if (!input.dump.physical_to_logical_map) return input;
  const auto& map = *input.dump.physical_to_logical_map;
  if (o.ranks < 1 || map.front().size() % static_cast<std::size_t>(o.ranks) != 0) {
    spdlog::warn("the {} slots of {} do not divide by {} ranks: planning from the identity",
                 map.front().size(),
                 o.stats,
                 o.ranks);
    return input;
  }
  input.current.emplace(map, input.load.experts, o.ranks);
  if (o.redundant < 0) {
    const auto filled =
        std::count_if(map.front().begin(), map.front().end(), [](ExpertId e) { return e >= 0; });
    o.redundant = static_cast<int>(filled) - input.load.experts;
  }
  return input;
}

std::vector<std::vector<ExpertId>> maps_of(const ExpertPlacement& placement) {
  std::vector<std::vector<ExpertId>> maps;
  for (int l = 0; l < placement.layers(); ++l) {
    const auto map = placement.physical_to_logical(l);
    maps.emplace_back(map.begin(), map.end());
  }
  return maps;
}

void write_file(const std::string& path, const std::string& text) {
  std::ofstream out(path, std::ios::binary);
  if (!(out << text) || !out.flush()) fail<Error>("{}: cannot be written", path);
}

std::string gigabytes(double bytes) { return fmt::format("{:.2f} GB", bytes / 1e9); }

int plan(EplbOptions o) {
  const Input input = read_input(o);
  const PlanOptions options = plan_options(o, o.policy, input.load.experts);
  const auto start = Clock::now();
  const Plan made = plan_placement(input.load, input.current, o.topology(), options);
  const std::chrono::duration<double, std::micro> taken = Clock::now() - start;
  const double bytes = made.transfers * o.expert_bytes;
  if (o.json) {
    const Json report{{"policy", o.policy},
                      {"ranks", o.ranks},
                      {"nodes", o.nodes},
                      {"groups", o.groups},
                      {"redundant", options.redundant},
                      {"balancedness_before", made.balance.before},
                      {"balancedness_after", made.balance.after},
                      {"bound", made.balance.bound},
                      {"moves", made.transfers},
                      {"bytes_moved", bytes},
                      {"duplicates", made.duplicates},
                      {"physical_to_logical_map", maps_of(made.placement)},
                      {"plan_us", taken.count()}};
    fmt::print("{}\n", report.dump());
    return 0;
  }
  const ExpertPlacement& p = made.placement;
  fmt::print("{} layers, {} experts + {} redundant on {} ranks of {} slots, policy {}\n",
             p.layers(),
             p.experts(),
             options.redundant,
             o.ranks,
             p.slots_per_rank(),
             o.policy);
  fmt::print(
      "  balancedness   {:.4f} -> {:.4f}, best possible {:.4f} (mean over max of the ranks)\n",
      made.balance.before,
      made.balance.after,
      made.balance.bound);
  fmt::print("  moves          {} experts between ranks, {}\n", made.transfers, gigabytes(bytes));
  if (made.duplicates > 0)
    fmt::print("  duplicates     {} slots hold an expert that their rank has already\n",
               made.duplicates);
  fmt::print("  planned in     {:.2f} ms\n", taken.count() / 1000);
  return 0;
}

int show(EplbOptions o) {
  const Input input = read_input(o);
  const PlanOptions options = plan_options(o, o.policy, input.load.experts);
  const Plan made = plan_placement(input.load, input.current, o.topology(), options);
  const ExpertPlacement before =
      input.current ? *input.current
                    : ExpertPlacement::identity(
                          input.load.layers, input.load.experts, o.ranks, options.redundant);
  const std::vector<HeatMap> maps{make_heat_map("before", input.load, before),
                                  make_heat_map("after " + o.policy, input.load, made.placement)};
  if (!o.plot.empty()) write_file(o.plot, heat_map_svg(maps));
  for (const HeatMap& map : maps) fmt::print("{}\n", heat_map_text(map));
  fmt::print("balancedness {:.4f} -> {:.4f}, best possible {:.4f}\n",
             made.balance.before,
             made.balance.after,
             made.balance.bound);
  return 0;
}

Trace trace_of(const EplbOptions& o) {
  std::error_code code;
  if (std::filesystem::exists(o.trace, code)) return read_load_dump(o.trace).steps;
  TraceOptions options = o.synthetic;
  options.kind = parse_trace_kind(o.trace);
  return make_trace(options);
}

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

int run_simulation(const EplbOptions& o) {
  if (!(o.row_us > 0) || !(o.gigabytes_per_s > 0))
    fail<ConfigError>("--row-us and --gbytes-per-s must be more than 0");
  const Trace trace = trace_of(o);
  Json report = Json::array();
  if (!o.json)
    fmt::print("{:<12} {:>8} {:>8} {:>6} {:>8} {:>10} {:>11} {:>10}  balancedness over time\n",
               "policy",
               "mean",
               "lowest",
               "plans",
               "moves",
               "moved",
               "step us",
               "+ moves us");
  for (const std::string& policy : o.policies) {
    SimulateOptions options{.topology = o.topology(),
                            .plan = plan_options(o, policy, trace.front().experts),
                            .interval = o.interval,
                            .window = o.window,
                            .expert_bytes = o.expert_bytes,
                            .row_us = o.row_us,
                            .bytes_per_us = o.gigabytes_per_s * 1e3};
    const Simulation s = simulate(trace, options);
    if (o.json) {
      report.push_back({{"policy", policy},
                        {"trace", o.trace},
                        {"steps", trace.size()},
                        {"ranks", o.ranks},
                        {"redundant", options.plan.redundant},
                        {"balancedness_mean", s.mean_balancedness},
                        {"balancedness_min", s.min_balancedness},
                        {"plans", s.plans},
                        {"moves", s.transfers},
                        {"bytes_moved", s.bytes_moved},
                        {"step_us", s.step_us},
                        {"move_us", s.move_us},
                        {"balancedness", s.balancedness}});
      continue;
    }
    fmt::print("{:<12} {:>8.4f} {:>8.4f} {:>6} {:>8} {:>10} {:>11.0f} {:>10.0f}  |{}|\n",
               policy,
               s.mean_balancedness,
               s.min_balancedness,
               s.plans,
               s.transfers,
               gigabytes(s.bytes_moved),
               s.step_us,
               s.move_us,
               sparkline(s.balancedness));
  }
  if (o.json) fmt::print("{}\n", report.dump());
  return 0;
}

void add_common(CLI::App& command, EplbOptions& o) {
  const auto number = [&](const char* name, int& value, const char* help) {
    command.add_option(name, value, help)->type_name("N")->capture_default_str();
  };
  command.add_option("--ranks", o.ranks, "Ranks that the experts are spread over")
      ->type_name("N")
      ->required();
  number("--nodes", o.nodes, "Nodes that the ranks are on, equally many each");
  number("--groups", o.groups, "Groups of experts to keep on one node each");
  command.add_option("--redundant", o.redundant, "Replicas beyond one of each expert (default: 0)")
      ->type_name("N")
      ->check(CLI::NonNegativeNumber);
  auto* strict = command.add_flag("--strict", o.strict, "Refuse slots that would stay empty");
  command.add_flag("--adjust", o.adjust, "Fewer redundant experts, so that no slot stays empty")
      ->excludes(strict);
  number("--max-transfers", o.max_transfers, "incremental: experts that may travel (0 = any)");
  number("--max-transfers-per-pair",
         o.max_transfers_per_pair,
         "incremental: the same for two ranks and a layer");
  command.add_option("--expert-bytes", o.expert_bytes, "Weights of one expert (DeepSeek-V3, FP8)")
      ->type_name("BYTES");
}

void add_stats(CLI::App& command, EplbOptions& o) {
  command
      .add_option("--stats", o.stats, "JSON with logical_count and perhaps physical_to_logical_map")
      ->type_name("FILE")
      ->required();
  command.add_option("--policy", o.policy, fmt::format("One of {}", kPolicyNames))
      ->type_name("P")
      ->capture_default_str();
}

void add_trace(CLI::App& command, EplbOptions& o) {
  command.add_option("--trace", o.trace, fmt::format("One of {}, or a recorded FILE", kTraceKinds))
      ->capture_default_str();
  command.add_option("--policies", o.policies, "Policies to compare")->delimiter(',');
  const auto number = [&](const char* name, auto& value, const char* help) {
    command.add_option(name, value, help)->type_name("N")->capture_default_str();
  };
  number("--steps", o.synthetic.steps, "Steps of a made-up trace");
  number("--layers", o.synthetic.layers, "Its layers");
  number("--experts", o.synthetic.experts, "Its experts");
  number("--rows", o.synthetic.rows, "Its (token, expert) pairs in a step");
  number("--exponent", o.synthetic.exponent, "Its popularity falls as 1/rank^N");
  number("--seed", o.synthetic.seed, "Its seed");
  number("--interval", o.interval, "Steps between two plans");
  number("--window", o.window, "Steps that a plan looks back on");
  number("--row-us", o.row_us, "Time of one row in an expert");
  number("--gbytes-per-s", o.gigabytes_per_s, "What a rank receives of moved weights");
}

/// A copy like plan() and show() take, which change theirs.
int simulate(EplbOptions o) {  // NOLINT(performance-unnecessary-value-param)
  return run_simulation(o);
}

}  // namespace

void add_eplb(CLI::App& app, int& status) {
  CLI::App* eplb = app.add_subcommand(
      "eplb", "Plan where experts lie, replay load against policies, show load per rank");
  eplb->require_subcommand(1);
  const auto add = [&](const char* name, const char* help, int (*run)(EplbOptions)) {
    CLI::App* command = eplb->add_subcommand(name, help);
    auto options = std::make_shared<EplbOptions>();
    add_common(*command, *options);
    command->callback([options, run, &status] { status = run(*options); });
    return std::pair{command, options};
  };
  const auto [planned, plan_o] = add("plan", "Plan a placement from a dump of load", plan);
  add_stats(*planned, *plan_o);
  planned->add_flag("--json", plan_o->json, "As JSON");
  const auto [simulated, simulate_o] = add("simulate", "Replay a trace against policies", simulate);
  add_trace(*simulated, *simulate_o);
  simulated->add_flag("--json", simulate_o->json, "As JSON");
  const auto [shown, show_o] = add("show", "Show load by layer and rank before and after", show);
  add_stats(*shown, *show_o);
  shown->add_option("--plot", show_o->plot, "Write the picture as SVG too")->type_name("FILE");
}

}  // namespace ferry
