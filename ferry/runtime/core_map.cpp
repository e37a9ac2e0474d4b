#include "ferry/runtime/core_map.h"

#include <hwloc.h>
#include <sched.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <thread>

#include "ferry/core/error.h"

namespace ferry {

namespace {

struct Free {
  void operator()(hwloc_topology_t t) const { hwloc_topology_destroy(t); }
};

using Topology = std::unique_ptr<hwloc_topology, Free>;

/// `description` empty: this machine.
Topology load(const std::string& description) {
  hwloc_topology_t raw = nullptr;
  if (hwloc_topology_init(&raw) != 0) fail<Error>("hwloc_topology_init failed");
  Topology topology(raw);
  if (!description.empty() && hwloc_topology_set_synthetic(raw, description.c_str()) != 0)
    fail<ConfigError>("\"{}\" describes no machine that hwloc understands", description);
  if (hwloc_topology_load(raw) != 0) fail<Error>("hwloc_topology_load failed");
  return topology;
}

/// One processor of each core below the node, those of `allowed` only where it is given: the second
/// one of a core shares its arithmetic.
CpuList cores_of(hwloc_topology_t topology, hwloc_obj_t node, const cpu_set_t* allowed) {
  CpuList cpus;
  const int cores = hwloc_get_nbobjs_inside_cpuset_by_type(topology, node->cpuset, HWLOC_OBJ_CORE);
  for (int i = 0; i < cores; ++i) {
    const hwloc_obj_t core = hwloc_get_obj_inside_cpuset_by_type(
        topology, node->cpuset, HWLOC_OBJ_CORE, static_cast<unsigned>(i));
    for (int cpu = hwloc_bitmap_first(core->cpuset); cpu >= 0;
         cpu = hwloc_bitmap_next(core->cpuset, cpu)) {
      if (allowed != nullptr && (cpu >= CPU_SETSIZE || !CPU_ISSET(cpu, allowed))) continue;
      cpus.push_back(cpu);
      break;
    }
  }
  return cpus;
}

Machine read(hwloc_topology_t topology, const cpu_set_t* allowed) {
  Machine machine;
  hwloc_obj_t node = nullptr;
  while ((node = hwloc_get_next_obj_by_type(topology, HWLOC_OBJ_NUMANODE, node)) != nullptr) {
    CpuList cpus = cores_of(topology, node, allowed);
    if (!cpus.empty()) machine.nodes.push_back(std::move(cpus));
  }
  return machine;
}

}  // namespace

Machine this_machine() {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  const bool known = sched_getaffinity(0, sizeof allowed, &allowed) == 0;
  return read(load("").get(), known ? &allowed : nullptr);
}

int default_ranks() { return std::max(1, static_cast<int>(this_machine().nodes.size())); }

int default_threads(int ranks) {
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()) / ranks);
}

Machine synthetic_machine(const std::string& description) {
  return read(load(description).get(), nullptr);
}

std::vector<CpuList> cores_of_ranks(const Machine& machine, int ranks) {
  std::vector<CpuList> result(static_cast<std::size_t>(ranks));
  const auto nodes = static_cast<int>(machine.nodes.size());
  if (nodes < 2) return result;
  for (int rank = 0; rank < ranks; ++rank) {
    CpuList& cpus = result[static_cast<std::size_t>(rank)];
    if (ranks <= nodes) {
      for (int node = rank * nodes / ranks; node < (rank + 1) * nodes / ranks; ++node) {
        const CpuList& more = machine.nodes[static_cast<std::size_t>(node)];
        cpus.insert(cpus.end(), more.begin(), more.end());
      }
      continue;
    }
    // Rank r stands on node r * nodes / ranks, the part-th of those that do.
    const int node = rank * nodes / ranks;
    const int first = (node * ranks + nodes - 1) / nodes;
    const int sharers = ((node + 1) * ranks + nodes - 1) / nodes - first;
    const CpuList& all = machine.nodes[static_cast<std::size_t>(node)];
    const auto cores = static_cast<int>(all.size());
    if (cores < sharers) return std::vector<CpuList>(static_cast<std::size_t>(ranks));
    const int part = rank - first;
    cpus.assign(all.begin() + cores * part / sharers, all.begin() + cores * (part + 1) / sharers);
  }
  return result;
}

void bind_this_thread(const CpuList& cpus) {
  if (cpus.empty()) return;
  cpu_set_t set;
  CPU_ZERO(&set);
  for (const int cpu : cpus)
    if (cpu < CPU_SETSIZE) CPU_SET(cpu, &set);
  if (sched_setaffinity(0, sizeof set, &set) != 0)
    fail<Error>("threads cannot be bound to processors: {}", std::strerror(errno));
}

int run_bound_ranks(const LaunchOptions& launch, const std::function<int(Transport&)>& body) {
  const std::vector<CpuList> cores =
      launch.world ? std::vector<CpuList>{} : cores_of_ranks(this_machine(), launch.ranks);
  return run_ranks(launch, [&](Transport& transport) {
    if (!cores.empty()) bind_this_thread(cores[static_cast<std::size_t>(transport.rank())]);
    return body(transport);
  });
}

}  // namespace ferry
