// ferry bench a2a: what dispatch and combine cost, beside the floor of a plain copy and the classic
// alltoallv, all measured in one run.
#include <fmt/core.h>

#include <algorithm>
#include <fstream>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "apps/ferry/a2a_bench.h"
#include "apps/ferry/a2a_report.h"
#include "apps/ferry/bench_support.h"
#include "apps/ferry/command.h"
#include "apps/ferry/command_line.h"
#include "apps/ferry/common_options.h"
#include "apps/ferry/gpu_bench.h"
#include "apps/ferry/svg_name.h"
#include "ferry/choose_backend.h"
#include "ferry/core/error.h"
#include "ferry/exchange/compatibility.h"
#include "ferry/exchange/gpu/cuda.h"
#include "ferry/exchange/gpu/gpu_exchange.h"
#include "ferry/launch.h"

namespace ferry {

namespace {

struct BenchOptions {
  std::vector<std::string> backends{"pplx"};
  std::vector<std::string> modes{"low_latency"};
  std::vector<std::string> layouts{"default"};
  BenchRanks over{.default_transports = {"inproc", "shm"}, .default_ranks = {2}};
  std::vector<int> tokens{1, 128};
  int hidden = 7168;
  int experts = 256;
  int topk = 8;
  std::vector<std::string> routings{"uniform"};
  std::vector<std::string> dispatch_wires{"bf16"};
  std::vector<std::string> combine_wires{"bf16"};
  std::vector<std::string> expert_types{"wire"};
  bool allow_prereduce = false;
  int threads = 1;
  double seconds = 1;
  bool waits = false;
  bool json = false;
  std::string plot;
  std::string device = "cpu";
  int inter = 0;
  std::string weights = "bf16";
};

template <class Values, class Name>
std::string names_of(const Values& values, Name name) {
  std::string all;
  for (const auto value : values) {
    all += all.empty() ? "" : ", ";
    all += name(value);
  }
  return all;
}

/// `names` with "all" replaced by every name of the table.
template <class Values, class Name>
std::vector<std::string> expanded(const std::vector<std::string>& names,
                                  const Values& values,
                                  Name name_of) {
  std::vector<std::string> all;
  for (const std::string& name : names) {
    if (name != "all")
      all.push_back(name);
    else
      for (const auto value : values) all.emplace_back(name_of(value));
  }
  return all;
}

/// Sets the exchange of a case whose other members stand, and replaces what is "auto".
void set_exchange(A2aCase& a2a, const std::string& layout, bool allow_prereduce) {
  MoeA2ABackend backend = parse_backend(a2a.backend);
  DeepepMode mode = a2a.mode.empty() ? DeepepMode::low_latency : parse_deepep_mode(a2a.mode);
  if (leaves_choice(backend, mode)) {
    const BackendChoice choice =
        choose_backend(backend,
                       mode,
                       {.ranks = a2a.ranks,
                        .tokens = a2a.tokens,
                        .hidden = a2a.hidden,
                        .topk = a2a.topk,
                        .dispatch_wire = a2a.dispatch_wire,
                        .combine_wire = a2a.combine_wire,
                        .load_store = reads_peers(a2a.transport),
                        .experts_take_pointers = a2a.expert_type == a2a.dispatch_wire,
                        .allow_prereduce = allow_prereduce});
    a2a.chosen = backend_name(choice.backend);
    if (choice.backend == MoeA2ABackend::deepep) a2a.chosen = deepep_mode_name(choice.mode);
    backend = choice.backend;
    mode = choice.mode;
    if (speaks_for_all()) fmt::print(stderr, "ferry: {}\n", choice.why);
  }
  a2a.exchange = exchange_options(backend, mode);
  if (layout != "default") a2a.exchange.format = parse_format(layout);
  a2a.exchange.fixed_format = true;  // what is named is measured
}

/// Calls body(case) for every combination of the lists but for backends, modes and layouts.
template <class Body>
void for_each_shape(const BenchOptions& o, Body body) {
  A2aCase a2a{.threads = o.threads,
              .hidden = o.hidden,
              .experts = o.experts,
              .topk = o.topk,
              .seconds = o.seconds};
  const auto name = [](WireType type) { return wire_type_name(type); };
  for (const std::string& transport : o.over.transports) {
    a2a.transport = transport;
    for (const std::string& dispatch : expanded(o.dispatch_wires, wire_types(), name)) {
      a2a.dispatch_wire = parse_wire_type(dispatch, "--dispatch-wire");
      std::set<WireType> taken;  // "bf16" is the wire itself for a wire of bf16
      for (const std::string& type : o.expert_types) {
        a2a.expert_type =
            type == "wire" ? a2a.dispatch_wire : parse_wire_type(type, "--expert-type");
        if (!taken.insert(a2a.expert_type).second) continue;
        for (const std::string& combine : expanded(o.combine_wires, wire_types(), name)) {
          a2a.combine_wire = parse_wire_type(combine, "--combine-wire");
          for (const std::string& routing : o.routings) {
            a2a.routing = parse_routing(routing);
            for (const int ranks : o.over.ranks) {
              a2a.ranks = ranks;
              a2a.launch = o.over.launch(transport, ranks);
              for (const int tokens : o.tokens) {
                a2a.tokens = tokens;
                body(a2a);
              }
            }
          }
        }
      }
    }
  }
}

/// All combinations that go together. One that does not is named on stderr and left out; if none
/// is left, its reason is the error.
std::vector<A2aCase> cases_of(const BenchOptions& o) {
  if (o.topk > o.experts)
    fail<ConfigError>("--topk {} is more than --experts {}", o.topk, o.experts);
  const auto backends = expanded(o.backends, all_backends(), backend_name);
  const auto modes = expanded(o.modes, all_deepep_modes(), deepep_mode_name);
  std::vector<A2aCase> cases;
  std::string refusal;
  for_each_shape(o, [&](A2aCase a2a) {
    for (const std::string& backend : backends) {
      const bool deepep = parse_backend(backend) == MoeA2ABackend::deepep;
      for (const std::string& mode : deepep ? modes : std::vector<std::string>{""}) {
        for (const std::string& layout : o.layouts) {
          a2a.backend = backend;
          a2a.mode = mode;
          a2a.chosen.clear();
          set_exchange(a2a, layout, o.allow_prereduce);
          try {
            check_options(a2a.dispatcher(), a2a.ranks);
            cases.push_back(a2a);
          } catch (const ConfigError& e) {
            refusal = e.what();
            if (cases.empty() && backends.size() * modes.size() * o.layouts.size() == 1) continue;
            if (speaks_for_all())
              fmt::print(stderr, "ferry: left out {}: {}\n", backend_label(a2a), refusal);
          }
        }
      }
    }
  });
  if (cases.empty()) throw ConfigError(refusal);
  return cases;
}

/// Ranks of this process share the first device; one that is a process has its own, which another
/// rank of its host has not: kernels wait for those of others.
std::unique_ptr<GpuQueue> cuda_queue_of(const Transport& transport, std::size_t devices) {
  if (transport.capabilities().one_process) return make_cuda_queue(0, transport.size());
  std::size_t before = 0;  // ranks of this host
  for (Rank rank = 0; rank < transport.rank(); ++rank)
    before += transport.host_of(rank) == transport.host_of(transport.rank()) ? 1 : 0;
  if (before >= devices)
    fail<ConfigError>("--device cuda: rank {} is number {} of its host, which has {} devices",
                      transport.rank(),
                      before + 1,
                      devices);
  return make_cuda_queue(static_cast<int>(before), 1);
}

/// Ranks of this process that share the first CUDA device, or those that a launcher has started.
int run_on_cuda(const BenchOptions& options) {
  if (options.inter == 0 && options.weights != "bf16")
    fail<ConfigError>("--weights {} without --inter: there are no experts", options.weights);
  if (options.waits || !options.plot.empty())
    fail<ConfigError>("--device cuda shows neither --waits nor --plot: leave them out");
  const CudaDevices devices = find_cuda_devices();
  if (devices.names.empty()) fail<ConfigError>("--device cuda: {}", devices.why_none);
  const std::string& name = devices.names.front();
  std::vector<std::pair<A2aCase, GpuTimes>> all;
  for (A2aCase a2a : cases_of(options)) {
    // Forks of a process that has asked for devices have none.
    if (a2a.transport != "inproc" && !a2a.launch.world) continue;
    a2a.inter = options.inter;
    a2a.weights = parse_weight_type(options.weights, "--weights");
    a2a.exchange.fixed_format = options.layouts.front() != "default";
    a2a.exchange.format = format_for(a2a.exchange, /*reserved_costs=*/true);
    check_gpu_options(a2a.dispatcher(), a2a.ranks);
    const bool speaks = speaks_for_all() && !options.json;
    if (all.empty() && speaks) fmt::print("{}", gpu_heading(a2a, name));
    all.emplace_back(a2a, measure_gpu_exchange(a2a, [&](const Transport& transport) {
                       return cuda_queue_of(transport, devices.names.size());
                     }));
    if (speaks) fmt::print("{}", gpu_line(a2a, all.back().second));
    std::fflush(stdout);
  }
  if (all.empty())
    fail<ConfigError>(
        "--device cuda: ranks are threads (choose --transport inproc), or processes that torchrun "
        "or srun started");
  if (options.json && speaks_for_all()) fmt::print("{}", gpu_json(all, name));
  return 0;
}

int run(const BenchOptions& options) {
  if (options.device == "cuda") return run_on_cuda(options);
  if (options.device != "cpu") fail<ConfigError>("--device {}: choose cpu or cuda", options.device);
  if (options.inter > 0 || options.weights != "bf16")
    fail<ConfigError>(
        "--inter {} --weights {}: experts are timed with --device cuda; `ferry bench moe` has "
        "those of CPUs",
        options.inter,
        options.weights);
  const std::vector<A2aCase> cases = cases_of(options);
  std::ofstream plot;
  const bool speaks = speaks_for_all();
  if (speaks && !options.plot.empty()) {
    plot.open(options.plot);
    if (!plot) fail<Error>("--plot {}: cannot be written", options.plot);
  }
  std::vector<A2aMeasured> all;
  if (speaks && !options.json) fmt::print("{}", a2a_heading(cases.front()));
  for (const A2aCase& a2a : cases) {
    all.push_back({a2a, measure_a2a(a2a)});
    if (options.json || !speaks) continue;
    fmt::print("{}", a2a_lines(all.back()));
    if (options.waits) fmt::print("{}", a2a_wait_lines(all.back()));
    std::fflush(stdout);
  }
  if (!speaks) return 0;
  if (options.json)
    fmt::print("{}", a2a_json(all));
  else if (options.over.ranks.size() > 1)
    fmt::print("{}", a2a_ep_tables(all));
  if (plot.is_open()) {
    plot << a2a_plot(all);
    plot.close();
    if (!plot) fail<Error>("--plot {}: cannot be written", options.plot);
  }
  return 0;
}

}  // namespace

void add_bench_a2a(Command& bench, int& status) {
  Command* a2a = bench.add_subcommand(
      "a2a", "Dispatch and combine, verified first, beside a plain copy and a classic alltoallv");
  a2a->footer(
      "A case is measured for every combination of the lists; those that do not go together are "
      "left out.\nTimes are those of the slowest rank; routing is fresh in each iteration. A "
      "consumer reads every delivered row\nand writes every result between dispatch and combine; "
      "its time is not counted. bf16 rows are handed over in\nregistered_input(), where peers read "
      "them. Floor: each rank copies the distinct rows that it receives in that very\niteration to "
      "where the layout has them (row_pointers: writes the pointers), and sums the results of its "
      "own\ntokens from where they lie; no planning, messages, waiting or casts.");
  auto o = std::make_shared<BenchOptions>();
  const auto list = [&](const char* name, auto& values, const std::string& help) {
    return a2a->add_option(name, values, help)->delimiter(',')->capture_default_str();
  };
  const std::string wires = names_of(wire_types(), wire_type_name) + ", or all";
  list("--moe-a2a-backend", o->backends, names_of(all_backends(), backend_name) + ", or all");
  list("--deepep-mode",
       o->modes,
       "Of backend deepep: " + names_of(all_deepep_modes(), deepep_mode_name) + ", or all");
  list("--layout",
       o->layouts,
       "Rows as experts get them: padded, ragged, row_pointers; default: the backend's");
  a2a->add_flag("--allow-prereduce", o->allow_prereduce, "auto may sum on each rank first");
  o->over.add_to(*a2a);
  list("--tokens", o->tokens, "Tokens per rank")->range(1, 1 << 20);
  list("--routing", o->routings, "uniform, zipf, one_hot (every token to expert 0 among others)");
  a2a->add_option("--hidden", o->hidden, "Elements of a row")
      ->range(1, 1 << 20)
      ->capture_default_str();
  a2a->add_option("--experts", o->experts, "Experts over all ranks")
      ->range(1, 1 << 20)
      ->capture_default_str();
  a2a->add_option("--topk", o->topk, "Experts of each token")
      ->range(1, 1 << 20)
      ->capture_default_str();
  list("--dispatch-wire", o->dispatch_wires, "What travels out: " + wires);
  list("--expert-type",
       o->expert_types,
       "What experts take: wire (rows as delivered), bf16 or f32 (converted while copying)");
  list("--combine-wire", o->combine_wires, "What comes back: " + wires);
  a2a->add_option("--threads", o->threads, "Threads of each rank")
      ->range(1, 1 << 20)
      ->capture_default_str();
  a2a->add_option(
         "--device",
         o->device,
         "cpu, or cuda: ranks that share this machine's first CUDA device, or that torchrun or "
         "srun started, with a device each, on one host or several; beside a device's copy of as "
         "many bytes, and the exchange again as a captured graph (times are those of the "
         "queue; nothing consumes the rows)")
      ->capture_default_str();
  a2a->add_option(
         "--inter",
         o->inter,
         "With --device cuda: inner width of experts between dispatch and combine, which are "
         "timed too, beside the device's copy of their weights' bytes and the most its products "
         "do; 0: none")
      ->range(0, 1 << 20)
      ->capture_default_str();
  a2a->add_option(
         "--weights", o->weights, "With --inter: what experts' weights are held in, bf16 or fp8")
      ->capture_default_str();
  a2a->add_option("--seconds", o->seconds, "About how long to measure each case")
      ->range(0.01, 3600.0)
      ->capture_default_str();
  a2a->add_option("--plot", o->plot, "Write the median total over tokens per rank to this SVG file")
      ->type_name("FILE")
      ->check(svg_name_error);
  a2a->add_flag("--waits", o->waits, "Show who waited for whom (JSON always has it)");
  a2a->add_flag("--json", o->json, "One JSON array on stdout");
  a2a->callback([o, &status] {
    o->over.resolve();
    status = run(*o);
  });
}

}  // namespace ferry
