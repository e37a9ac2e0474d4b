#include "ferry/launch.h"

#include <algorithm>
#include <exception>
#include <thread>

#include "ferry/core/error.h"
#include "ferry/transport/mapped.h"
#include "ferry/transport/registry.h"

namespace ferry {

namespace {

/// Ranks beyond the cores take turns, which works but gains nothing; far beyond is a mistake.
int max_ranks() {
  const int cores = static_cast<int>(std::thread::hardware_concurrency());
  return std::min(kMaxMappedRanks, std::max(64, 8 * cores));
}

}  // namespace

JoinOptions join_options(const LaunchOptions& options, Rank rank) {
  return {
      .transport = options.transport,
      .rank = rank,
      .size = options.ranks,
      .join_timeout = options.join_timeout,
      .start_timeout = options.start_timeout,
      .agreement = options.agreement,
      // Ranks that fabric starts itself are each a host of their own.
      .ranks_per_host = options.ranks_per_host == 0 && !options.world ? 1 : options.ranks_per_host,
      .fabric_provider = options.fabric_provider,
      .fabric_rails = options.fabric_rails,
      .fabric_progress_thread = options.fabric_progress_thread};
}

int run_joined(Transport& transport, const RankBody& body) {
  try {
    return body(transport);
  } catch (...) {
    transport.abort(describe(std::current_exception()));
    throw;
  }
}

void check_launch(const LaunchOptions& options) {
  const TransportEntry& entry = find_transport(options.transport);
  if (options.ranks_per_host < 0) {
    fail<ConfigError>("--ranks-per-host must be at least 1, not {}", options.ranks_per_host);
  }
  if (options.ranks_per_host > 0 && !entry.joins_world) {
    fail<ConfigError>("--ranks-per-host is for transports between hosts, fabric and mpi, not {}",
                      options.transport);
  }
  if (options.world) {
    if (!entry.joins_world) {
      fail<ConfigError>(
          "transport {} starts its own ranks, but this is rank {} of {} that were started already; "
          "use --transport fabric or mpi",
          options.transport,
          options.world->rank,
          options.world->size);
    }
    if (options.ranks != options.world->size) {
      fail<ConfigError>(
          "{} ranks asked for (--ep), but {} were started", options.ranks, options.world->size);
    }
    return;
  }
  if (options.ranks < 1 || options.ranks > max_ranks()) {
    fail<ConfigError>("{} ranks asked for; this machine with {} cores runs 1 to {} of them (--ep)",
                      options.ranks,
                      std::thread::hardware_concurrency(),
                      max_ranks());
  }
}

int run_ranks(const LaunchOptions& options, const std::function<int(Transport&)>& body) {
  check_launch(options);
  return find_transport(options.transport).run(options, body);
}

}  // namespace ferry
