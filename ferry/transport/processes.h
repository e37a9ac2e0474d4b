// Ranks as child processes: start them, wait for them, say how they ended. For every transport
// whose ranks can be started on this machine by a fork.
#pragma once

#include <sys/types.h>

#include <functional>

#include "ferry/core/types.h"
#include "ferry/transport/unique_fd.h"

namespace ferry {

struct ProcessGroup {
  int ranks = 1;
  /// Runs in the child and returns its exit status. An exception ends the child with one line on
  /// stderr and status 1 (2 for a ConfigError).
  std::function<int(Rank)> child;
  /// Runs in the launcher as soon as a child's process id is known; may be empty.
  std::function<void(Rank, pid_t)> started;
};

/// Forks the ranks, waits for all of them and returns the largest exit status; a rank ended by a
/// signal is named on stderr and counts as 1. SIGINT and SIGTERM go on to the ranks; when they end
/// them, the status is 128 + signal. Children die with the launcher. Their process ids stay
/// reserved until the last has ended.
/// REQUIRES: no other thread runs. Throws ConfigError when the system refuses so many processes.
int run_processes(const ProcessGroup& group);

/// A descriptor that becomes readable when the process ends; not valid if the system has none to
/// give (errno says why).
UniqueFd open_process(pid_t pid);
/// Whether the process behind a valid open_process() descriptor has ended.
bool has_ended(const UniqueFd& process);

}  // namespace ferry
