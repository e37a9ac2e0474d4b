// Which cores each rank of this machine runs on, so that its threads and the weights they load stay
// on one NUMA node.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "ferry/core/types.h"
#include "ferry/launch.h"

namespace ferry {

/// The logical processors that a rank may use, as the system numbers them; of one NUMA node, or of
/// whole nodes where there are fewer ranks than nodes. Empty: wherever the system puts it.
using CpuList = std::vector<int>;

/// What is there to be divided up.
struct Machine {
  std::vector<CpuList> nodes;  ///< of each NUMA node that has any: one processor of each core
};

/// This machine, as far as this process may use it: launchers bind processes, and containers are
/// given parts of machines.
Machine this_machine();

/// NUMA nodes that this process may use, at least 1: a rank on each keeps its experts beside its
/// cores.
int default_ranks();

/// Logical processors of this machine over ranks, at least 1.
int default_threads(int ranks);

/// A machine that hwloc makes up: "numa:2 core:4 pu:2". Throws ConfigError where it cannot.
Machine synthetic_machine(const std::string& description);

/// Deals the machine out to `ranks` ranks in order: whole nodes where ranks are no more than nodes,
/// else even parts of a node each. Nothing is bound (all lists empty) on a machine of one node, and
/// where a rank would get less than a core: there the system's scheduler knows better.
std::vector<CpuList> cores_of_ranks(const Machine& machine, int ranks);

/// From now on this thread and those it starts run on these processors alone; memory they touch
/// first lies beside them. Does nothing for an empty list. Throws Error when the system refuses.
void bind_this_thread(const CpuList& cpus);

/// run_ranks(), in which every rank binds its thread to its cores first. Launchers have bound what
/// they started, or were told not to.
int run_bound_ranks(const LaunchOptions& launch, const std::function<int(Transport&)>& body);

}  // namespace ferry
