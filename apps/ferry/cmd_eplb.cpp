// ferry eplb: plan a placement of experts from recorded load, replay traces against the planner's
// policies, show how load lies on the ranks. Needs no model and no ranks.
#include <fmt/core.h>
#include <spdlog/spdlog.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "apps/ferry/command.h"
#include "apps/ferry/command_line.h"
#include "apps/ferry/eplb_report.h"
#include "apps/ferry/svg_name.h"
#include "ferry/balance/heat_map.h"
#include "ferry/balance/simulate.h"
#include "ferry/core/error.h"
#include "ferry/planner.h"
#include "ferry/runtime/eplb_dump.h"

namespace ferry {

namespace {

using Json = nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

constexpr int kMaxRanks = 1024;

struct EplbOptions {
  std::string stats;
  std::string placement;
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
  bool weighted = false;
  bool json = false;
  std::string plot;
  int hottest = 10;

  // simulate
  std::string trace = "zipf";
  std::vector<std::string> policies{"identity", "deepseek", "greedy", "incremental", "risk"};
  TraceOptions synthetic;
  int interval = 50;
  int window = 50;
  int share_interval = 0;
  bool nearest = false;
  double row_us = 1;
  double gigabytes_per_s = 10;

  Topology topology() const { return {ranks, nodes, groups}; }
};

/// A dump, the placement it was recorded under, and options that agree with both.
struct Input {
  LoadDump dump;
  std::optional<ExpertPlacement> current;

  int experts() const { return dump.steps.front().experts; }
};

void check_ranks(const EplbOptions& o) {
  if (o.ranks < 1 || o.ranks > kMaxRanks)
    fail<ConfigError>("--ranks must be 1 to {}, not {}", kMaxRanks, o.ranks);
}

PlanOptions plan_options(const EplbOptions& o, const std::string& policy, int experts) {
  check_ranks(o);
  if (o.max_transfers < 0 || o.max_transfers_per_pair < 0)
    fail<ConfigError>("--max-transfers and --max-transfers-per-pair must be at least 0");
  if (!(o.expert_bytes > 0)) fail<ConfigError>("--expert-bytes must be more than 0");
  PlanOptions options{.policy = parse_policy(policy), .redundant = std::max(0, o.redundant)};
  options.uneven = o.strict   ? UnevenSlots::strict
                   : o.adjust ? UnevenSlots::adjust
                              : UnevenSlots::allow_empty;
  options.weighted = o.weighted;
  options.max_transfers = o.max_transfers;
  options.max_transfers_per_pair = o.max_transfers_per_pair;
  const int settled = settle_redundant(experts, o.ranks, options.redundant, options.uneven);
  if (settled != options.redundant)
    spdlog::info(
        "{} redundant experts instead of {}: no slot stays empty", settled, options.redundant);
  options.redundant = settled;
  return options;
}

/// The placement that planning starts from: of --placement, else of the dump, if that is one for
/// these ranks.
std::optional<ExpertPlacement> current_placement(const EplbOptions& o, const LoadDump& dump) {
  const int experts = dump.steps.front().experts;
  if (!o.placement.empty()) {
    const auto map = read_placement(o.placement, o.ranks);
    try {
      return ExpertPlacement(map, experts, o.ranks);
    } catch (const ConfigError& e) {
      fail<ModelError>("{}: {}", o.placement, e.what());
    }
  }
  if (!dump.physical_to_logical_map) return std::nullopt;
  const auto& map = *dump.physical_to_logical_map;
  if (map.front().size() % static_cast<std::size_t>(o.ranks) != 0) {
    spdlog::warn("the {} slots of {} do not divide by {} ranks: starting from the identity",
                 map.front().size(),
                 o.stats,
                 o.ranks);
    return std::nullopt;
  }
  return ExpertPlacement(map, experts, o.ranks);
}

Input read_input(EplbOptions& o) {
  check_ranks(o);
  Input input{read_load_dump(o.stats), {}};
  input.current = current_placement(o, input.dump);
  if (input.current && o.redundant < 0) {
    const auto map = input.current->physical_to_logical(0);
    const auto filled = std::count_if(map.begin(), map.end(), [](ExpertId e) { return e >= 0; });
    o.redundant = static_cast<int>(filled) - input.experts();
  }
  return input;
}

ExpertPlacement current_or_identity(const Input& input, const EplbOptions& o, int redundant) {
  if (input.current) return *input.current;
  return ExpertPlacement::identity(
      input.dump.steps.front().layers, input.experts(), o.ranks, redundant);
}

void write_file(const std::string& path, const std::string& text) {
  std::ofstream out(path, std::ios::binary);
  if (!(out << text) || !out.flush()) fail<Error>("{}: cannot be written", path);
}

int plan(EplbOptions o) {
  const Input input = read_input(o);
  const PlanOptions options = plan_options(o, o.policy, input.experts());
  const auto start = Clock::now();
  const Plan made = plan_placement(input.dump.steps, input.current, o.topology(), options);
  const std::chrono::duration<double, std::micro> taken = Clock::now() - start;
  const double bytes = made.transfers * o.expert_bytes;
  if (o.json) {
    Json report{{"policy", o.policy},
                {"ranks", o.ranks},
                {"nodes", o.nodes},
                {"groups", o.groups},
                {"redundant", options.redundant},
                {"balancedness_before", made.balance.before},
                {"balancedness_after", made.balance.after},
                {"bound", made.balance.bound},
                {"moves", made.transfers},
                {"moves_bound", made.transfers_bound},
                {"bytes_moved", bytes},
                {"duplicates", made.duplicates},
                {"physical_to_logical_map", made.placement.maps()},
                {"plan_us", taken.count()}};
    if (o.weighted) report["shares"] = made.shares;
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
  fmt::print("  moves          {} experts between ranks, {}; at least {} for this balance\n",
             made.transfers,
             gigabytes(bytes),
             made.transfers_bound);
  if (made.duplicates > 0)
    fmt::print("  duplicates     {} slots hold an expert that their rank has already\n",
               made.duplicates);
  fmt::print("  planned in     {:.2f} ms\n", taken.count() / 1000);
  return 0;
}

int show(EplbOptions o) {
  const Input input = read_input(o);
  const PlanOptions options = plan_options(o, o.policy, input.experts());
  const Plan made = plan_placement(input.dump.steps, input.current, o.topology(), options);
  const ExpertPlacement before = current_or_identity(input, o, options.redundant);
  const ExpertLoad load = total_load(input.dump.steps);
  const std::vector<HeatMap> maps{make_heat_map("before", load, before),
                                  make_heat_map("after " + o.policy, load, made.placement)};
  if (!o.plot.empty()) write_file(o.plot, heat_map_svg(maps));
  for (const HeatMap& map : maps) fmt::print("{}\n", heat_map_text(map));
  fmt::print("balancedness {:.4f} -> {:.4f}, best possible {:.4f}\n",
             made.balance.before,
             made.balance.after,
             made.balance.bound);
  return 0;
}

int stats(EplbOptions o) {
  const Input input = read_input(o);
  const PlanOptions options = plan_options(o, "identity", input.experts());
  const ExpertPlacement placement = current_or_identity(input, o, options.redundant);
  if (o.hottest < 1) fail<ConfigError>("--hottest must be at least 1, not {}", o.hottest);
  const LoadStats result = load_stats(input.dump.steps, placement, o.hottest);
  if (!o.json) {
    print_load_stats(result, input.dump.steps.size(), placement);
    return 0;
  }
  fmt::print("{}\n", load_stats_json(result, input.dump.steps.size(), placement).dump());
  return 0;
}

Trace trace_of(const EplbOptions& o) {
  std::error_code code;
  if (std::filesystem::exists(o.trace, code)) return read_load_dump(o.trace).steps;
  TraceOptions options = o.synthetic;
  options.kind = parse_trace_kind(o.trace);
  return make_trace(options);
}

int run_simulation(const EplbOptions& o) {
  if (!(o.row_us > 0) || !(o.gigabytes_per_s > 0))
    fail<ConfigError>("--row-us and --gbytes-per-s must be more than 0");
  const Trace trace = trace_of(o);
  Json report = Json::array();
  if (!o.json) print_simulation_head();
  for (const std::string& policy : o.policies) {
    SimulateOptions options{.topology = o.topology(),
                            .plan = plan_options(o, policy, trace.front().experts),
                            .interval = o.interval,
                            .window = o.window,
                            .share_interval = o.share_interval,
                            .nearest = o.nearest,
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
                        {"off_rank", s.off_rank},
                        {"off_node", s.off_node},
                        {"balancedness", s.balancedness}});
      continue;
    }
    print_simulation(policy, s);
  }
  if (o.json) fmt::print("{}\n", report.dump());
  return 0;
}

void add_common(Command& command, EplbOptions& o) {
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
      ->not_negative();
  auto* strict = command.add_flag("--strict", o.strict, "Refuse slots that would stay empty");
  command.add_flag("--adjust", o.adjust, "Fewer redundant experts, so that no slot stays empty")
      ->excludes(strict);
  number("--max-transfers", o.max_transfers, "incremental: experts that may travel (0 = any)");
  number("--max-transfers-per-pair",
         o.max_transfers_per_pair,
         "incremental: the same for two ranks and a layer");
  command.add_flag(
      "--weighted", o.weighted, "Replicas take what evens the ranks instead of equal parts");
  command.add_option("--expert-bytes", o.expert_bytes, "Weights of one expert (DeepSeek-V3, FP8)")
      ->type_name("BYTES");
}

void add_stats(Command& command, EplbOptions& o) {
  command
      .add_option("--stats", o.stats, "JSON with logical_count and perhaps physical_to_logical_map")
      ->type_name("FILE")
      ->required();
  command
      .add_option("--placement",
                  o.placement,
                  "Current placement instead: physical_to_logical_map or vllm-ascend's layer_list")
      ->type_name("FILE");
}

void add_policy(Command& command, EplbOptions& o) {
  command.add_option("--policy", o.policy, fmt::format("One of {}", kPolicyNames))
      ->type_name("P")
      ->capture_default_str();
}

void add_trace(Command& command, EplbOptions& o) {
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
  number("--share-interval", o.share_interval, "With --weighted: steps between new shares");
  command.add_flag("--nearest", o.nearest, "Tokens go to the nearest replica, within its part");
  number("--row-us", o.row_us, "Time of one row in an expert");
  number("--gbytes-per-s", o.gigabytes_per_s, "What a rank receives of moved weights");
}

/// A copy like plan() and show() take, which change theirs.
int simulate(EplbOptions o) {  // NOLINT(performance-unnecessary-value-param)
  return run_simulation(o);
}

}  // namespace

void add_eplb(Command& app, int& status) {
  Command* eplb = app.add_subcommand(
      "eplb", "Plan where experts lie, replay load against policies, show load per rank");
  eplb->require_subcommand();
  const auto add = [&](const char* name, const char* help, int (*run)(EplbOptions)) {
    Command* command = eplb->add_subcommand(name, help);
    auto options = std::make_shared<EplbOptions>();
    add_common(*command, *options);
    command->callback([options, run, &status] { status = run(*options); });
    return std::pair{command, options};
  };
  const auto [planned, plan_o] = add("plan", "Plan a placement from a dump of load", plan);
  add_stats(*planned, *plan_o);
  add_policy(*planned, *plan_o);
  planned->add_flag("--json", plan_o->json, "As JSON");
  const auto [simulated, simulate_o] = add("simulate", "Replay a trace against policies", simulate);
  add_trace(*simulated, *simulate_o);
  simulated->add_flag("--json", simulate_o->json, "As JSON");
  const auto [told, stats_o] =
      add("stats", "How even recorded load lies, load by rank, hottest experts", stats);
  add_stats(*told, *stats_o);
  told->add_option("--hottest", stats_o->hottest, "Experts to list")
      ->type_name("N")
      ->capture_default_str();
  told->add_flag("--json", stats_o->json, "As JSON");
  const auto [shown, show_o] = add("show", "Show load by layer and rank before and after", show);
  add_stats(*shown, *show_o);
  add_policy(*shown, *show_o);
  shown->add_option("--plot", show_o->plot, "Write the picture as SVG too")
      ->type_name("FILE")
      ->check(svg_name_error);
}

}  // namespace ferry
