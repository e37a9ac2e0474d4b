// Over what a benchmark runs: see bench_support.h.
#include <fmt/format.h>

#include "apps/ferry/bench_support.h"
#include "apps/ferry/command_line.h"
#include "apps/ferry/common_options.h"
#include "ferry/launch.h"
#include "ferry/transport/registry.h"
#include "ferry/version.h"

namespace ferry {

void BenchRanks::add_to(Command& app) {
  std::string names;
  for (const TransportEntry& info : known_transports())
    names += (names.empty() ? "" : ", ") + std::string(info.name);
  app.add_option(
         "--transport",
         transports,
         fmt::format(
             "{} [{}; the best under a launcher]", names, fmt::join(default_transports, ",")))
      ->delimiter(',');
  app.add_option("--ep",
                 ranks,
                 fmt::format("Ranks [{}; as many as were started]", fmt::join(default_ranks, ",")))
      ->delimiter(',')
      ->range(1, 1 << 20);
  app.add_option("--fabric-provider", provider, "Of libfabric: efa, verbs, tcp, shm [the best]");
  app.add_option("--fabric-rails",
                 rails,
                 "Network interfaces of a rank [all of efa and verbs, 1 of others]")
      ->range(1, 64);
  app.add_option(
      "--ranks-per-host",
      ranks_per_host,
      "Of fabric and mpi: so many ranks in a row share memory [as they find each other; 1 "
      "where ferry starts them]");
}

void BenchRanks::resolve() {
  if (const auto world = started_world()) {
    default_transports = {default_transport(world)};
    default_ranks = {world->size};
  }
  if (transports.empty()) transports = default_transports;
  if (ranks.empty()) ranks = default_ranks;
  for (const std::string& transport : transports)
    for (const int n : ranks) check_launch(launch(transport, n));
}

LaunchOptions BenchRanks::launch(const std::string& transport, int n) const {
  const bool between_hosts = transport == "fabric" || transport == "mpi";
  return {.transport = transport,
          .ranks = n,
          .world = started_world(),
          .agreement = {{"version", std::string(version())}},
          .ranks_per_host = between_hosts ? ranks_per_host : 0,
          .fabric_provider = provider,
          .fabric_rails = rails};
}

bool speaks_for_all() {
  const auto world = started_world();
  return !world || world->rank == 0;
}

}  // namespace ferry
