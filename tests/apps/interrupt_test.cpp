// Ranks that die, hang or are told to stop while they generate.
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <thread>

#include "apps/program.h"

namespace ferry {
namespace {

using test::Arguments;
using test::Program;
using namespace std::chrono_literals;

constexpr int kRanks = 3;

/// A model with room for a generation that takes far longer than the tests, and prompts for it.
class Interrupted : public testing::Test {
 protected:
  void SetUp() override {
    const auto made = test::run_program({"make-model", "--out", model_, "--quiet"});
    ASSERT_EQ(made.status, 0) << made.err;
  }

  Arguments generate(const char* transport) const {
    return {"generate",
            "--model",
            model_,
            "--prompt",
            "hello",
            "--ep",
            std::to_string(kRanks),
            "--transport",
            transport,
            "--threads",
            "1",
            "--max-new-tokens",
            "1000000",
            "--ignore-eos",
            "--quiet",
            "--timeout",
            "3"};
  }

  /// Until the program is in the middle of it.
  static void wait_for_text(const Program& program) {
    for (int i = 0; i < 3000 && program.out().size() < 20; ++i) std::this_thread::sleep_for(10ms);
    ASSERT_GE(program.out().size(), 20U) << "it never began";
  }

  test::TempDir directory_;
  std::string model_ = (directory_.path() / "model").string();
};

TEST_F(Interrupted, KilledRankEndsTheOthersWithALineThatNamesRankAndPhase) {
  Program program(generate("shm"));
  wait_for_text(program);
  const std::vector<pid_t> ranks = program.children();
  ASSERT_EQ(ranks.size(), static_cast<std::size_t>(kRanks));
  const auto begin = std::chrono::steady_clock::now();
  kill(ranks[1], SIGKILL);
  const auto outcome = program.wait();
  EXPECT_LT(std::chrono::steady_clock::now() - begin, 10s);
  EXPECT_EQ(outcome.status, 1);
  EXPECT_NE(outcome.err.find("rank 1"), std::string::npos) << outcome.err;
  EXPECT_NE(outcome.err.find("step "), std::string::npos) << outcome.err;
  EXPECT_NE(outcome.err.find("rank 1 died"), std::string::npos) << outcome.err;
  for (const pid_t rank : ranks) EXPECT_NE(kill(rank, 0), 0) << "a rank is left behind";
}

TEST_F(Interrupted, RankThatHangsIsGivenUpAtTheDeadline) {
  Program program(generate("shm"));
  wait_for_text(program);
  const std::vector<pid_t> ranks = program.children();
  ASSERT_EQ(ranks.size(), static_cast<std::size_t>(kRanks));
  kill(ranks[2], SIGSTOP);
  std::this_thread::sleep_for(5s);
  kill(ranks[2], SIGCONT);
  const auto outcome = program.wait();
  EXPECT_EQ(outcome.status, 1);
  EXPECT_NE(outcome.err.find("rank 2"), std::string::npos) << outcome.err;
  EXPECT_NE(outcome.err.find("3 s"), std::string::npos) << outcome.err;
}

TEST_F(Interrupted, InterruptEndsAllRanksWithoutAWord) {
  for (const char* transport : {"inproc", "shm"}) {
    Program program(generate(transport));
    wait_for_text(program);
    const std::vector<pid_t> ranks = program.children();
    kill(program.pid(), SIGINT);
    const auto outcome = program.wait();
    EXPECT_EQ(outcome.status, 130) << transport;
    EXPECT_EQ(outcome.err, "") << transport;
    for (const pid_t rank : ranks) EXPECT_NE(kill(rank, 0), 0) << "a rank is left behind";
  }
}

TEST_F(Interrupted, LauncherThatIsKilledTakesItsRanksAlong) {
  Program program(generate("shm"));
  wait_for_text(program);
  const std::vector<pid_t> ranks = program.children();
  kill(program.pid(), SIGKILL);
  static_cast<void>(program.wait());
  const auto gone = [](pid_t rank) {
    // A zombie that init has not reaped yet counts as gone.
    const std::string stat = "/proc/" + std::to_string(rank) + "/stat";
    std::ifstream in(stat);
    std::string text;
    return !std::getline(in, text) || text.find(") Z") != std::string::npos;
  };
  for (const pid_t rank : ranks) {
    for (int i = 0; i < 500 && !gone(rank); ++i) std::this_thread::sleep_for(10ms);
    EXPECT_TRUE(gone(rank));
  }
}

}  // namespace
}  // namespace ferry
