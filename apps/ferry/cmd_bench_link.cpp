// ferry bench link: latency and bandwidth of put+signal between two ranks, beside what the library
// under the transport does by itself in the same run.
#include <fmt/core.h>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "apps/ferry/bench_support.h"
#include "apps/ferry/command.h"
#include "apps/ferry/command_line.h"
#include "apps/ferry/common_options.h"
#include "apps/ferry/link.h"
#include "ferry/core/error.h"

namespace ferry {

namespace {

using Json = nlohmann::ordered_json;

/// The two take turns in blocks, so that both see the same weather.
constexpr int kTripsOfBlock = 50;
constexpr std::size_t kBytesOfBlock = std::size_t{8} << 20;
constexpr int kMostInStream = 64;

struct LinkOptions {
  std::vector<std::string> transports;
  std::vector<std::string> providers{"tcp", "shm"};
  std::vector<std::size_t> sizes{8, 64, 1024, 16384, 65536, 262144, 1048576};
  int blocks = 20;
  bool json = false;
};

/// Of one kind of link at one size, in order of measuring; rank 0's.
struct Samples {
  std::vector<double> one_way_us;
  std::vector<double> gbps;
};

struct SizeResult {
  std::size_t bytes = 0;
  Samples ours, raw;
};

void measure_block(Link& link, std::size_t bytes, Samples& samples) {
  const auto fitting = static_cast<int>(kBytesOfBlock / std::max<std::size_t>(bytes, 1));
  const int trips = std::clamp(fitting, 2, kTripsOfBlock);
  for (int i = 0; i < trips; ++i) {
    const Stopwatch watch;
    link.round_trip(bytes);
    samples.one_way_us.push_back(watch.microseconds() / 2);
  }
  const int count = std::clamp(fitting, 2, kMostInStream);
  const Stopwatch watch;
  link.stream(bytes, count);
  samples.gbps.push_back(static_cast<double>(bytes) * count / watch.microseconds() / 1e3);
}

/// On both ranks; `results` counts on rank 0.
void measure(const LinkOptions& o,
             const LaunchOptions& launch,
             Transport& transport,
             std::vector<SizeResult>& results,
             std::string& raw_name) {
  const std::size_t most = *std::max_element(o.sizes.begin(), o.sizes.end());
  const auto ours = transport_link(transport, most);
  const auto raw = raw_link(transport, launch, most);
  raw_name = raw->name();
  for (const std::size_t bytes : o.sizes) {
    Samples warmup;
    for (Link* link : {ours.get(), raw.get()}) measure_block(*link, bytes, warmup);
    SizeResult& result = results.emplace_back(SizeResult{.bytes = bytes});
    for (int block = 0; block < o.blocks; ++block) {
      measure_block(*ours, bytes, result.ours);
      measure_block(*raw, bytes, result.raw);
    }
  }
  if (transport.barrier(deadline_in(std::chrono::seconds(60))) == WaitResult::timed_out)
    fail<Error>("bench link: the other rank did not come to the end");
}

Json json_of(const LaunchOptions& launch, const SizeResult& r, const std::string& raw_name) {
  const Summary ours = summarize(r.ours.one_way_us);
  const Summary raw = summarize(r.raw.one_way_us);
  const double gbps = summarize(r.ours.gbps).p50;
  const double raw_gbps = summarize(r.raw.gbps).p50;
  return {{"transport", launch.transport},
          {"provider", launch.fabric_provider},
          {"bytes", r.bytes},
          {"latency_us", ours.p50},
          {"latency_p99_us", ours.p99},
          {"raw", raw_name},
          {"raw_latency_us", raw.p50},
          {"raw_latency_p99_us", raw.p99},
          {"latency_ratio", ours.p50 / raw.p50},
          {"gbps", gbps},
          {"raw_gbps", raw_gbps},
          {"bandwidth_ratio", gbps / raw_gbps},
          {"samples", r.ours.one_way_us.size()}};
}

void print_rows(const Json& rows) {
  fmt::print("{:<12} {:>9} {:>18} {:>18} {:>6} {:>9} {:>9} {:>6}  {}\n",
             "over",
             "bytes",
             "us one way (p99)",
             "raw us (p99)",
             "ratio",
             "GB/s",
             "raw GB/s",
             "ratio",
             "raw");
  for (const Json& row : rows) {
    const auto number = [&](const char* key) { return row[key].get<double>(); };
    const auto provider = row["provider"].get<std::string>();
    fmt::print(
        "{:<12} {:>9} {:>18} {:>18} {:>6.2f} {:>9.2f} {:>9.2f} {:>6.2f}  {}\n",
        row["transport"].get<std::string>() + (provider.empty() ? "" : " " + provider),
        row["bytes"].get<std::size_t>(),
        fmt::format("{:.2f} ({:.1f})", number("latency_us"), number("latency_p99_us")),
        fmt::format("{:.2f} ({:.1f})", number("raw_latency_us"), number("raw_latency_p99_us")),
        number("latency_ratio"),
        number("gbps"),
        number("raw_gbps"),
        number("bandwidth_ratio"),
        row["raw"].get<std::string>());
  }
}

/// One row of JSON for each size. Ranks that ferry starts are processes that share no memory with
/// it, so rank 0 hands its rows over as text.
Json rows_of(const LinkOptions& o, const LaunchOptions& launch) {
  constexpr std::size_t kTextBytes = std::size_t{1} << 20;
  const SharedArray<char> text(kTextBytes);
  const int status = run_ranks(launch, [&](Transport& transport) {
    std::vector<SizeResult> results;
    std::string raw_name;
    measure(o, launch, transport, results, raw_name);
    if (transport.rank() != 0) return 0;
    Json rows = Json::array();
    for (const SizeResult& r : results) rows.push_back(json_of(launch, r, raw_name));
    const std::string dump = rows.dump();
    FERRY_CHECK(dump.size() < kTextBytes, "{} bytes of results", dump.size());
    std::copy(dump.begin(), dump.end(), &text[0]);
    return 0;
  });
  if (status != 0) fail<Error>("bench link: a rank failed; its reason is above");
  return text[0] == '\0' ? Json::array() : Json::parse(&text[0]);
}

int run(LinkOptions o) {
  const auto world = started_world();
  if (world && world->size != 2)
    fail<ConfigError>("bench link measures between 2 ranks, but {} were started", world->size);
  if (o.transports.empty()) {
    if (world) {
      o.transports = {default_transport(world)};
    } else {
      for (const TransportInfo& info : list_transports())
        if (info.available && info.name != "mpi") o.transports.emplace_back(info.name);
    }
  }
  Json rows = Json::array();
  for (const std::string& transport : o.transports) {
    const bool fabric = transport == "fabric";
    for (const std::string& provider : fabric ? o.providers : std::vector<std::string>{""}) {
      // Each rank a host of its own: what is between hosts is what is measured.
      const LaunchOptions launch{.transport = transport,
                                 .ranks = 2,
                                 .world = world,
                                 .ranks_per_host = fabric || transport == "mpi" ? 1 : 0,
                                 .fabric_provider = provider};
      check_launch(launch);
      for (Json& row : rows_of(o, launch)) rows.push_back(std::move(row));
    }
  }
  if (!speaks_for_all()) return 0;
  if (o.json) {
    fmt::print("{}\n", rows.dump(2));
  } else {
    print_rows(rows);
  }
  return 0;
}

}  // namespace

void add_bench_link(Command& bench, int& status) {
  Command* link = bench.add_subcommand(
      "link", "Latency and bandwidth of put+signal between two ranks, beside the bare library");
  link->footer(
      "Half a round trip, and a stream of up to 64 puts that ends with an answer. Beside them, in "
      "turns "
      "and in the same\nrun: fi_writedata on an endpoint of its own (fabric), MPI_Isend and "
      "MPI_Irecv "
      "(mpi, under mpirun -np 2), memcpy and an\natomic addition (inproc, shm).");
  auto o = std::make_shared<LinkOptions>();
  link->add_option("--transport", o->transports, "Transports [all; under a launcher the best]")
      ->delimiter(',');
  link->add_option("--fabric-provider", o->providers, "Providers of libfabric, for fabric")
      ->delimiter(',')
      ->capture_default_str();
  link->add_option("--sizes", o->sizes, "Bytes of a put")
      ->delimiter(',')
      ->range(std::size_t{1}, std::size_t{1} << 30)
      ->capture_default_str();
  link->add_option(
          "--blocks", o->blocks, "Blocks of each size: up to 50 round trips and one stream")
      ->range(1, 10000)
      ->capture_default_str();
  link->add_flag("--json", o->json, "One JSON array on stdout");
  link->callback([o, &status] { status = run(*o); });
}

}  // namespace ferry
