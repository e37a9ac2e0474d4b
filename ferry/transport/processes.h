// Ranks as child processes: start them, wait for them, say how they ended. For every transport
// whose ranks can be started on this machine by a fork.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>

#include "ferry/core/types.h"
#include "ferry/transport/unique_fd.h"

namespace ferry {

struct ProcessGroup {
  int ranks = 1;
  /// Runs in the child and returns its exit status. An exception ends the child with one line on
  /// stderr and status 1 (2 for a ConfigError).
  std::function<int(Rank)> child;
  /// Runs in the launcher when a child has ended; may be empty.
  std::function<void(Rank)> ended = {};
};

/// Forks the ranks, waits for all of them and returns the largest exit status; a rank ended by a
/// signal is named on stderr and counts as 1. SIGINT and SIGTERM go on to the ranks; when they end
/// them, the status is 128 + signal. Children die with the launcher. Their process ids stay
/// reserved until the last has ended.
/// REQUIRES: no other thread runs. Throws ConfigError when the system refuses so many processes.
int run_processes(const ProcessGroup& group);

/// A process that no later one can be taken for, though it may get the same number.
struct ProcessId {
  std::int32_t pid = 0;
  std::uint64_t started = 0;  ///< in ticks since the host has started
  bool operator==(const ProcessId&) const = default;
};

ProcessId this_process();

/// The same as open_process(pid); not valid, with ESRCH, where another process has the number now.
UniqueFd open_process(const ProcessId& process);

/// A descriptor that becomes readable when the process ends; not valid if the system has none to
/// give (errno says why).
UniqueFd open_process(pid_t pid);
/// Whether the process behind a valid open_process() descriptor has ended.
bool has_ended(const UniqueFd& process);

}  // namespace ferry
