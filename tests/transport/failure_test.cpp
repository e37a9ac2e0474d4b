// What the others see when a rank gives up, dies, leaves, or asks for something else.
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <memory>
#include <thread>
#include <vector>

#include "ferry/core/error.h"
#include "support/ranks.h"

namespace ferry {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using Kind = TransportError::Kind;

constexpr int kRanks = 4;

/// Runs `call`, which must throw a TransportError of this kind about this rank whose message has
/// `text` in it, within a few seconds.
void expect_error(Kind kind,
                  Rank peer,
                  const std::string& text,
                  const std::function<void()>& call) {
  const auto start = std::chrono::steady_clock::now();
  try {
    call();
    ADD_FAILURE() << "nothing was thrown";
  } catch (const TransportError& e) {
    EXPECT_EQ(e.kind(), kind) << e.what();
    EXPECT_EQ(e.peer(), peer) << e.what();
    EXPECT_NE(std::string(e.what()).find(text), std::string::npos) << e.what();
  }
  EXPECT_LT(std::chrono::steady_clock::now() - start, seconds(10));
}

class FailureTest : public testing::TestWithParam<RankKind> {
 protected:
  void on_all(const std::function<void(Transport&)>& body) {
    on_ranks({.kind = GetParam(), .ranks = kRanks}, body);
  }
};

INSTANTIATE_TEST_SUITE_P(Transports,
                         FailureTest,
                         testing::ValuesIn(all_and_joined_rank_kinds()),
                         [](const auto& p) { return p.param.label(); });

TEST_P(FailureTest, AbortWakesTheOthersWithItsReason) {
  on_all([](Transport& transport) {
    const auto region = transport.allocate_region(64, 2);
    others_are_ready(transport, *region, 2, 1);
    if (transport.rank() == 2) {
      usleep(30'000);  // the others sleep by now
      transport.abort("the model file vanished");
      transport.abort("a second reason");
    }
    const std::string who = "rank 2 gave up: the model file vanished";
    expect_error(Kind::aborted, 2, who, [&] { (void)transport.wait(*region, 0, 1, kNoDeadline); });
    expect_error(Kind::aborted, 2, who, [&] { (void)transport.barrier(deadline_in(seconds(9))); });
    expect_error(Kind::aborted, 2, who, [&] { transport.progress(); });
    expect_error(Kind::aborted, 2, who, [&] {
      transport.put({.region = region.get(), .peer = 0, .signal = 0});
      usleep(200);
      transport.progress();
    });
    expect_error(Kind::aborted, 2, who, [&] { (void)transport.allocate_region(64, 1); });
  });
}

TEST_P(FailureTest, AnyThreadMayAbort) {
  on_all([](Transport& transport) {
    const auto region = transport.allocate_region(0, 2);
    others_are_ready(transport, *region, 1, 1);
    std::thread watchdog;
    if (transport.rank() == 1) {
      watchdog = std::thread([&] {
        usleep(20'000);
        transport.abort("the user pressed a key");
      });
    }
    expect_error(Kind::aborted, 1, "the user pressed a key", [&] {
      (void)transport.wait(*region, 0, 1, kNoDeadline);
    });
    if (watchdog.joinable()) watchdog.join();
  });
}

TEST_P(FailureTest, LongReasonsAreCutNotLost) {
  on_all([](Transport& transport) {
    if (transport.rank() == 0) transport.abort(std::string(10'000, 'x'));
    expect_error(
        Kind::aborted, 0, std::string(400, 'x'), [&] { (void)transport.barrier(kNoDeadline); });
  });
}

TEST_P(FailureTest, SurvivorsMaskADeadRankAndGoOn) {
  if (!GetParam().started_here()) GTEST_SKIP() << "mpirun ends the job when a rank dies";
  const bool processes = GetParam().processes();
  const RanksOptions on{
      .kind = GetParam(), .ranks = kRanks, .killed_rank = processes ? Rank{1} : Rank{-1}};
  on_ranks(on, [&](Transport& transport) {
    ASSERT_TRUE(transport.capabilities().survives_peer_death);
    const auto region = transport.allocate_region(64, 3);
    others_are_ready(transport, *region, 1, 2);
    if (transport.rank() == 1) {
      if (processes) kill(getpid(), SIGKILL);
      transport.abort("its memory is broken");
      return;
    }
    expect_error(processes ? Kind::peer_died : Kind::aborted, 1, "rank 1", [&] {
      (void)transport.wait(*region, 0, 1, kNoDeadline);
    });
    transport.mask(1);
    EXPECT_EQ(transport.barrier(deadline_in(seconds(9))), WaitResult::reached);
    // To everybody, the masked rank included: what goes there goes nowhere.
    for (Rank peer = 0; peer < kRanks; ++peer)
      transport.put({.region = region.get(), .peer = peer, .signal = 0});
    EXPECT_EQ(transport.wait(*region, 0, kRanks - 1, deadline_in(seconds(9))), WaitResult::reached);
    transport.progress();
    EXPECT_EQ(transport.barrier(deadline_in(seconds(9))), WaitResult::reached);
    EXPECT_EQ(transport.signal_value(*region, 0), kRanks - 1);
    EXPECT_THROW((void)transport.allocate_region(64, 1), BrokenContract);
    // Whoever is not masked still counts. It gives up when the others have left the barrier.
    transport.put({.region = region.get(), .peer = 2, .signal = 1});
    if (transport.rank() == 2) {
      EXPECT_EQ(transport.wait(*region, 1, kRanks - 1, deadline_in(seconds(9))),
                WaitResult::reached);
      transport.abort("the disk is full");
    }
    expect_error(Kind::aborted, 2, "the disk is full", [&] {
      (void)transport.wait(*region, 0, 99, kNoDeadline);
    });
  });
}

TEST_P(FailureTest, AnEndThatUnwindsAbortsTheGroup) {
  if (!GetParam().started_here()) GTEST_SKIP() << "it ends the job, as it should";
  if (GetParam().joined) GTEST_SKIP() << "run_ranks() has no part in it";
  const LaunchOptions options = GetParam().launch(3);
  testing::internal::CaptureStderr();
  std::string thrown;
  int status = 0;
  try {
    status = run_ranks(options, [](Transport& transport) -> int {
      if (transport.rank() == 1) throw ModelError("model.safetensors: cut short");
      (void)transport.barrier(kNoDeadline);
      return 0;
    });
  } catch (const ModelError& e) {
    thrown = e.what();
  }
  const std::string printed = testing::internal::GetCapturedStderr();
  if (GetParam().processes()) {
    EXPECT_EQ(status, 1);
    EXPECT_NE(printed.find("ferry: rank 1: model.safetensors: cut short\n"), std::string::npos);
    EXPECT_NE(printed.find("rank 1 gave up: model.safetensors: cut short"), std::string::npos);
  } else {
    EXPECT_EQ(thrown, "model.safetensors: cut short");
  }
}

// --- Ranks that are gone -----------------------------------------------------------------------

TEST_P(FailureTest, WhoStillWaitsForARankThatLeftIsTold) {
  on_ranks({.kind = GetParam(), .ranks = 2}, [](Transport& transport) {
    const auto region = transport.allocate_region(0, 1);
    if (transport.rank() == 1) return;
    expect_error(Kind::peer_died, 1, "rank 1 has left", [&] {
      (void)transport.wait(*region, 0, 1, kNoDeadline);
    });
  });
}

TEST_P(FailureTest, ABarrierNeedsEverybody) {
  on_ranks({.kind = GetParam(), .ranks = 2}, [](Transport& transport) {
    if (transport.rank() == 1) return;
    expect_error(Kind::peer_died, 1, "rank 1 has left", [&] {
      (void)transport.barrier(deadline_in(seconds(9)));
    });
  });
}

TEST_P(FailureTest, ShortWaitsTimeOutEvenWhenARankHasLeft) {
  on_ranks({.kind = GetParam(), .ranks = 2}, [](Transport& transport) {
    const auto region = transport.allocate_region(0, 1);
    if (transport.rank() == 1) return;
    for (int i = 0; i < 20; ++i) {
      EXPECT_EQ(transport.wait(*region, 0, 1, deadline_in(milliseconds(2))), WaitResult::timed_out);
    }
  });
}

TEST_P(FailureTest, ARankMayLeaveWhileTheOthersGoOn) {
  on_all([](Transport& transport) {
    const auto region = transport.allocate_region(0, 1);
    if (transport.rank() == 1) return;
    if (transport.rank() == 2) {
      usleep(150'000);
      transport.put({.region = region.get(), .peer = 0, .signal = 0});
      usleep(200);
      transport.progress();
    }
    if (transport.rank() == 0) {
      EXPECT_EQ(transport.wait(*region, 0, 1, deadline_in(seconds(9))), WaitResult::reached);
    }
  });
}

TEST_P(FailureTest, LastWordsOfARankThatLeftAreHeard) {
  on_all([](Transport& transport) {
    const auto region = transport.allocate_region(0, 1);
    if (transport.rank() != 0) {
      transport.put({.region = region.get(), .peer = 0, .signal = 0});
      return;
    }
    usleep(50'000);
    EXPECT_EQ(transport.wait(*region, 0, kRanks - 1, kNoDeadline), WaitResult::reached);
  });
}

/// Rank 1 is killed while the others are in `call`.
void killed_rank_is_noticed(const RankKind& kind,
                            const std::function<void(Transport&, Region&)>& call) {
  if (!kind.killable()) GTEST_SKIP() << "such a rank cannot be killed alone";
  on_ranks({.kind = kind, .ranks = kRanks, .killed_rank = 1}, [&](Transport& transport) {
    const auto region = transport.allocate_region(4096, 2);
    others_are_ready(transport, *region, 1, 1);
    if (transport.rank() == 1) {
      usleep(20'000);
      kill(getpid(), SIGKILL);
    }
    expect_error(Kind::peer_died, 1, "rank 1 died", [&] { call(transport, *region); });
  });
}

TEST_P(FailureTest, AKilledRankIsNoticedInAWait) {
  killed_rank_is_noticed(GetParam(), [](Transport& transport, Region& region) {
    (void)transport.wait(region, 0, 1, kNoDeadline);
  });
}

TEST_P(FailureTest, AKilledRankIsNoticedInABarrier) {
  killed_rank_is_noticed(GetParam(), [](Transport& transport, Region&) {
    (void)transport.barrier(deadline_in(seconds(9)));
  });
}

TEST_P(FailureTest, AKilledRankIsNoticedByPolling) {
  killed_rank_is_noticed(GetParam(), [](Transport& transport, Region& region) {
    while (transport.signal_value(region, 0) == 0) transport.progress();
  });
}

TEST_P(FailureTest, AKilledRankIsNoticedWhileAllocating) {
  if (!GetParam().killable()) GTEST_SKIP() << "such a rank cannot be killed alone";
  on_ranks({.kind = GetParam(), .ranks = kRanks, .killed_rank = 1}, [](Transport& transport) {
    if (transport.rank() == 1) {
      usleep(20'000);
      kill(getpid(), SIGKILL);
    }
    try {
      (void)transport.allocate_region(4096, 1);
      ADD_FAILURE() << "nothing was thrown";
    } catch (const TransportError& e) {
      // The first to notice aborts the group, so the others may hear it from that one.
      EXPECT_NE(std::string(e.what()).find("rank 1 died"), std::string::npos) << e.what();
    }
  });
}

TEST_P(FailureTest, ARankThatExitsWithoutLeavingHasDied) {
  if (!GetParam().killable()) GTEST_SKIP() << "such a rank cannot exit alone";
  on_ranks({.kind = GetParam(), .ranks = kRanks, .killed_rank = 1}, [](Transport& transport) {
    if (transport.rank() == 1) _exit(0);
    expect_error(Kind::peer_died, 1, "rank 1 died", [&] { (void)transport.barrier(kNoDeadline); });
  });
}

// --- Ranks that differ -------------------------------------------------------------------------

TEST_P(FailureTest, DifferentRegionsAreRefusedOnEveryRankWithTheOddOneNamed) {
  on_all([](Transport& transport) {
    const bool odd = transport.rank() == 2;
    try {
      (void)transport.allocate_region(odd ? 8192 : 4096, 3);
      ADD_FAILURE() << "nothing was thrown";
    } catch (const BrokenContract& e) {
      EXPECT_NE(std::string(e.what()).find("rank 2 asks for (8192, 3)"), std::string::npos)
          << e.what();
      EXPECT_NE(std::string(e.what()).find("rank 0 for (4096, 3)"), std::string::npos) << e.what();
    }
  });
}

TEST_P(FailureTest, ARankThatDoesNotComeToAllocateIsNamed) {
  on_ranks({.kind = GetParam(), .ranks = 3, .start_timeout = milliseconds(500)},
           [](Transport& transport) {
             if (transport.rank() == 1) {
               usleep(1'500'000);
               return;
             }
             try {
               (void)transport.allocate_region(64, 1);
               ADD_FAILURE() << "nothing was thrown";
             } catch (const TransportError& e) {
               // The first to give up tells the other.
               EXPECT_TRUE(e.kind() == Kind::timeout || e.kind() == Kind::aborted) << e.what();
               EXPECT_NE(std::string(e.what()).find("rank 1 did not come within 0.5 s"),
                         std::string::npos)
                   << e.what();
             }
           });
}

TEST_P(FailureTest, MemoryThatCannotBeHadIsAnErrorOnEveryRank) {
  on_all([](Transport& transport) {
    // Together more than an address space of 47 bits has room for, even where a rank maps only its
    // own part.
    std::vector<std::unique_ptr<Region>> regions;
    try {
      for (int i = 0; i < 9; ++i) {
        regions.push_back(transport.allocate_region(std::size_t{1} << 44, 1));
      }
      ADD_FAILURE() << "nothing was thrown";
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find("memory"), std::string::npos) << e.what();
    }
  });
}

}  // namespace
}  // namespace ferry
