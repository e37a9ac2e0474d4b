// Starting ranks: the table of transports, exit statuses, and launchers that are interrupted.
#include "ferry/launch.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>

#include "ferry/core/error.h"
#include "ferry/transport/processes.h"
#include "support/ranks.h"

namespace ferry {
namespace {

std::string config_error(const LaunchOptions& options) {
  try {
    run_ranks(options, [](Transport&) { return 0; });
  } catch (const ConfigError& e) {
    return e.what();
  }
  return "";
}

TEST(Launch, TableSaysWhatIsThereAndWhyNot) {
  const std::vector<TransportInfo> all = list_transports();
  ASSERT_GE(all.size(), 4u);
  EXPECT_EQ(all[0].name, "inproc");
  EXPECT_TRUE(all[0].available);
  for (const TransportInfo& info : all) EXPECT_FALSE(info.reason.empty()) << info.name;
}

TEST(Launch, UnknownAndUnavailableTransportsAreRefused) {
  EXPECT_NE(config_error({.transport = "pigeon"}).find("inproc"), std::string::npos);
  for (const TransportInfo& info : list_transports()) {
    if (info.available) continue;
    const std::string message = config_error({.transport = std::string(info.name)});
    EXPECT_NE(message.find(info.reason), std::string::npos) << message;
  }
}

TEST(Launch, RanksThatTheMachineCannotHoldAreRefused) {
  for (const int ranks : {0, -1, 100'000}) {
    EXPECT_NE(config_error({.ranks = ranks}), "") << ranks;
    EXPECT_NE(config_error({.transport = "shm", .ranks = ranks}), "") << ranks;
  }
}

TEST(Launch, ReturnsTheLargestStatus) {
  for (const RankKind& kind : bare_rank_kinds()) {
    EXPECT_EQ(run_ranks(kind.launch(4),
                        [](Transport& transport) { return transport.rank() == 2 ? 7 : 0; }),
              7)
        << kind.transport;
  }
}

TEST(Launch, OneInprocRankStartsNoThread) {
  const pthread_t caller = pthread_self();
  run_ranks({.ranks = 1}, [&](Transport&) {
    EXPECT_TRUE(pthread_equal(caller, pthread_self()));
    return 0;
  });
}

TEST(Launch, ProcessesNameWhatEndedThem) {
  testing::internal::CaptureStderr();
  const int status = run_processes({.ranks = 3, .child = [](Rank rank) -> int {
                                      if (rank == 1) kill(getpid(), SIGKILL);
                                      if (rank == 2) throw ConfigError("--ep: no");
                                      return 0;
                                    }});
  const std::string printed = testing::internal::GetCapturedStderr();
  EXPECT_EQ(status, 2);
  EXPECT_NE(printed.find("ferry: rank 2: --ep: no\n"), std::string::npos) << printed;
  EXPECT_NE(printed.find("ferry: rank 1 (pid "), std::string::npos) << printed;
  EXPECT_NE(printed.find(") was killed by signal 9\n"), std::string::npos) << printed;
}

/// A launcher in a process of its own, whose two ranks wait for ever. Their ends, and the
/// launcher's, close the pipe.
class InterruptedLauncher : public testing::Test {
 protected:
  void SetUp() override {
    std::array<int, 2> ends{};
    ASSERT_EQ(pipe(ends.data()), 0);
    pipe_ = UniqueFd(ends[0]);
    launcher_ = fork();
    if (launcher_ == 0) {
      const int status = run_processes({.ranks = 2, .child = [&](Rank) -> int {
                                          if (write(ends[1], "r", 1) != 1) return 1;
                                          for (;;) pause();
                                        }});
      _exit(status);
    }
    close(ends[1]);
    std::array<char, 1> ready;
    for (int i = 0; i < 2; ++i) ASSERT_EQ(read(pipe_.get(), ready.data(), 1), 1);
  }

  /// Sends the signal and returns the launcher's status once nobody is left.
  int end_by(int signal) {
    kill(launcher_, signal);
    char rest;
    while (read(pipe_.get(), &rest, 1) > 0) {
    }
    int status = 0;
    waitpid(launcher_, &status, 0);
    return status;
  }

  UniqueFd pipe_;
  pid_t launcher_ = -1;
};

TEST(Launch, LibrariesOfTransportsTakeNoSignals) {
  for (const int s : {SIGINT, SIGTERM, SIGABRT, SIGILL}) {
    struct sigaction action {};

    ASSERT_EQ(sigaction(s, nullptr, &action), 0);
    EXPECT_EQ(action.sa_handler, SIG_DFL) << "signal " << s;
  }
}

TEST_F(InterruptedLauncher, PassesTheSignalOn) {
  const int status = end_by(SIGTERM);
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 128 + SIGTERM);
}

TEST_F(InterruptedLauncher, TakesItsRanksAlongWhenItIsKilled) {
  const int status = end_by(SIGKILL);
  EXPECT_TRUE(WIFSIGNALED(status));
}

}  // namespace
}  // namespace ferry
