// Which cores ranks get, on machines that hwloc makes up.
#include "ferry/runtime/core_map.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <numeric>
#include <thread>

#include "ferry/core/error.h"

namespace ferry {
namespace {

using Lists = std::vector<CpuList>;

Lists ranks_on(const std::string& machine, int ranks) {
  return cores_of_ranks(synthetic_machine(machine), ranks);
}

TEST(CoreMap, MachinesOfOneNodeAreLeftToTheScheduler) {
  for (const int ranks : {1, 2, 8}) {
    EXPECT_EQ(ranks_on("numa:1 core:4 pu:2", ranks), Lists(static_cast<std::size_t>(ranks)));
  }
}

TEST(CoreMap, TakesOneProcessorOfEachCore) {
  const Machine machine = synthetic_machine("numa:2 core:4 pu:2");
  EXPECT_EQ(machine.nodes, (Lists{{0, 2, 4, 6}, {8, 10, 12, 14}}));
}

TEST(CoreMap, ARankForEachNode) {
  EXPECT_EQ(ranks_on("numa:2 core:3 pu:1", 2), (Lists{{0, 1, 2}, {3, 4, 5}}));
}

TEST(CoreMap, FewerRanksThanNodesGetWholeNodes) {
  EXPECT_EQ(ranks_on("numa:4 core:2 pu:1", 2), (Lists{{0, 1, 2, 3}, {4, 5, 6, 7}}));
  EXPECT_EQ(ranks_on("numa:2 core:2 pu:1", 1), (Lists{{0, 1, 2, 3}}));
  EXPECT_EQ(ranks_on("numa:3 core:1 pu:1", 2), (Lists{{0}, {1, 2}}));
}

TEST(CoreMap, MoreRanksThanNodesShareEachNodeEvenly) {
  EXPECT_EQ(ranks_on("numa:2 core:4 pu:1", 4), (Lists{{0, 1}, {2, 3}, {4, 5}, {6, 7}}));
  EXPECT_EQ(ranks_on("numa:2 core:4 pu:1", 3), (Lists{{0, 1}, {2, 3}, {4, 5, 6, 7}}));
}

TEST(CoreMap, NothingIsBoundWhereARankWouldGetLessThanACore) {
  EXPECT_EQ(ranks_on("numa:2 core:2 pu:1", 8), Lists(8));
}

/// Whatever the numbers: no core twice, none of two nodes where ranks share nodes, none left over.
TEST(CoreMap, EveryCoreBelongsToOneRank) {
  for (const int nodes : {2, 3, 4}) {
    for (const int cores : {4, 5, 16}) {
      for (int ranks = 1; ranks <= nodes * 4; ++ranks) {
        const Lists lists = ranks_on(
            "numa:" + std::to_string(nodes) + " core:" + std::to_string(cores) + " pu:1", ranks);
        std::vector<int> owners(static_cast<std::size_t>(nodes * cores));
        for (const CpuList& cpus : lists) {
          EXPECT_FALSE(cpus.empty());
          for (const int cpu : cpus) ++owners[static_cast<std::size_t>(cpu)];
          if (ranks >= nodes) {
            EXPECT_EQ(cpus.front() / cores, cpus.back() / cores);
          }
        }
        EXPECT_EQ(owners, std::vector<int>(owners.size(), 1))
            << nodes << " nodes of " << cores << ", " << ranks << " ranks";
      }
    }
  }
}

TEST(CoreMap, ThisMachineHasWhatThisProcessMayUse) {
  cpu_set_t allowed;
  ASSERT_EQ(sched_getaffinity(0, sizeof allowed, &allowed), 0);
  std::size_t cores = 0;
  for (const CpuList& node : this_machine().nodes) {
    cores += node.size();
    for (const int cpu : node) EXPECT_TRUE(CPU_ISSET(cpu, &allowed)) << cpu;
  }
  EXPECT_GE(cores, 1U);
}

TEST(CoreMap, ThreadsStartedAfterwardsInheritTheBinding) {
  const int cpu = this_machine().nodes.at(0).at(0);
  std::thread rank([&] {
    bind_this_thread({cpu});
    std::thread worker([&] {
      cpu_set_t set;
      ASSERT_EQ(sched_getaffinity(0, sizeof set, &set), 0);
      EXPECT_EQ(CPU_COUNT(&set), 1);
      EXPECT_TRUE(CPU_ISSET(cpu, &set));
    });
    worker.join();
  });
  rank.join();
}

TEST(CoreMap, WrongDescriptionsAreConfigErrors) {
  EXPECT_THROW(synthetic_machine("nonsense"), ConfigError);
}

}  // namespace
}  // namespace ferry
