// ferry simulate: what exchanges, layers and steps of many ranks would take on a cluster that a
// file describes. Runs nothing, moves nothing.
#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "apps/ferry/command.h"
#include "apps/ferry/command_line.h"
#include "apps/ferry/common_options.h"
#include "apps/ferry/machine_peaks.h"
#include "apps/ferry/simulate_report.h"
#include "apps/ferry/svg_name.h"
#include "ferry/choose_backend.h"
#include "ferry/core/error.h"
#include "ferry/model/config.h"
#include "ferry/runtime/eplb_dump.h"

namespace ferry {

namespace {

constexpr int kMostForecastRanks = 4096;

struct SimulateFlags {
  std::string cluster;
  std::string model;
  int hidden = 7168;
  int inter = 2048;
  int experts = 256;
  int topk = 8;
  int layers = 1;
  bool exchange_only = false;
  std::string weights;
  std::vector<int> ranks{8, 16, 32, 64};
  std::vector<int> tokens{128};
  int tp = 1;
  int slices = 1;
  std::vector<std::string> backends{"pplx"};
  std::string mode = "low_latency";
  std::string layout = "default";
  bool allow_prereduce = false;
  std::string routing = "uniform";
  double exponent = 1;
  std::uint64_t seed = 1;
  std::string dispatch_wire = "bf16";
  std::string combine_wire = "bf16";
  std::string policy = "identity";
  int redundant = 0;
  std::string replicas = "hash";
  std::string step_balance = "none";
  int window = 0;
  int draws = 3;
  int context = 1024;
  bool prefill = false;
  bool json = false;
  std::string plot;
};

ForecastTokens tokens_of(const SimulateFlags& o) {
  ForecastTokens tokens{.exponent = o.exponent, .window = o.window, .seed = o.seed};
  constexpr std::array<std::pair<std::string_view, ForecastRouting>, 3> kNames{
      {{"uniform", ForecastRouting::uniform},
       {"zipf", ForecastRouting::zipf},
       {"one_hot", ForecastRouting::one_hot}}};
  for (const auto& [name, routing] : kNames) {
    tokens.routing = routing;
    if (o.routing != name) continue;
    if (o.window > 0) fail<ConfigError>("--routing-window is of a recording, not of '{}'", name);
    return tokens;
  }
  std::error_code code;
  if (!std::filesystem::exists(o.routing, code)) {
    fail<ConfigError>("unknown --routing '{}': uniform, zipf, one_hot, or a file of recorded load",
                      o.routing);
  }
  tokens.routing = ForecastRouting::recorded;
  tokens.recorded = read_load_dump(o.routing).steps;
  return tokens;
}

/// The part of a step that is not experts: mixers, routers, shared experts and dense blocks, head.
Work other_work(ModelConfig config, WeightType weights, const SimulateFlags& o, int tokens) {
  config.moe.topk = 0;
  const StepWeights held = step_weights(config, weights);
  const double n = tokens;
  const double context = o.context;
  if (o.prefill)
    return step_work(config, held, {.tokens = n, .wanted = 1, .attended = n * (n + 1) / 2});
  return step_work(
      config, held, {.tokens = n, .wanted = n, .attended = n * context, .cached = n * context});
}

/// Of a group: mixers twice in a layer, dense blocks and shared experts twice, logits; as rows of
/// hidden elements, but for what lies between projections.
GatherLoad other_gathers(const ModelConfig& config, const SimulateFlags& o, int tokens) {
  constexpr double kNarrow = 2, kWide = 4;  // bytes of an element
  GatherLoad all{.members = o.tp};
  const auto add = [&](double width, double bytes, double rows) {
    all.gathers += 1;
    all.bytes += width * bytes * rows;
  };
  for (int layer = 0; tokens > 0 && layer < config.layers; ++layer) {
    add(config.hidden, kNarrow, tokens);
    add(config.hidden, kNarrow, tokens);
    const bool sparse = config.sparse(layer);
    const int inter = sparse ? config.moe.shared_inter : config.dense_inter;
    if (inter == 0) continue;
    add(inter, kNarrow, tokens);
    if (!sparse || o.tp != o.slices) add(config.hidden, sparse ? kWide : kNarrow, tokens);
  }
  if (tokens > 0) add(config.vocab, kWide, o.prefill ? 1 : tokens);
  return all;
}

WeightType weights_of(const SimulateFlags& o, const std::optional<ModelConfig>& model) {
  if (const auto asked = parse_weights_option("--weights", o.weights)) return *asked;
  return model && model->dtype == DType::f32 ? WeightType::f32 : WeightType::bf16;
}

ForecastShape shape_of(const SimulateFlags& o,
                       const std::optional<ModelConfig>& model,
                       WeightType weights) {
  ForecastShape shape{.hidden = o.hidden,
                      .inter = o.inter,
                      .experts = o.experts,
                      .topk = o.topk,
                      .layers = o.layers};
  if (model) {
    if (model->sparse_layers() == 0)
      fail<ConfigError>("{}: has no layer with experts, so nothing is exchanged", o.model);
    shape = {.hidden = model->hidden,
             .inter = model->moe.inter,
             .experts = model->moe.experts,
             .topk = model->moe.topk,
             .layers = model->sparse_layers()};
  }
  shape.bytes_per_weight = bytes_per_weight(weights, shape.hidden);
  if (o.exchange_only) shape.inter = 0;
  return shape;
}

/// Sets the backend of one forecast and returns its name for people.
std::string choose_exchange(const SimulateFlags& o,
                            const Cluster& cluster,
                            const std::string& name,
                            ForecastOptions& forecast) {
  const MoeA2ABackend asked = parse_backend(name);
  const DeepepMode mode = parse_deepep_mode(o.mode);
  const BackendChoice choice =
      choose_backend(asked,
                     mode,
                     {.ranks = forecast.ranks,
                      .tokens = std::max(1, forecast.tokens),
                      .hidden = forecast.shape.hidden,
                      .topk = forecast.shape.topk,
                      .dispatch_wire = forecast.dispatch_wire,
                      .combine_wire = forecast.combine_wire,
                      .load_store = forecast.ranks <= cluster.ranks_per_host,
                      .allow_prereduce = o.allow_prereduce});
  forecast.exchange = exchange_options(choice.backend, choice.mode);
  if (o.layout != "default") forecast.exchange.format = parse_format(o.layout);
  std::string label(backend_name(choice.backend));
  if (choice.backend == MoeA2ABackend::deepep)
    label += fmt::format("/{}", deepep_mode_name(choice.mode));
  return asked == MoeA2ABackend::automatic ? fmt::format("auto ({})", label) : label;
}

void write_plot(const std::string& path, const std::string& svg) {
  std::ofstream out(path, std::ios::binary);
  if (!(out << svg) || !out.flush()) fail<Error>("--plot {}: cannot be written", path);
}

int run_simulate(const SimulateFlags& o) {
  std::optional<ModelConfig> model;
  if (!o.model.empty()) model = load_config(std::filesystem::path(o.model));
  const WeightType weights = weights_of(o, model);
  const bool bytes = weights == WeightType::int8 || weights == WeightType::int4;
  const Cluster cluster = read_cluster(o.cluster, bytes);
  ForecastOptions forecast{.tp = o.tp,
                           .slices = o.slices,
                           .shape = shape_of(o, model, weights),
                           .routing = tokens_of(o),
                           .dispatch_wire = parse_wire_type(o.dispatch_wire, "--dispatch-wire"),
                           .combine_wire = parse_wire_type(o.combine_wire, "--combine-wire"),
                           .policy = parse_policy(o.policy),
                           .redundant = o.redundant,
                           .replicas = parse_replica_rule(o.replicas),
                           .step_balance = parse_step_balance(o.step_balance),
                           .draws = o.draws};
  for (const int ranks : o.ranks) cluster.check_ranks(ranks);
  std::vector<Forecasted> all;
  for (const std::string& backend : o.backends) {
    for (const int tokens : o.tokens) {
      for (const int ranks : o.ranks) {
        forecast.ranks = ranks;
        forecast.tokens = tokens;
        if (model && !o.exchange_only) {
          const Work other = other_work(*model, weights, o, tokens);
          forecast.other_bytes = other.bytes;
          forecast.other_operations = other.operations;
          forecast.other_gathers = other_gathers(*model, o, tokens);
        }
        std::string label = choose_exchange(o, cluster, backend, forecast);
        all.push_back({std::move(label), tokens, make_forecast(forecast, cluster)});
      }
    }
  }
  fmt::print("{}", o.json ? forecast_json(all, cluster) : forecast_table(all, cluster));
  if (!o.plot.empty()) write_plot(o.plot, forecast_plot(all, cluster));
  return 0;
}

template <class Values, class Name>
std::string listed(const Values& values, Name name) {
  std::string all;
  for (const auto value : values) all += (all.empty() ? "" : ", ") + std::string(name(value));
  return all;
}

void add_shape_flags(Command& command, SimulateFlags& o) {
  Option* model =
      command.add_option("--model,--model-path", o.model, "A model's config.json says the shape")
          ->type_name("DIR");
  const auto size = [&](const char* name, int& value, const char* help) {
    command.add_option(name, value, help)
        ->range(1, 1 << 20)
        ->capture_default_str()
        ->excludes(model);
  };
  size("--hidden", o.hidden, "Elements of a row");
  size("--inter", o.inter, "Width of an expert");
  size("--experts", o.experts, "Experts of a layer");
  size("--topk", o.topk, "Experts of each token");
  size("--layers", o.layers, "Sparse layers of a step; without --model a step is nothing else");
  command.add_option("--weights", o.weights, "Held as f32, bf16, int8, fp8, int4 or mxfp4 [bf16]")
      ->type_name("W");
  command.add_flag("--exchange-only", o.exchange_only, "Experts take no time, as in bench a2a");
  command.add_option("--context", o.context, "Positions that each token attends to")
      ->range(1, 1 << 24)
      ->capture_default_str();
  command.add_flag("--prefill",
                   o.prefill,
                   "A rank's tokens are one prompt instead of one token of each sequence");
}

void add_routing_flags(Command& command, SimulateFlags& o) {
  command
      .add_option("--routing",
                  o.routing,
                  "uniform, zipf, one_hot, or a file that --record-expert-distribution wrote")
      ->capture_default_str();
  command
      .add_option("--routing-window",
                  o.window,
                  "Tokens are as in so many steps in a row of the file, policies plan from its "
                  "others; 0: both from all")
      ->range(0, 1 << 24)
      ->capture_default_str();
  command.add_option("--exponent", o.exponent, "Of zipf: popularity falls as 1/rank^N")
      ->range(0.0, 10.0)
      ->capture_default_str();
  command.add_option("--seed", o.seed, "Of made-up tokens")->capture_default_str();
  command.add_option("--draws", o.draws, "Layers that are made up")
      ->range(1, 1000)
      ->capture_default_str();
  command
      .add_option("--eplb-algorithm,--eplb-policy", o.policy, fmt::format("Of {}", kPolicyNames))
      ->capture_default_str();
  command
      .add_option("--ep-num-redundant-experts", o.redundant, "Replicas beyond one of each expert")
      ->range(0, 1 << 16)
      ->capture_default_str();
  command.add_option("--eplb-replica-choice", o.replicas, fmt::format("Of {}", kReplicaRuleNames))
      ->capture_default_str();
  command
      .add_option(
          "--per-step-balance",
          o.step_balance,
          "As if, in each step, surplus rows of hot experts went to other replicas, or also to "
          "ranks that fetch the weights; forecast only. Of none, replicas, weights")
      ->capture_default_str();
}

}  // namespace

void add_simulate(Command& app, int& status) {
  Command* command = app.add_subcommand(
      "simulate", "Forecast layers and steps of many ranks on a described cluster");
  command->footer(
      "Nothing is run: ranks' plans are made as they would make them, and the time of links, "
      "memory "
      "and arithmetic is\ncharged to what they move. A forecast for every combination of --ep, "
      "--tokens and --moe-a2a-backend; times are\nthose of the slowest rank. docs/simulate.md has "
      "the description's members and the formulas.");
  auto o = std::make_shared<SimulateFlags>();
  command->add_option("--cluster", o->cluster, "JSON that describes hosts, links, memory, kernels")
      ->type_name("FILE")
      ->required();
  const auto list = [&](const char* name, auto& values, const std::string& help) {
    return command->add_option(name, values, help)->delimiter(',')->capture_default_str();
  };
  list("--ep", o->ranks, "Ranks")->range(1, kMostForecastRanks);
  list("--tokens", o->tokens, "Tokens per rank; with --tp per group")->range(0, 1 << 20);
  command->add_option("--tp", o->tp, "Ranks of a group that has the same tokens")
      ->range(1, kMostForecastRanks)
      ->capture_default_str();
  command
      ->add_option(
          "--expert-slices", o->slices, "Ranks that share out each expert's columns; divides --tp")
      ->range(1, kMostForecastRanks)
      ->capture_default_str();
  list("--moe-a2a-backend", o->backends, listed(all_backends(), backend_name));
  command
      ->add_option("--deepep-mode",
                   o->mode,
                   "Of backend deepep: " + listed(all_deepep_modes(), deepep_mode_name))
      ->capture_default_str();
  command
      ->add_option("--layout",
                   o->layout,
                   "Rows as experts get them: padded, ragged, row_pointers; default: the backend's")
      ->capture_default_str();
  command->add_flag("--allow-prereduce", o->allow_prereduce, "auto may sum on each rank first");
  const std::string wires = listed(wire_types(), wire_type_name);
  command->add_option("--dispatch-wire", o->dispatch_wire, "What travels out: " + wires)
      ->capture_default_str();
  command->add_option("--combine-wire", o->combine_wire, "What comes back: " + wires)
      ->capture_default_str();
  add_shape_flags(*command, *o);
  add_routing_flags(*command, *o);
  command->add_option("--plot", o->plot, "Write tokens per second over ranks to this SVG file")
      ->type_name("FILE")
      ->check(svg_name_error);
  command->add_flag("--json", o->json, "One JSON object on stdout");
  command->callback([o, &status] { status = run_simulate(*o); });
}

}  // namespace ferry
