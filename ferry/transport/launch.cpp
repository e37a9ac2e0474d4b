#include "ferry/transport/launch.h"

#include <algorithm>
#include <exception>
#include <thread>

#include "ferry/core/error.h"
#include "ferry/transport/mapped.h"
#include "ferry/transport/registry.h"

namespace ferry {

// transports.inc is written by CMake: a line for each transport, best first.
#define FERRY_TRANSPORT(name) TransportEntry name##_transport();
#define FERRY_MISSING_TRANSPORT(name, reason)
#include "transports.inc"
#undef FERRY_TRANSPORT
#undef FERRY_MISSING_TRANSPORT

namespace {

const std::vector<TransportEntry>& table() {
  static const std::vector<TransportEntry> entries = {
#define FERRY_TRANSPORT(name) name##_transport(),
#define FERRY_MISSING_TRANSPORT(transport, reason)         \
  {.name = #transport,                                     \
   .about = "",                                            \
   .why_not = []() -> std::string_view { return reason; }, \
   .run = {},                                              \
   .load_store = false,                                    \
   .joins_world = false},
#include "transports.inc"
#undef FERRY_TRANSPORT
#undef FERRY_MISSING_TRANSPORT
  };
  return entries;
}

/// Ranks beyond the cores take turns, which works but gains nothing; far beyond is a mistake.
int max_ranks() {
  const int cores = static_cast<int>(std::thread::hardware_concurrency());
  return std::min(kMaxMappedRanks, std::max(64, 8 * cores));
}

const TransportEntry& find_transport(std::string_view name) {
  std::string known;
  for (const TransportEntry& entry : table()) {
    if (entry.name != name) {
      if (entry.why_not().empty())
        known += known.empty() ? entry.name : fmt::format(", {}", entry.name);
      continue;
    }
    if (const std::string_view reason = entry.why_not(); !reason.empty()) {
      fail<ConfigError>("transport {} is not available: {}", name, reason);
    }
    return entry;
  }
  fail<ConfigError>("unknown transport \"{}\"; this build has {}", name, known);
}

}  // namespace

std::vector<std::string> hosts_of(std::vector<std::string> found, const LaunchOptions& options) {
  int ranks_per_host = options.ranks_per_host;
  if (ranks_per_host == 0 && !options.world) ranks_per_host = 1;
  if (ranks_per_host == 0) return found;
  for (std::size_t r = 0; r < found.size(); ++r)
    found[r] = std::to_string(r / static_cast<std::size_t>(ranks_per_host));
  return found;
}

std::string describe(const std::exception_ptr& failure) {
  try {
    std::rethrow_exception(failure);
  } catch (const std::exception& e) {
    return e.what();
  } catch (...) {
    return "an exception of unknown type";
  }
}

std::vector<TransportInfo> list_transports() {
  std::vector<TransportInfo> infos;
  for (const TransportEntry& entry : table()) {
    const std::string_view reason = entry.why_not();
    infos.push_back(
        {entry.name, reason.empty(), reason.empty() ? entry.about : reason, entry.load_store});
  }
  return infos;
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
