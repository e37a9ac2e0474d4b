// A rank's end in a process that is already running, with other threads and libraries in it.
// Nothing is forked and no signal is touched. run_ranks() (launch.h) starts ranks and is built on
// this.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "ferry/agreement.h"
#include "ferry/export.h"
#include "ferry/store.h"
#include "ferry/transport.h"
#include "ferry/world.h"

namespace ferry {

struct JoinOptions {
  std::string transport = "shm";
  Rank rank = 0;
  int size = 1;
  /// Ranks with the same group and epoch meet. After a join() that failed, the next one needs
  /// another epoch, since what the ranks of the failed one said may still stand in the store.
  std::string group = "world";
  std::uint64_t epoch = 0;
  /// How long ranks wait for each other to appear, and join() lasts at most (and a second).
  std::chrono::nanoseconds join_timeout = std::chrono::seconds(30);
  /// How long collective calls that make something (regions, groups) wait for the other ranks.
  std::chrono::nanoseconds start_timeout = std::chrono::seconds(30);
  /// What all ranks must have alike, as names and values.
  Agreement agreement = {};
  /// fabric and mpi: this rank's host as the launcher knows it; ranks with different texts do not
  /// share memory, even where they could.
  std::string node = {};
  /// fabric and mpi: ranks [h * n, (h + 1) * n) share host h; 0: as they find out themselves.
  int ranks_per_host = 0;
  /// fabric: where rank 0 can be reached, name or number; empty: its host's addresses are tried.
  std::string host = {};
  std::string fabric_provider = {};  ///< of libfabric; empty: the best that all ranks have
  int fabric_rails = 0;              ///< interfaces of a rank; 0: all of an RDMA network, else one
  bool fabric_progress_thread =
      false;  ///< data moves while a rank computes, at the price of a core
  /// Asked now and then while a rank is waited for: whether it is known to come no more, so that
  /// nobody waits out join_timeout for it. By the thread that joins; empty: nobody knows.
  std::function<bool(Rank)> has_left = {};
};

/// Meets the other ranks through the store and returns this rank's end. All call it, once for each
/// group and epoch; the store is borrowed for the call. Threads: any, also several at the same time
/// for different ranks or groups.
///
/// Throws ConfigError for options that cannot be; TransportError that names a rank, on every rank
/// that is there and by the deadline (at most a second later), when a rank is missing, died, came
/// twice, cannot be in such a group, or has another agreement.
FERRY_API std::unique_ptr<Transport> join(const JoinOptions& options, Store& store);

/// What a launcher's variables (World) say: rank, size and node. REQUIRES: the process is one rank
/// (world.own is 1); else ConfigError.
FERRY_API JoinOptions join_options(const World& world, std::string transport);

}  // namespace ferry
