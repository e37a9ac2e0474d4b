// Several hosts, each with two ranks and a cable of its own: network namespaces of this machine.
#include <optional>

#include "apps/cluster.h"
#include "support/network_hosts.h"

namespace ferry {
namespace {

using namespace std::chrono_literals;

class Hosts : public LongCluster {
 protected:
  void SetUp() override {
    LongCluster::SetUp();
    if (IsSkipped()) return;
    if (const std::string reason = NetworkHosts::why_not(); !reason.empty()) GTEST_SKIP() << reason;
  }

  void TearDown() override { programs_.clear(); }  // before their hosts

  /// Two ranks on each of so many hosts, as torchrun would start them there.
  void start_on_hosts(int count, const Arguments& arguments) {
    hosts_.emplace(count);
    master_ = hosts_->address(0);
    for (Rank r = 0; r < 2 * count; ++r) {
      const NetworkHosts::Visit there(*hosts_, r / 2);
      programs_.push_back(std::make_unique<Program>(arguments, variables(r, 2 * count)));
    }
  }

  std::optional<NetworkHosts> hosts_;
};

TEST_F(Hosts, GiveTheSameBitsWhateverTheirNumberAndLevels) {
  const json expected = alone();
  for (const int count : {2, 3}) {
    for (const Arguments& levels : {Arguments{}, Arguments{"--ranks-per-host", "1"}}) {
      start_on_hosts(count, generate() + Arguments{"--quiet"} + levels);
      const auto outcomes = wait_for_all();
      EXPECT_EQ(results_of(outcomes[0]), expected) << count << " hosts";
      for (const Outcome& outcome : outcomes) EXPECT_EQ(outcome.err, "");
      programs_.clear();
    }
  }
}

TEST_F(Hosts, ATokenCrossesOncePerHost) {
  start_on_hosts(2,
                 {"bench",
                  "a2a",
                  "--tokens",
                  "64",
                  "--hidden",
                  "128",
                  "--experts",
                  "64",
                  "--topk",
                  "6",
                  "--seconds",
                  "0.05",
                  "--json"});
  const auto outcomes = wait_for_all();
  ASSERT_EQ(outcomes[0].status, 0) << outcomes[0].err;
  const json rows = json::parse(outcomes[0].out);
  EXPECT_EQ(rows[0]["hosts"], 2);
  // A token of 6 distinct experts of 64 misses the other host's 32 with probability
  // C(32,6)/C(64,6).
  double misses = 1;
  for (int i = 0; i < 6; ++i) misses *= (32.0 - i) / (64 - i);
  const double expected = 64 * 128 * 2 * (1 - misses);
  EXPECT_NEAR(rows[0]["network_bytes"].get<double>(), expected, 0.05 * expected);
}

TEST_F(Hosts, ACutCableEndsAllRanksAndTheyNameOne) {
  start_on_hosts(2, endless("4"));
  wait_for_text();
  hosts_->cut(0);
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

TEST_F(Hosts, AReceiverThatStandsStillAcrossACableIsWaitedFor) {
  start_on_hosts(2, endless("20"));
  wait_for_text();
  kill(programs_[3]->pid(), SIGSTOP);
  std::this_thread::sleep_for(1s);
  const std::size_t before = programs_[0]->out().size();
  kill(programs_[3]->pid(), SIGCONT);
  const auto until = std::chrono::steady_clock::now() + 10s;
  while (programs_[0]->out().size() <= before && std::chrono::steady_clock::now() < until)
    std::this_thread::sleep_for(20ms);
  EXPECT_GT(programs_[0]->out().size(), before);
}

TEST_F(Hosts, ACutCableAmongThreeIsNamedByTheOthers) {
  start_on_hosts(3, endless("4"));
  wait_for_text();
  hosts_->cut(2);
  const auto outcomes = wait_for_all();
  for (std::size_t r = 0; r < outcomes.size(); ++r) {
    EXPECT_EQ(outcomes[r].status, 1);
    EXPECT_NE(outcomes[r].err.find("rank "), std::string::npos) << r << ": " << outcomes[r].err;
  }
}

/// What users have for the same: each rank by torchrun's variables, or all by one mpirun.
TEST_F(Hosts, TheToolRunsRanksOnHosts) {
  const json expected = alone();
  for (const std::string way : {"", "--mpirun --hosts 3"}) {
    if (!way.empty() && !command("mpirun --version >/dev/null")) continue;
    const std::string out = (directory_.path() / "out").string();
    std::string line = (test::source_dir() / "tools/hosts.py").string() + " --ranks-per-host 2 " +
                       way + " -- " + test::program_path();
    for (const std::string& argument : generate() + Arguments{"--quiet"})
      line.append(" '").append(argument).append("'");
    line.append(" >").append(out).append(" 2>&1");
    const int status = std::system(line.c_str());
    EXPECT_EQ(results_of({.status = WEXITSTATUS(status), .out = test::read_file(out), .err = ""}),
              expected)
        << line;
  }
}

}  // namespace
}  // namespace ferry
