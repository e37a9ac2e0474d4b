// Starting ranks on this machine and running the same function on each.
#pragma once

#include <chrono>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "ferry/agreement.h"
#include "ferry/export.h"
#include "ferry/transport.h"
#include "ferry/world.h"

namespace ferry {

/// A row of the table of transports that this build knows.
struct TransportInfo {
  std::string_view name;
  bool available = false;
  std::string_view reason;  ///< why not, or what it is
  bool load_store = false;  ///< ranks read each other's memory (Capabilities)
};

/// All known transports, best first. The only table; `ferry doctor`, --transport and the
/// conformance suite read it.
FERRY_API std::vector<TransportInfo> list_transports();

struct LaunchOptions {
  std::string transport = "inproc";
  int ranks = 1;
  /// How long allocate_region() waits for the other ranks.
  std::chrono::nanoseconds start_timeout = std::chrono::seconds(30);
  /// How long ranks on a network wait for each other to appear.
  std::chrono::nanoseconds join_timeout = std::chrono::seconds(30);
  /// The ranks that somebody else started; none: run_ranks() starts its own.
  std::optional<World> world = {};
  /// What ranks that were started apart must have alike, as names and values.
  Agreement agreement = {};
  /// Ranks [h * n, (h + 1) * n) share host h; 0: as they find out themselves. Ranks that fabric
  /// starts itself are each a host of their own then, since that is what there is to try.
  int ranks_per_host = 0;
  std::string fabric_provider = {};  ///< of libfabric; empty: the best that all ranks have
  int fabric_rails = 0;              ///< interfaces of a rank; 0: all of an RDMA network, else one
  bool fabric_progress_thread =
      false;  ///< data moves while a rank computes, at the price of a core
};

/// Throws ConfigError for an unknown or unavailable transport or a number of ranks the machine
/// cannot hold; for callers with work to do before run_ranks, which checks it too.
FERRY_API void check_launch(const LaunchOptions& options);

/// Runs `body(transport)` as `options.ranks` ranks and returns the largest exit status.
///
/// inproc: ranks are threads of this process; shm, fabric: ranks are child processes, forked before
/// anything else here starts a thread (REQUIRES: no other thread runs). With `options.world` this
/// process is one of the ranks, and the status is its own. An exception from a body aborts the
/// group. inproc, and a rank that is this process, throw the cause again; with child processes each
/// prints its one line to stderr, and a rank ended by a signal is named by the launcher.
/// Throws ConfigError as check_launch() does.
FERRY_API int run_ranks(const LaunchOptions& options, const std::function<int(Transport&)>& body);

}  // namespace ferry
