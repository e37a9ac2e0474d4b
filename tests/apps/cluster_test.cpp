// Ranks that were started one by one, as torchrun, srun or a script would: they find each other,
// give the same bits, and say in one line each what is wrong.
#include "apps/cluster.h"

#include <algorithm>

#include "apps/server.h"

namespace ferry {
namespace {

using namespace std::chrono_literals;

TEST_F(Cluster, RanksFromVariablesGiveTheSameBitsAndOnlyTheFirstPrints) {
  for (Rank r = 0; r < 3; ++r) start(r, 3);
  const auto outcomes = wait_for_all();
  EXPECT_EQ(results_of(outcomes[0]), alone());
  for (const std::size_t r : {1U, 2U}) {
    EXPECT_EQ(outcomes[r].status, 0);
    EXPECT_EQ(outcomes[r].out, "");
    EXPECT_EQ(outcomes[r].err, "");
  }
}

TEST_F(Cluster, OneProcessAHostStartsItsRanks) {
  for (int node = 0; node < 2; ++node) {
    programs_.push_back(
        std::make_unique<Program>(generate() + Arguments{"--quiet"},
                                  Arguments{"NODE_RANK=" + std::to_string(node),
                                            "WORLD_LOCAL_SIZE=2",
                                            "WORLD_SIZE=4",
                                            "MASTER_ADDR=127.0.0.1",
                                            "MASTER_PORT=" + std::to_string(port_)}));
  }
  const auto outcomes = wait_for_all();
  EXPECT_EQ(results_of(outcomes[0]), alone());
  EXPECT_EQ(outcomes[1].status, 0) << outcomes[1].err;
  EXPECT_EQ(outcomes[1].out, "");
}

TEST_F(Cluster, ProvidersAndTheProgressThreadGiveTheSameBits) {
  const json expected = alone();
  const std::vector<Arguments> ways{{"--fabric-provider", "tcp"},
                                    {"--fabric-provider", "shm"},
                                    {"--fabric-progress-thread"},
                                    {"--fabric-rails", "3"}};
  for (const Arguments& way : ways) {
    const auto outcome =
        test::run_program(generate() + Arguments{"--ep", "4", "--transport", "fabric"} + way);
    EXPECT_EQ(results_of(outcome), expected) << way.back();
  }
}

TEST_F(Cluster, AMissingRankIsNamed) {
  for (const Rank r : {0, 2}) start(r, 3, {"--timeout", "1"});
  expect_all_fail("rank 1 did not come within 1.0 s");
}

TEST_F(Cluster, TwoRanksWithOneNumberAreRefused) {
  for (const Rank r : {0, 1, 1}) start(r, 3, {"--timeout", "5"});
  expect_all_fail("two processes say that they are rank 1");
}

TEST_F(Cluster, AWrongTokenIsRefused) {
  start(0, 2, {"--timeout", "2"});
  start(1, 2, {"--timeout", "2"}, "s3cref");
  const auto outcomes = wait_for_all();
  test::expect_one_line(outcomes[0], 1, "rank 1 did not come");
  test::expect_one_line(outcomes[1], 1, "its FERRY_TOKEN is not that of rank 0");
}

TEST_F(Cluster, DifferentModelsAndOptionsAreNamed) {
  start(0, 2);
  programs_.push_back(std::make_unique<Program>(generate("qwen2_untied"), variables(1, 2)));
  expect_all_fail("ranks differ in architecture: rank 0 Qwen3MoeForCausalLM, rank 1 Qwen2Moe");
  programs_.clear();
  start(0, 2);
  start(1, 2, {"--max-tokens", "64"});
  expect_all_fail("ranks differ in --max-tokens: rank 0 512, rank 1 64");
}

TEST_F(Cluster, AMasterThatIsNotThereIsNamed) {
  start(1, 2, {"--timeout", "1"});
  expect_all_fail("rank 1 cannot join: cannot reach 127.0.0.1:");
}

TEST_F(Cluster, AnUnknownProviderIsRefusedOnEveryRank) {
  for (Rank r = 0; r < 2; ++r) start(r, 2, {"--quiet", "--fabric-provider", "pigeon"});
  expect_all_fail("provider pigeon cannot be used");
}

TEST_F(Cluster, WrongUsageIsSaidBeforeAnyWork) {
  const auto refused = [&](const Arguments& more, const std::string& text) {
    test::expect_one_line(test::run_program(generate() + more, variables(0, 2)), 2, text);
  };
  refused({"--ep", "3"}, "3 ranks asked for (--ep), but 2 were started");
  refused({"--transport", "shm"}, "this is rank 0 of 2 that were started already");
  test::expect_one_line(
      test::run_program(generate(), {"RANK=0", "WORLD_SIZE=2"}), 2, "MASTER_ADDR");
  test::expect_one_line(test::run_program(generate(),
                                          {"RANK=0",
                                           "WORLD_SIZE=2",
                                           "MASTER_ADDR=0.0.0.0",
                                           "MASTER_PORT=" + std::to_string(port_)}),
                        2,
                        "FERRY_TOKEN is not set");
}

TEST_F(LongCluster, AKilledRankIsNamedByTheOthers) {
  for (Rank r = 0; r < 3; ++r) start_endless(r, 3, "20");
  wait_for_text();
  kill(programs_[1]->pid(), SIGKILL);
  const auto outcomes = wait_for_all();
  for (const std::size_t r : {0U, 2U}) {
    EXPECT_EQ(outcomes[r].status, 1);
    EXPECT_NE(outcomes[r].err.find("rank 1 died"), std::string::npos) << outcomes[r].err;
  }
}

TEST_F(LongCluster, ARankThatStandsStillForAWhileIsWaitedForAndForLongIsNamed) {
  for (Rank r = 0; r < 3; ++r) start_endless(r, 3, "4");
  wait_for_text();
  kill(programs_[2]->pid(), SIGSTOP);
  std::this_thread::sleep_for(1s);
  const std::size_t before = programs_[0]->out().size();
  kill(programs_[2]->pid(), SIGCONT);
  std::this_thread::sleep_for(1s);
  EXPECT_GT(programs_[0]->out().size(), before);
  kill(programs_[2]->pid(), SIGSTOP);
  std::this_thread::sleep_for(6s);
  kill(programs_[2]->pid(), SIGCONT);
  const auto outcomes = wait_for_all();
  for (const std::size_t r : {0U, 1U}) {
    EXPECT_EQ(outcomes[r].status, 1);
    EXPECT_NE(outcomes[r].err.find("rank 2"), std::string::npos) << outcomes[r].err;
    EXPECT_NE(outcomes[r].err.find("4 s"), std::string::npos) << outcomes[r].err;
  }
}

TEST_F(LongCluster, KeysAndValuesHaveTheMemoryOfTheRankThatHasLeast) {
  const auto positions = [&](const std::string& of_first, const std::string& of_second) {
    const auto with = [&](const std::string& part) {
      return Arguments{"--model", model_, "--mem-fraction-static", part};
    };
    const Program second(Arguments{"serve", "--threads", "1", "--quiet"} + with(of_second),
                         variables(1, 2));
    test::Server first(with(of_first), variables(0, 2));
    return test::positions_of(first);
  };
  const std::int64_t much = positions("0.5", "0.5");
  EXPECT_LT(positions("0.5", "0.001"), much);
  EXPECT_LT(positions("0.001", "0.5"), much);
}

// --- mpirun --------------------------------------------------------------------------------------

class Mpirun : public Cluster {
 protected:
  void SetUp() override {
    const auto all = list_transports();
    const auto mpi = std::find_if(
        all.begin(), all.end(), [](const TransportInfo& info) { return info.name == "mpi"; });
    if (!mpi->reason.starts_with("built in") || test::mpirun_line().empty())
      GTEST_SKIP() << "mpi: " << mpi->reason;
  }

  std::string file(const std::string& name) const { return (directory_.path() / name).string(); }

  Outcome run(int ranks, const Arguments& arguments) const {
    std::string line =
        test::mpirun_line() + " -n " + std::to_string(ranks) + " " + test::program_path();
    for (const std::string& argument : arguments) line += " '" + argument + "'";
    const int status = std::system((line + " >" + file("out") + " 2>" + file("err")).c_str());
    return {.status = WEXITSTATUS(status),
            .out = test::read_file(file("out")),
            .err = test::read_file(file("err"))};
  }

  test::TempDir directory_;
};

TEST_F(Mpirun, RanksGiveTheSameBitsAndOnlyTheFirstPrints) {
  const auto outcome = run(3, generate() + Arguments{"--quiet"});
  EXPECT_EQ(results_of(outcome), alone());
  EXPECT_EQ(outcome.err, "");
}

TEST_F(Mpirun, FabricFindsTheRanksOfOneHostToo) {
  if (!has_fabric()) GTEST_SKIP() << "this build has no fabric";
  if (test::mpirun_line().find("OMPI_") == std::string_view::npos)
    GTEST_SKIP() << "only Open MPI tells its ranks what a master's port can be made of";
  const auto outcome = run(2, generate() + Arguments{"--quiet", "--transport", "fabric"});
  EXPECT_EQ(results_of(outcome), alone());
}

TEST_F(Mpirun, BenchesRunAndCountBytesOfBothLevels) {
  const Arguments shape{"--tokens", "8", "--hidden", "64", "--experts", "16", "--seconds", "0.01"};
  const auto a2a = run(4, Arguments{"bench", "a2a", "--ranks-per-host", "2", "--json"} + shape);
  ASSERT_EQ(a2a.status, 0) << a2a.err;
  const json rows = json::parse(a2a.out);
  ASSERT_EQ(rows.size(), 3U);
  for (const json& row : rows) {
    EXPECT_EQ(row["transport"], "mpi");
    EXPECT_EQ(row["baseline"], "mpi");
    EXPECT_EQ(row["hosts"], 2);
    EXPECT_GT(row["network_bytes"].get<double>(), 0);
    EXPECT_EQ(row["host_bytes"].get<double>() + row["network_bytes"].get<double>(),
              row["wire_bytes"].get<double>());
  }
  // A token leaves for the other host at most once, in bf16.
  EXPECT_LE(rows[0]["network_bytes"].get<double>(), 8 * 64 * 2);
  const auto moe = run(2, Arguments{"bench", "moe", "--inter", "32", "--json"} + shape);
  ASSERT_EQ(moe.status, 0) << moe.err;
  EXPECT_EQ(json::parse(moe.out)[0]["ep"], 2);
}

TEST_F(Mpirun, WrongUsageIsSaidByARank) {
  const auto outcome = run(2, generate() + Arguments{"--transport", "shm"});
  EXPECT_EQ(outcome.status, 2);
  EXPECT_NE(outcome.err.find("that were started already"), std::string::npos) << outcome.err;
}

}  // namespace
}  // namespace ferry
