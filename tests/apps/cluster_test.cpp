// Ranks that were started one by one, as torchrun, srun or a script would: they find each other,
// give the same bits, and say in one line each what is wrong.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <nlohmann/json.hpp>
#include <thread>

#include "apps/program.h"
#include "ferry/transport/launch.h"
#include "ferry/transport/sockets.h"
#include "ferry/transport/unique_fd.h"

namespace ferry {
namespace {

using namespace std::chrono_literals;
using nlohmann::json;
using test::Arguments;
using test::operator+;
using test::Outcome;
using test::Program;

bool command(const std::string& line) { return std::system((line + " 2>/dev/null").c_str()) == 0; }

bool has_fabric() {
  for (const TransportInfo& info : list_transports())
    if (info.name == "fabric") return info.available;
  return false;
}

class Cluster : public testing::Test {
 protected:
  void SetUp() override {
    if (!has_fabric()) GTEST_SKIP() << "this build or machine has no fabric";
    // Free now, and nobody else is likely to be given it in the next seconds.
    port_ = own_address(listen_at(resolve("127.0.0.1", 0))).port();
  }

  static Arguments generate(const std::string& model = "qwen3_untied") {
    return {"generate",
            "--model",
            test::data_dir(model).string(),
            "--input-ids",
            ids_file(),
            "--max-new-tokens",
            "6",
            "--threads",
            "1",
            "--json"};
  }

  static std::string ids_file() {
    static const test::TempDir directory;
    std::string file = (directory.path() / "ids.txt").string();
    test::write_file(file, "1 2 3 4 5\n7 8 9\n3 1 4 1 5 9 2 6\n");
    return file;
  }

  static json results_of(const Outcome& outcome) {
    EXPECT_EQ(outcome.status, 0) << outcome.err;
    const json report = json::parse(outcome.out, nullptr, /*allow_exceptions=*/false);
    EXPECT_FALSE(report.is_discarded()) << "stdout: " << outcome.out << " stderr: " << outcome.err;
    return report.is_discarded() ? json() : report["results"];
  }

  static json alone() { return results_of(test::run_program(generate())); }

  Arguments variables(Rank rank, int size, const std::string& token = "s3cret") const {
    return {"RANK=" + std::to_string(rank),
            "WORLD_SIZE=" + std::to_string(size),
            "LOCAL_RANK=" + std::to_string(rank),
            "MASTER_ADDR=127.0.0.1",
            "MASTER_PORT=" + std::to_string(port_),
            "FERRY_TOKEN=" + token};
  }

  void start(Rank rank, int size, const Arguments& more = {}, const std::string& token = "s3cret") {
    programs_.push_back(std::make_unique<Program>(generate() + more, variables(rank, size, token)));
  }

  std::vector<Outcome> wait_for_all() {
    std::vector<Outcome> outcomes;
    for (const auto& program : programs_) outcomes.push_back(program->wait());
    return outcomes;
  }

  /// All have failed with one line that holds `text`.
  void expect_all_fail(const std::string& text) {
    for (const Outcome& outcome : wait_for_all()) test::expect_one_line(outcome, 1, text);
  }

  int port_ = 0;
  std::vector<std::unique_ptr<Program>> programs_;
};

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
  const std::vector<Arguments> ways{
      {"--fabric-provider", "tcp"}, {"--fabric-provider", "shm"}, {"--fabric-progress-thread"}};
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

/// A run that lasts until it is ended.
class LongCluster : public Cluster {
 protected:
  void SetUp() override {
    Cluster::SetUp();
    if (IsSkipped()) return;
    const auto made = test::run_program({"make-model", "--out", model_, "--quiet"});
    ASSERT_EQ(made.status, 0) << made.err;
  }

  Arguments endless(const std::string& timeout) const {
    return {"generate",
            "--model",
            model_,
            "--prompt",
            "hello",
            "--ignore-eos",
            "--max-new-tokens",
            "1000000",
            "--threads",
            "1",
            "--quiet",
            "--timeout",
            timeout};
  }

  void start_endless(Rank rank, int size, const std::string& timeout) {
    programs_.push_back(std::make_unique<Program>(endless(timeout), variables(rank, size)));
  }

  void wait_for_text() {
    const auto until = std::chrono::steady_clock::now() + 60s;
    while (programs_[0]->out().size() < 20 && std::chrono::steady_clock::now() < until)
      std::this_thread::sleep_for(5ms);
    ASSERT_GE(programs_[0]->out().size(), 20U);
  }

  test::TempDir directory_;
  std::string model_ = (directory_.path() / "model").string();
};

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

// --- mpirun --------------------------------------------------------------------------------------

class Mpirun : public Cluster {
 protected:
  void SetUp() override {
    const auto all = list_transports();
    const auto mpi = std::find_if(
        all.begin(), all.end(), [](const TransportInfo& info) { return info.name == "mpi"; });
    if (!mpi->reason.starts_with("built in") || !command("mpirun --version >" + file("out")))
      GTEST_SKIP() << "mpi: " << mpi->reason;
  }

  std::string file(const std::string& name) const { return (directory_.path() / name).string(); }

  Outcome run(int ranks, const Arguments& arguments) const {
    std::string line =
        "OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 mpirun --oversubscribe "
        "--mca btl self,vader -np " +
        std::to_string(ranks) + " " FERRY_PROGRAM;
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

// --- Two hosts -----------------------------------------------------------------------------------

/// A network namespace for the processes that this thread starts meanwhile.
class InHost {
 public:
  explicit InHost(const std::string& host)
      : here_(open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC)),
        there_(open(("/run/netns/" + host).c_str(), O_RDONLY | O_CLOEXEC)) {
    EXPECT_EQ(setns(there_.get(), CLONE_NEWNET), 0) << host;
  }

  ~InHost() { EXPECT_EQ(setns(here_.get(), CLONE_NEWNET), 0); }

  InHost(const InHost&) = delete;
  InHost& operator=(const InHost&) = delete;

 private:
  UniqueFd here_, there_;
};

/// Two network namespaces and a cable of 10 Gbit/s between them.
class TwoHosts : public LongCluster {
 protected:
  void SetUp() override {
    LongCluster::SetUp();
    if (IsSkipped()) return;
    if (geteuid() != 0) GTEST_SKIP() << "only root makes network namespaces";
    for (const std::string& host : hosts_) {
      if (!command("ip netns add " + host)) GTEST_SKIP() << "ip netns does not work here";
    }
    ASSERT_TRUE(command("ip link add " + hosts_[0] + " type veth peer name " + hosts_[1]));
    for (const std::size_t h : {0U, 1U}) {
      const std::string in = "ip -n " + hosts_[h] + " ";
      ASSERT_TRUE(command("ip link set " + hosts_[h] + " netns " + hosts_[h]));
      ASSERT_TRUE(
          command(in + "addr add 10.77.0." + std::to_string(h + 1) + "/24 dev " + hosts_[h]));
      ASSERT_TRUE(command(in + "link set lo up"));
      ASSERT_TRUE(command(in + "link set " + hosts_[h] + " up"));
      ASSERT_TRUE(command("tc -n " + hosts_[h] + " qdisc add dev " + hosts_[h] +
                          " root tbf rate 10gbit burst 4mb latency 50ms"));
    }
  }

  void TearDown() override {
    programs_.clear();
    for (const std::string& host : hosts_) command("ip netns del " + host);
  }

  /// As the same variables would start it by torchrun on that host.
  void start_on(std::size_t host, Rank rank, int size, const Arguments& arguments) {
    const InHost there(hosts_[host]);
    Arguments environment = variables(rank, size);
    environment[3] = "MASTER_ADDR=10.77.0.1";
    programs_.push_back(std::make_unique<Program>(arguments, environment));
  }

  const std::string id_ = std::to_string(getpid());
  const std::array<std::string, 2> hosts_{"fa" + id_, "fb" + id_};
};

TEST_F(TwoHosts, OfTwoRanksEachGiveTheSameBits) {
  for (Rank r = 0; r < 4; ++r)
    start_on(static_cast<std::size_t>(r) / 2, r, 4, generate() + Arguments{"--quiet"});
  const auto outcomes = wait_for_all();
  EXPECT_EQ(results_of(outcomes[0]), alone());
  for (const Outcome& outcome : outcomes) EXPECT_EQ(outcome.err, "");
}

TEST_F(TwoHosts, ACutCableEndsAllRanksAndTheyNameOne) {
  for (Rank r = 0; r < 4; ++r) start_on(static_cast<std::size_t>(r) / 2, r, 4, endless("4"));
  wait_for_text();
  ASSERT_TRUE(command("ip -n " + hosts_[0] + " link set " + hosts_[0] + " down"));
  const auto begin = std::chrono::steady_clock::now();
  for (const Outcome& outcome : wait_for_all()) {
    EXPECT_EQ(outcome.status, 1);
    EXPECT_NE(outcome.err.find("rank "), std::string::npos) << outcome.err;
    // Inside a step at the deadline; a rank that waits for a step hears it from its connection.
    EXPECT_TRUE(outcome.err.find("4 s") != std::string::npos ||
                outcome.err.find("cannot be reached") != std::string::npos)
        << outcome.err;
  }
  EXPECT_LT(std::chrono::steady_clock::now() - begin, 40s);
}

}  // namespace
}  // namespace ferry
