// What launchers' variables say about ranks.
#include "ferry/world.h"

#include <gtest/gtest.h>

#include <map>

#include "ferry/core/error.h"

namespace ferry {
namespace {

using Variables = std::map<std::string, std::string>;

std::optional<World> world_of(const Variables& variables) {
  return find_world([&](const char* name) -> const char* {
    const auto found = variables.find(name);
    return found == variables.end() ? nullptr : found->second.c_str();
  });
}

std::string refusal(const Variables& variables) {
  try {
    world_of(variables);
  } catch (const ConfigError& e) {
    return e.what();
  }
  return "";
}

TEST(World, IsAbsentWithoutALauncher) {
  EXPECT_FALSE(world_of({}));
  EXPECT_FALSE(world_of({{"RANK", "0"}}));
  EXPECT_FALSE(world_of({{"MASTER_ADDR", "10.0.0.1"}, {"MASTER_PORT", "29500"}}));
}

TEST(World, ReadsTorchrun) {
  const auto world = world_of({{"RANK", "3"},
                               {"WORLD_SIZE", "4"},
                               {"LOCAL_RANK", "1"},
                               {"GROUP_RANK", "1"},
                               {"MASTER_ADDR", "node-a"},
                               {"MASTER_PORT", "29500"},
                               {"FERRY_TOKEN", "s3cret"}});
  ASSERT_TRUE(world);
  EXPECT_EQ(world->rank, 3);
  EXPECT_EQ(world->size, 4);
  EXPECT_EQ(world->own, 1);
  EXPECT_EQ(world->node, "1");
  EXPECT_EQ(world->master_host, "node-a");
  EXPECT_EQ(world->master_port, 29500);
  EXPECT_EQ(world->secret, "s3cret");
}

TEST(World, KnowsAHostByItsFirstRank) {
  const auto node_of = [](const char* rank, const char* local) {
    return world_of({{"RANK", rank}, {"WORLD_SIZE", "4"}, {"LOCAL_RANK", local}})->node;
  };
  EXPECT_EQ(node_of("0", "0"), node_of("1", "1"));
  EXPECT_EQ(node_of("2", "0"), node_of("3", "1"));
  EXPECT_NE(node_of("1", "1"), node_of("2", "0"));
  EXPECT_THROW(node_of("1", "2"), ConfigError);
}

TEST(World, LeavesTorchrunsOwnStoreItsPort) {
  const auto world = world_of({{"RANK", "0"},
                               {"WORLD_SIZE", "2"},
                               {"MASTER_PORT", "29500"},
                               {"TORCHELASTIC_USE_AGENT_STORE", "True"}});
  EXPECT_EQ(world->master_port, 29501);
}

TEST(World, OneProcessAHostStartsItsRanks) {
  const auto world = world_of({{"NODE_RANK", "1"}, {"WORLD_LOCAL_SIZE", "4"}, {"WORLD_SIZE", "8"}});
  ASSERT_TRUE(world);
  EXPECT_EQ(world->rank, 4);
  EXPECT_EQ(world->own, 4);
  EXPECT_EQ(world->node, "1");
}

TEST(World, ReadsMpirun) {
  const Variables ranks{
      {"OMPI_COMM_WORLD_RANK", "1"}, {"OMPI_COMM_WORLD_SIZE", "2"}, {"PMIX_NAMESPACE", "1234"}};
  const auto far = world_of(ranks);
  ASSERT_TRUE(far);
  EXPECT_EQ(far->launcher, World::Launcher::open_mpi);
  EXPECT_EQ(far->rank, 1);
  EXPECT_EQ(far->master_host, "");
  Variables one_host = ranks;
  one_host["OMPI_COMM_WORLD_LOCAL_SIZE"] = "2";
  EXPECT_EQ(world_of(one_host)->master_host, "127.0.0.1");
  EXPECT_EQ(world_of(one_host)->master_port, far->master_port);
  EXPECT_EQ(world_of({{"PMI_RANK", "0"}, {"PMI_SIZE", "2"}})->launcher, World::Launcher::mpich);
}

TEST(World, ReadsSlurm) {
  const auto world = world_of({{"SLURM_PROCID", "2"},
                               {"SLURM_STEP_NUM_TASKS", "4"},
                               {"SLURM_NODEID", "1"},
                               {"SLURM_STEP_NODELIST", "gpu[07-08]"},
                               {"SLURM_JOB_ID", "991"}});
  ASSERT_TRUE(world);
  EXPECT_EQ(world->launcher, World::Launcher::slurm);
  EXPECT_EQ(world->rank, 2);
  EXPECT_EQ(world->node, "1");
  EXPECT_EQ(world->master_host, "gpu07");
  EXPECT_GE(world->master_port, 20000);
  EXPECT_LT(world->master_port, 30000);
}

TEST(World, FirstHostOfASlurmList) {
  EXPECT_EQ(first_host("n1"), "n1");
  EXPECT_EQ(first_host("n1,n2"), "n1");
  EXPECT_EQ(first_host("n[03-05,9],m1"), "n03");
  EXPECT_EQ(first_host("n[12]"), "n12");
  EXPECT_EQ(first_host("a,n[12]"), "a");
  EXPECT_EQ(first_host(""), "");
}

TEST(World, NamesTheVariableThatIsWrong) {
  EXPECT_NE(refusal({{"RANK", "4"}, {"WORLD_SIZE", "4"}}).find("RANK=4: expected a number from 0"),
            std::string::npos);
  EXPECT_NE(refusal({{"RANK", "0"}, {"WORLD_SIZE", "two"}}).find("WORLD_SIZE=two"),
            std::string::npos);
  EXPECT_NE(refusal({{"RANK", "0"}, {"WORLD_SIZE", "2"}, {"MASTER_PORT", "99999"}})
                .find("MASTER_PORT=99999"),
            std::string::npos);
  EXPECT_NE(refusal({{"NODE_RANK", "0"}, {"WORLD_LOCAL_SIZE", "2"}}).find("WORLD_SIZE is not set"),
            std::string::npos);
  EXPECT_NE(refusal({{"NODE_RANK", "0"}, {"WORLD_LOCAL_SIZE", "2"}, {"WORLD_SIZE", "3"}})
                .find("not a multiple"),
            std::string::npos);
}

}  // namespace
}  // namespace ferry
