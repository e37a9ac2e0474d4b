// ferry bench moe: one MoE layer behind its router - dispatch, experts, combine - beside the floor
// that memory and the multiplying unit set, measured in the same run.
#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "apps/ferry/command.h"
#include "apps/ferry/command_line.h"
#include "apps/ferry/common_options.h"
#include "apps/ferry/moe_bench.h"
#include "ferry/choose_backend.h"
#include "ferry/core/error.h"
#include "ferry/kernels/kernels.h"
#include "ferry/planner.h"
#include "ferry/runtime/core_map.h"

namespace ferry {

namespace {

using Json = nlohmann::ordered_json;

struct BenchMoeOptions {
  std::vector<std::string> backends{"pplx"};
  BenchRanks over{.default_transports = {"inproc"}, .default_ranks = {1}};
  std::vector<int> tokens{1, 16, 128, 512};
  std::vector<std::string> routings{"uniform"};
  int hidden = 2048;
  int inter = 1024;
  int experts = 64;
  int topk = 8;
  int threads = 0;
  std::string weights = "bf16";
  std::string numerics = "exact";
  double seconds = 1;
  bool enable_eplb = false;
  std::string policy;  // empty = no plan
  int redundant = 0;
  std::string replica_rule = "hash";
  bool json = false;
};

std::vector<MoeCase> cases_of(const BenchMoeOptions& o) {
  if (o.topk > o.experts)
    fail<ConfigError>("--topk {} is more than --experts {}", o.topk, o.experts);
  std::vector<MoeCase> cases;
  for (const int ranks : o.over.ranks)
    for (const std::string& transport : o.over.transports)
      for (const std::string& backend : o.backends)
        for (const std::string& routing : o.routings)
          for (const int tokens : o.tokens)
            cases.push_back(
                {.backend = parse_backend(backend),
                 .launch = o.over.launch(transport, ranks),
                 .transport = transport,
                 .ranks = ranks,
                 .threads = o.threads > 0 ? o.threads : default_threads(ranks),
                 .tokens = tokens,
                 .hidden = o.hidden,
                 .inter = o.inter,
                 .experts = o.experts,
                 .topk = o.topk,
                 .routing = parse_routing(routing),
                 .weights = parse_weights_option("--weights", o.weights).value_or(WeightType::bf16),
                 .numerics = parse_numerics(o.numerics, "--numerics"),
                 .seconds = o.seconds});
  for (MoeCase& moe : cases) {
    const WireType wire = wire_type(activation_type(moe.weights));
    const BackendChoice choice = choose_backend(moe.backend,
                                                DeepepMode::low_latency,
                                                {.ranks = moe.ranks,
                                                 .tokens = moe.tokens,
                                                 .hidden = moe.hidden,
                                                 .topk = moe.topk,
                                                 .dispatch_wire = wire,
                                                 .combine_wire = wire,
                                                 .load_store = reads_peers(moe.transport)});
    moe.backend = choice.backend;
    if (!choice.why.empty() && speaks_for_all()) fmt::print(stderr, "ferry: {}\n", choice.why);
  }
  return cases;
}

Json json_of(const MoeCase& moe, const MoeResult& result, const MachinePeaks& peaks) {
  const Summary time = summarize(result.times_us);
  return {{"kernel", kernels(moe.numerics).name},
          {"weights", weight_type_name(moe.weights)},
          {"ep", moe.ranks},
          {"threads", moe.threads},
          {"backend", backend_name(moe.backend)},
          {"transport", moe.transport},
          {"routing", routing_name(moe.routing)},
          {"placement", moe.placement.empty() ? "identity" : "planned"},
          {"tokens", moe.tokens},
          {"hidden", moe.hidden},
          {"inter", moe.inter},
          {"experts", moe.experts},
          {"topk", moe.topk},
          {"p50_us", time.p50},
          {"min_us", time.min},
          {"slowest_rank_us", *std::ranges::max_element(result.rank_us)},
          {"rank_cpu_us", result.rank_cpu_us},
          {"tflops", result.work.operations / time.p50 * 1e-6},
          {"gbps", result.work.bytes / time.p50 * 1e-3},
          {"floor_us", summarize(result.floors_us).p50},
          {"bound", result.memory_bound ? "memory" : "compute"},
          {"read_gbps", peaks.bytes_per_s * 1e-9},
          {"peak_tflops", peaks.operations_per_s * 1e-12},
          {"iterations", result.times_us.size()}};
}

void print_heading(const BenchMoeOptions& o) {
  fmt::print(
      "H {}, inter {}, {} experts, top-{}, {} weights, {}; p50 on the slowest rank; tokens are "
      "each "
      "rank's\n",
      o.hidden,
      o.inter,
      o.experts,
      o.topk,
      o.weights,
      kernels(parse_numerics(o.numerics, "--numerics")).name);
  fmt::print("{:<13} {:<7} {:>2} {:>3} {:<8} {:>6} {:>10} {:>10} {:>7} {:<8} {:>8} {:>7}  {}\n",
             "backend",
             "over",
             "ep",
             "thr",
             "routing",
             "tokens",
             "us",
             "floor us",
             "x floor",
             "bound",
             "TFLOP/s",
             "GB/s",
             "CPU us of each rank");
}

void print_row(const Json& row) {
  const auto number = [&](const char* key) { return row[key].get<double>(); };
  const auto text = [&](const char* key) { return row[key].get<std::string>(); };
  std::vector<std::string> cpu;
  for (const Json& us : row["rank_cpu_us"]) cpu.push_back(fmt::format("{:.0f}", us.get<double>()));
  fmt::print(
      "{:<13} {:<7} {:>2} {:>3} {:<8} {:>6} {:>10.1f} {:>10.1f} {:>7.2f} {:<8} {:>8.3f} {:>7.1f}  "
      "{}\n",
      text("backend"),
      text("transport"),
      row["ep"].get<int>(),
      row["threads"].get<int>(),
      text("routing"),
      row["tokens"].get<int>(),
      number("p50_us"),
      number("floor_us"),
      number("p50_us") / number("floor_us"),
      text("bound"),
      number("tflops"),
      number("gbps"),
      fmt::join(cpu, " "));
}

double slowest_cpu_us(const MoeResult& result) {
  return *std::ranges::max_element(result.rank_cpu_us);
}

/// Measures the case again under a plan for the load it had; the row says what the plan predicted
/// of the slowest rank and what came of it.
Json planned_row(MoeCase moe,
                 const MoeResult& before,
                 const BenchMoeOptions& o,
                 const MachinePeaks& peaks) {
  ExpertLoad load(1, moe.experts);
  load.counts = before.expert_rows;
  const ReplicaRule rule = parse_replica_rule(o.replica_rule);
  const Plan plan = plan_placement(load,
                                   ExpertPlacement::identity(1, moe.experts, moe.ranks),
                                   {.ranks = moe.ranks},
                                   {.policy = parse_policy(o.policy),
                                    .redundant = o.redundant,
                                    .weighted = rule == ReplicaRule::weighted});
  const auto map = plan.placement.physical_to_logical(0);
  moe.placement.assign(map.begin(), map.end());
  moe.nearest = rule == ReplicaRule::nearest;
  if (rule == ReplicaRule::weighted) moe.shares = plan.shares.front();
  const MoeResult after = measure_moe(moe, peaks);
  if (!speaks_for_all()) return {};
  Json row = json_of(moe, after, peaks);
  row["replica_choice"] = o.replica_rule;
  row["balancedness_before"] = plan.balance.before;
  row["balancedness_after"] = plan.balance.after;
  row["predicted_speedup"] = plan.balance.after / plan.balance.before;
  row["achieved_speedup"] = slowest_cpu_us(before) / slowest_cpu_us(after);
  return row;
}

void print_gain(const Json& row) {
  const auto number = [&](const char* key) { return row[key].get<double>(); };
  const double predicted = number("predicted_speedup");
  const double achieved = number("achieved_speedup");
  fmt::print("  balancedness {:.3f} -> {:.3f}: the slowest rank's CPU time was to fall {:.2f}x, ",
             number("balancedness_before"),
             number("balancedness_after"),
             predicted);
  fmt::print("and fell {:.2f}x", achieved);
  if (predicted > 1.01)
    fmt::print(", {:.0f} % of the predicted gain", 100 * (achieved - 1) / (predicted - 1));
  fmt::print("\n");
}

int run(const BenchMoeOptions& options) {
  if (!options.policy.empty()) static_cast<void>(parse_policy(options.policy));
  static_cast<void>(parse_replica_rule(options.replica_rule));
  const std::vector<MoeCase> cases = cases_of(options);
  Json all = Json::array();
  const bool speaks = speaks_for_all();
  if (speaks && !options.json) print_heading(options);
  MachinePeaks peaks;
  int measured_threads = 0;
  for (const MoeCase& moe : cases) {
    if (const int threads = moe.ranks * moe.threads; speaks && threads != measured_threads) {
      peaks = measure_peaks(threads, moe.weights, moe.numerics);
      measured_threads = threads;
    }
    const MoeResult result = measure_moe(moe, peaks);
    if (speaks) all.push_back(json_of(moe, result, peaks));
    if (speaks && !options.json) print_row(all.back());
    if (options.policy.empty()) continue;
    all.push_back(planned_row(moe, result, options, peaks));
    if (options.json || !speaks) continue;
    print_row(all.back());
    print_gain(all.back());
  }
  if (options.json && speaks) fmt::print("{}\n", all.dump(2));
  return 0;
}

}  // namespace

void add_bench_moe(Command& bench, int& status) {
  Command* moe = bench.add_subcommand(
      "moe", "One MoE layer behind its router, verified first, beside the machine's floor");
  auto o = std::make_shared<BenchMoeOptions>();
  const auto list = [&](const char* name, auto& values, const char* help) {
    return moe->add_option(name, values, help)->delimiter(',')->capture_default_str();
  };
  const auto size = [&](const char* name, int& value, const char* help) {
    moe->add_option(name, value, help)->range(1, 1 << 20)->capture_default_str();
  };
  list("--moe-a2a-backend,--backend", o->backends, "Backends, comma-separated");
  o->over.add_to(*moe);
  list("--tokens", o->tokens, "Tokens per rank, comma-separated")->range(1, 1 << 20);
  list("--routing", o->routings, "uniform, zipf, one_hot (every token to expert 0 among others)");
  size("--hidden", o->hidden, "Elements of a row");
  size("--inter", o->inter, "Width of an expert");
  size("--experts", o->experts, "Experts over all ranks");
  size("--topk", o->topk, "Experts of each token");
  moe->add_flag("--enable-eplb", o->enable_eplb, "Measure again under a plan for the load it had");
  moe->add_option("--eplb-algorithm,--eplb-policy",
                  o->policy,
                  fmt::format("The same, by one of {} [greedy]", kPolicyNames));
  moe->add_option("--ep-num-redundant-experts", o->redundant, "Replicas that the plan may place")
      ->range(0, 1 << 20)
      ->capture_default_str();
  moe->add_option(
         "--eplb-replica-choice",
         o->replica_rule,
         fmt::format("How tokens choose among replicas under it, by one of {}", kReplicaRuleNames))
      ->capture_default_str();
  moe->add_option("--threads", o->threads, "Threads of each rank [cores / ranks]")
      ->range(1, 1 << 20);
  moe->add_option("--weights", o->weights, "f32, bf16, int8, fp8, int4 or mxfp4")
      ->capture_default_str();
  moe->add_option("--numerics", o->numerics, "exact, or fast: the processor's own products")
      ->capture_default_str();
  moe->add_option("--seconds", o->seconds, "About how long to measure each case")
      ->range(0.01, 3600.0)
      ->capture_default_str();
  moe->add_flag("--json", o->json, "One JSON array on stdout");
  moe->callback([o, &status] {
    o->over.resolve();
    if (o->enable_eplb && o->policy.empty()) o->policy = policy_name(Policy::greedy);
    status = run(*o);
  });
}

}  // namespace ferry
