// ferry bench a2a: what dispatch and combine cost, beside the floor of a plain copy and the classic
// alltoallv, all measured in one run.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <array>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "apps/ferry/a2a_bench.h"
#include "apps/ferry/command.h"
#include "apps/ferry/common_options.h"
#include "ferry/core/error.h"

namespace ferry {

namespace {

using Json = nlohmann::ordered_json;

struct BenchOptions {
  std::vector<std::string> backends{"pplx"};
  std::vector<std::string> transports{"inproc", "shm"};
  std::vector<int> ranks{2};
  std::vector<int> tokens{1, 128};
  int hidden = 7168;
  int experts = 256;
  int topk = 8;
  std::vector<std::string> routings{"uniform"};
  std::string dispatch_wire = "bf16";
  std::string combine_wire = "bf16";
  int threads = 1;
  double seconds = 1;
  bool json = false;
};

/// One operation of a measured case, as a row of the table or the JSON array.
struct Row {
  std::string_view op;
  Summary time, floor, baseline;
  std::uint64_t bytes = 0;
};

std::array<Row, 3> rows_of(const A2aResult& result) {
  const auto column = [&](auto value_of) {
    std::vector<double> values;
    for (const A2aIteration& i : result.iterations) values.push_back(value_of(i));
    return summarize(std::move(values));
  };
  using I = const A2aIteration&;
  return {Row{"dispatch",
              column([](I i) { return i.dispatch; }),
              column([](I i) { return i.floor_dispatch; }),
              column([](I i) { return i.classic_dispatch; }),
              result.bytes_dispatch},
          Row{"combine",
              column([](I i) { return i.combine; }),
              column([](I i) { return i.floor_combine; }),
              column([](I i) { return i.classic_combine; }),
              result.bytes_combine},
          Row{"total",
              column([](I i) { return i.total; }),
              column([](I i) { return i.floor_dispatch + i.floor_combine; }),
              column([](I i) { return i.classic_dispatch + i.classic_combine; }),
              result.bytes_dispatch + result.bytes_combine}};
}

Json json_of(const A2aCase& a2a, const A2aResult& result, const Row& row, double consumer) {
  return {{"backend", backend_name(a2a.backend)},
          {"transport", a2a.transport},
          {"ranks", a2a.ranks},
          {"tokens", a2a.tokens},
          {"hidden", a2a.hidden},
          {"experts", a2a.experts},
          {"topk", a2a.topk},
          {"dispatch_wire", dtype_name(a2a.dispatch_wire)},
          {"combine_wire", dtype_name(a2a.combine_wire)},
          {"routing", routing_name(a2a.routing)},
          {"op", row.op},
          {"mean_us", row.time.mean},
          {"stddev_us", row.time.stddev},
          {"p50_us", row.time.p50},
          {"p95_us", row.time.p95},
          {"p99_us", row.time.p99},
          {"min_us", row.time.min},
          {"bytes", row.bytes},
          {"wire_bytes", result.wire_bytes},
          {"consumer_us", consumer},
          {"floor_us", row.floor.p50},
          {"baseline", "classic"},
          {"baseline_p50_us", row.baseline.p50},
          {"iterations", result.iterations.size()}};
}

void print_heading(const BenchOptions& o) {
  fmt::print(
      "H {}, {} experts, top-{}, wire {}/{}; microseconds on the slowest rank, p50 (p99); "
      "floor: the same bytes copied plainly; classic: sort + alltoallv\n",
      o.hidden,
      o.experts,
      o.topk,
      o.dispatch_wire,
      o.combine_wire);
  fmt::print("{:<8} {:<8} {:>5} {:>6} {:<8} {:<9} {:>20} {:>16} {:>9} {:>7} {:>10} {:>8}\n",
             "backend",
             "over",
             "ranks",
             "tokens",
             "routing",
             "op",
             "p50 (p99)",
             "mean +- dev",
             "floor",
             "x floor",
             "classic",
             "faster");
}

void print_row(const A2aCase& a2a, const Row& row) {
  fmt::print(
      "{:<8} {:<8} {:>5} {:>6} {:<8} {:<9} {:>20} {:>16} {:>9.1f} {:>7.2f} {:>10.1f} {:>7.1f}x\n",
      backend_name(a2a.backend),
      a2a.transport,
      a2a.ranks,
      a2a.tokens,
      routing_name(a2a.routing),
      row.op,
      fmt::format("{:.1f} ({:.1f})", row.time.p50, row.time.p99),
      fmt::format("{:.1f} +- {:.1f}", row.time.mean, row.time.stddev),
      row.floor.p50,
      row.time.p50 / row.floor.p50,
      row.baseline.p50,
      row.baseline.p50 / row.time.p50);
}

std::vector<A2aCase> cases_of(const BenchOptions& o) {
  if (o.topk > o.experts)
    fail<ConfigError>("--topk {} is more than --experts {}", o.topk, o.experts);
  const auto wire = [](std::string_view option, const std::string& text) {
    return parse_dtype_option(option, text).value_or(DType::bf16);
  };
  std::vector<A2aCase> cases;
  for (const std::string& transport : o.transports)
    for (const std::string& backend : o.backends)
      for (const int ranks : o.ranks)
        for (const int tokens : o.tokens)
          for (const std::string& routing : o.routings)
            cases.push_back({.backend = parse_backend(backend),
                             .transport = transport,
                             .ranks = ranks,
                             .threads = o.threads,
                             .tokens = tokens,
                             .hidden = o.hidden,
                             .experts = o.experts,
                             .topk = o.topk,
                             .routing = parse_routing(routing),
                             .dispatch_wire = wire("--dispatch-wire", o.dispatch_wire),
                             .combine_wire = wire("--combine-wire", o.combine_wire),
                             .seconds = o.seconds});
  return cases;
}

int run(const BenchOptions& options) {
  const std::vector<A2aCase> cases = cases_of(options);
  Json all = Json::array();
  if (!options.json) print_heading(options);
  for (const A2aCase& a2a : cases) {
    const A2aResult result = measure_a2a(a2a);
    double consumer = 0;
    for (const A2aIteration& i : result.iterations) consumer += i.consumer;
    consumer /= static_cast<double>(result.iterations.size());
    for (const Row& row : rows_of(result)) {
      if (options.json) {
        all.push_back(json_of(a2a, result, row, consumer));
      } else {
        print_row(a2a, row);
      }
    }
  }
  if (options.json) fmt::print("{}\n", all.dump(2));
  return 0;
}

}  // namespace

void add_bench_a2a(CLI::App& bench, int& status) {
  CLI::App* a2a = bench.add_subcommand(
      "a2a", "Dispatch and combine, verified first, beside a plain copy and a classic alltoallv");
  auto o = std::make_shared<BenchOptions>();
  const auto list = [&](const char* name, auto& values, const char* help) {
    a2a->add_option(name, values, help)->delimiter(',')->capture_default_str();
  };
  const CLI::Range at_least_one(1, 1 << 20);
  list("--moe-a2a-backend", o->backends, "Backends, comma-separated");
  list("--transport", o->transports, "Transports, comma-separated");
  a2a->add_option("--ep", o->ranks, "Ranks, comma-separated")->delimiter(',')->check(at_least_one);
  a2a->add_option("--tokens", o->tokens, "Tokens per rank, comma-separated")
      ->delimiter(',')
      ->check(at_least_one);
  list("--routing", o->routings, "uniform, zipf, one-hot (every token to expert 0 among others)");
  a2a->add_option("--hidden", o->hidden, "Elements of a row")->check(at_least_one);
  a2a->add_option("--experts", o->experts, "Experts over all ranks")->check(at_least_one);
  a2a->add_option("--topk", o->topk, "Experts of each token")->check(at_least_one);
  a2a->add_option("--dispatch-wire", o->dispatch_wire, "Type that travels out: bf16, f32");
  a2a->add_option("--combine-wire", o->combine_wire, "Type that comes back: bf16, f32");
  a2a->add_option("--threads", o->threads, "Threads of each rank")->check(at_least_one);
  a2a->add_option("--seconds", o->seconds, "About how long to measure each case")
      ->check(CLI::Range(0.01, 3600.0));
  a2a->add_flag("--json", o->json, "One JSON array on stdout");
  a2a->callback([o, &status] { status = run(*o); });
}

}  // namespace ferry
