// Ranks that join in processes that are already running, and what happens when one of them does
// not.
#include "ferry/join.h"

#include <gtest/gtest.h>

#include <array>
#include <filesystem>

#include "ferry/tcp_store.h"
#include "ferry/transport/sockets.h"
#include "joining.h"
#include "support/long_tests.h"
#include "support/ranks.h"

namespace ferry {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

#define EXPECT_HAS(text, part) \
  EXPECT_NE((text).find(part), std::string::npos) << "found: " << (text)

JoinOptions options_of(const std::string& transport, Rank rank, int size) {
  return {.transport = transport,
          .rank = rank,
          .size = size,
          .join_timeout = seconds(20),
          .fabric_provider = transport == "fabric" ? "tcp" : ""};
}

bool has_transport(const std::string& name) {
  for (const TransportInfo& info : list_transports())
    if (info.name == name) return info.available;
  return false;
}

class JoinTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (!has_transport(GetParam())) GTEST_SKIP() << "not in this build";
  }

  std::string transport() const { return GetParam(); }

  bool processes() const { return transport() != "inproc"; }
};

INSTANTIATE_TEST_SUITE_P(Transports,
                         JoinTest,
                         testing::Values("inproc", "shm", "fabric"),
                         [](const auto& p) { return std::string(p.param); });

TEST_P(JoinTest, RanksMeet) {
  for (const int size : {1, 2, 5}) {
    const auto heard = in_ranks_of(transport(), size, [&](Rank rank, Store& store) {
      return say_hello(*join(options_of(transport(), rank, size), store));
    });
    for (Rank r = 0; r < size; ++r)
      EXPECT_EQ(heard[static_cast<std::size_t>(r)], hello_of(r, size));
  }
}

TEST_P(JoinTest, GroupsOfOneStoreDoNotMixAndMayUseANameAgain) {
  const auto heard = in_ranks_of(transport(), 2, [&](Rank rank, Store& store) {
    JoinOptions options = options_of(transport(), rank, 2);
    const auto first = join(options, store);
    options.group = "other";
    options.rank = 1 - rank;  // roles differ from group to group
    const auto second = join(options, store);
    std::string text = say_hello(*first) + say_hello(*second);
    for (int again = 0; again < 3; ++again) text += say_hello(*join(options, store));
    return text;
  });
  for (Rank r = 0; r < 2; ++r) {
    std::string expected = hello_of(r, 2);
    for (int i = 0; i < 4; ++i) expected += hello_of(1 - r, 2);
    EXPECT_EQ(heard[static_cast<std::size_t>(r)], expected);
  }
}

TEST_P(JoinTest, AMissingRankIsNamedOnAll) {
  const auto start = std::chrono::steady_clock::now();
  const auto heard = in_ranks_of(transport(), 3, [&](Rank rank, Store& store) {
    JoinOptions options = options_of(transport(), rank, 4);
    options.join_timeout = milliseconds(700);
    return say_hello(*join(options, store));
  });
  for (const std::string& text : heard) EXPECT_HAS(text, "rank 3 did not come within 0.7 s");
  EXPECT_LT(std::chrono::steady_clock::now() - start, seconds(15));
}

TEST_P(JoinTest, WithoutRank0TheOthersNameIt) {
  const auto heard = in_ranks_of(transport(), 2, [&](Rank rank, Store& store) {
    JoinOptions options = options_of(transport(), rank + 1, 3);
    options.join_timeout = milliseconds(300);
    return say_hello(*join(options, store));
  });
  for (const std::string& text : heard) EXPECT_HAS(text, "rank 0 did not come within 0.3 s");
}

TEST_P(JoinTest, RanksThatDifferAreRefusedOnAll) {
  const auto with = [&](const std::function<void(JoinOptions&)>& change) {
    return in_ranks_of(transport(), 3, [&](Rank rank, Store& store) {
      JoinOptions options = options_of(transport(), rank, 3);
      options.agreement = {{"model", "a"}};
      if (rank == 1) change(options);
      return say_hello(*join(options, store));
    });
  };
  for (const std::string& text : with([](JoinOptions& o) { o.agreement[0].second = "b"; }))
    EXPECT_HAS(text, "ranks differ in model: ranks 0 and 2 a, rank 1 b");
  for (const std::string& text : with([](JoinOptions& o) { o.size = 4; }))
    EXPECT_HAS(text, "rank 1 was started as one of 4 ranks, rank 0 as one of 3");
  const char* other = processes() ? "inproc" : "shm";
  for (const std::string& text : with([&](JoinOptions& o) { o.transport = other; }))
    EXPECT_HAS(text, "ranks differ in the transport: rank 1 ");
}

TEST_P(JoinTest, ARankThatComesTwiceIsToldAndTheGroupIsMade) {
  const auto heard = in_ranks_of(transport(), 3, [&](int index, Store& store) -> std::string {
    // Two say that they are rank 1; which of them is one is decided by who came last.
    JoinOptions options = options_of(transport(), std::min(index, 1), 2);
    options.join_timeout = seconds(5);
    if (index == 0) {
      EXPECT_TRUE(store.wait("second is there", deadline_in(seconds(20))));
    } else {
      const std::int64_t others = store.add("ones", 1);
      if (others == 2) store.set_text("second is there", "");
    }
    return say_hello(*join(options, store));
  });
  EXPECT_EQ(heard[0], hello_of(0, 2));
  const std::string& told = heard[1] == hello_of(1, 2) ? heard[2] : heard[1];
  EXPECT_TRUE(heard[1] == hello_of(1, 2) || heard[2] == hello_of(1, 2)) << heard[1] << heard[2];
  EXPECT_TRUE(told.find("has a rank 1 already") != std::string::npos ||
              told.find("rank 0 did not come") != std::string::npos)
      << told;
}

TEST(Join, OptionsThatCannotBeAreRefused) {
  LocalStore store;
  EXPECT_THROW(join({.transport = "pigeon"}, store), ConfigError);
  EXPECT_THROW(join({.rank = 1, .size = 1}, store), ConfigError);
  EXPECT_THROW(join({.rank = -1, .size = 1}, store), ConfigError);
  EXPECT_THROW(join({.rank = 0, .size = 0}, store), ConfigError);
  EXPECT_THROW(join({.transport = "inproc", .size = 100'000}, store), ConfigError);
  EXPECT_THROW(join({.ranks_per_host = -1}, store), ConfigError);
}

TEST(Join, RanksOfInprocAreThreadsOfOneProcess) {
  const auto heard = in_processes(2, [&](Rank rank, Store& store) {
    return say_hello(*join(options_of("inproc", rank, 2), store));
  });
  for (const std::string& text : heard)
    EXPECT_HAS(text, "inproc: rank 1 is in another process than rank 0");
}

TEST(Join, ThreadsOfOneProcessMayShareMemoryLikeProcesses) {
  const auto heard = in_threads(3, [&](Rank rank, Store& store) {
    return say_hello(*join(options_of("shm", rank, 3), store));
  });
  for (Rank r = 0; r < 3; ++r) EXPECT_EQ(heard[static_cast<std::size_t>(r)], hello_of(r, 3));
}

TEST(Join, DamagedWordsInTheStoreAreOneLine) {
  const auto heard = in_threads(2, [&](Rank rank, Store& store) -> std::string {
    if (rank == 1) {
      store.set_text("ferry/world/0/rank/1", "nonsense");
      return "";
    }
    return say_hello(*join(options_of("shm", rank, 2), store));
  });
  EXPECT_HAS(heard[0], "what rank 1 says in the store is damaged");
  const auto other = in_threads(2, [&](Rank rank, Store& store) -> std::string {
    if (rank == 0) {
      store.set_text("ferry/world/0/verdict", std::string(3, '\x7f'));
      return "";
    }
    return say_hello(*join(options_of("shm", rank, 2), store));
  });
  EXPECT_HAS(other[1], "what rank 0 says in the store is damaged");
}

// --- Ranks that are killed ---------------------------------------------------------------------

/// Rank `killed` of three is killed before its call number `call` of the store.
std::vector<std::string> with_one_killed(const std::string& transport, Rank killed, int call) {
  testing::internal::CaptureStderr();
  const auto start = std::chrono::steady_clock::now();
  auto heard = in_processes(3, [&](Rank rank, Store& store) {
    JoinOptions options = options_of(transport, rank, 3);
    options.join_timeout = milliseconds(1500);
    DeadlyStore deadly(store, rank == killed ? call : -1);
    const auto end = join(options, deadly);
    if (rank == killed) kill(getpid(), SIGKILL);  // it had fewer calls: in use, then
    try {
      const WaitResult result = end->barrier(deadline_in(seconds(20)));
      return std::string(result == WaitResult::reached ? "reached" : "timed out");
    } catch (const TransportError& e) {
      return std::string(e.what());
    }
  });
  testing::internal::GetCapturedStderr();
  EXPECT_LT(std::chrono::steady_clock::now() - start, seconds(15));
  return heard;
}

TEST_P(JoinTest, ARankKilledAtAnyMomentIsNamed) {
  if (!processes()) GTEST_SKIP() << "threads are not killed";
  // Rank 0 calls 13 times, the others 3 times.
  const std::array<std::vector<int>, 2> moments{std::vector{0, 2, 3, 4, 8, 99},
                                                std::vector{0, 1, 2, 99}};
  for (const Rank killed : {0, 1}) {
    for (const int call : moments[static_cast<std::size_t>(killed)]) {
      const auto heard = with_one_killed(transport(), killed, call);
      for (Rank r = 0; r < 3; ++r) {
        const std::string& text = heard[static_cast<std::size_t>(r)];
        if (r == killed) {
          EXPECT_EQ(text, "killed");
        } else {
          EXPECT_HAS(text, fmt::format("rank {} ", killed));
          EXPECT_TRUE(text.find("died") != std::string::npos ||
                      text.find("did not") != std::string::npos ||
                      text.find("ended") != std::string::npos)
              << text;
        }
      }
    }
  }
}

// --- Ranks that know nothing of each other -----------------------------------------------------

int free_port() { return own_address(listen_at(resolve("127.0.0.1", 0))).port(); }

/// What a shell says that starts three of them in a loop.
std::string shell_loop(const std::string& transport, const std::string& more_of_rank_1) {
  const std::string command = fmt::format(
      "export WORLD_SIZE=3 MASTER_ADDR=127.0.0.1 MASTER_PORT={} FERRY_TOKEN=alpha; "
      "for r in 0 1 2; do ( [ $r = 1 ] && {} ; RANK=$r exec {} {} 5 ) & done; wait",
      free_port(),
      more_of_rank_1.empty() ? "true" : more_of_rank_1,
      FERRY_JOIN_PROBE,
      transport);
  FILE* pipe = popen(command.c_str(), "r");
  std::string said;
  std::array<char, 4096> line;
  while (fgets(line.data(), line.size(), pipe) != nullptr) said += line.data();
  pclose(pipe);
  return said;
}

TEST_P(JoinTest, UnrelatedProcessesOfAShellLoopMeet) {
  const std::string said = shell_loop(transport(), "");
  for (Rank r = 0; r < 3; ++r) {
    if (processes()) {
      EXPECT_HAS(said, hello_of(r, 3) + "\n");
    } else {
      EXPECT_HAS(said, fmt::format("rank {} cannot join: inproc: rank 1 is in another process", r));
    }
  }
}

TEST(Join, AProcessWithAnotherTokenIsRefusedAndMissed) {
  const std::string said = shell_loop("shm", "export FERRY_TOKEN=beta");
  EXPECT_HAS(said, "which rank 0 serves: its FERRY_TOKEN is not that of the store");
  EXPECT_HAS(said, "rank 0 cannot join: rank 1 did not come within 5.0 s");
  EXPECT_HAS(said, "rank 2 cannot join: rank 1 did not come within 5.0 s");
}

TEST(Join, TheRankThatServesTheStoreIsNamedWhenItDies) {
  testing::internal::CaptureStderr();
  const auto start = std::chrono::steady_clock::now();
  const int port = free_port();
  const auto heard = in_processes(2, [&](Rank rank, Store&) {
    TcpStore store({.port = port, .serve = rank == 0, .server = 0});
    if (rank == 0) {
      EXPECT_TRUE(store.wait("ferry/world/0/rank/1", deadline_in(seconds(20))));
      kill(getpid(), SIGKILL);
    }
    return say_hello(*join(options_of("shm", rank, 2), store));
  });
  testing::internal::GetCapturedStderr();
  EXPECT_HAS(heard[1], "which rank 0 serves: the connection ");
  EXPECT_LT(std::chrono::steady_clock::now() - start, seconds(15));
}

TEST(Join, WhatTorchrunSaysIsUnderstood) {
  const World world{
      .size = 3, .rank = 2, .node = "7", .master_host = "127.0.0.1", .master_port = 1234};
  const JoinOptions options = join_options(world, "fabric");
  EXPECT_EQ(options.rank, 2);
  EXPECT_EQ(options.size, 3);
  EXPECT_EQ(options.node, "7");
  const TcpStoreOptions store = store_options(world);
  EXPECT_EQ(store.port, 1234);
  EXPECT_FALSE(store.serve);
  EXPECT_THROW(join_options(World{.size = 4, .own = 2}, "shm"), ConfigError);
  EXPECT_THROW(store_options(World{}), ConfigError);
}

// --- What is left ------------------------------------------------------------------------------

struct Held {
  std::ptrdiff_t descriptors;
  std::ptrdiff_t threads;
  std::ptrdiff_t names;  // ours in /dev/shm; sockets without a name are descriptors
  bool operator==(const Held&) const = default;
};

Held held_now() {
  const auto entries = [](const char* directory, const char* ours) {
    std::ptrdiff_t count = 0;
    for (const auto& entry : std::filesystem::directory_iterator(directory))
      count += entry.path().filename().string().find(ours) != std::string::npos ? 1 : 0;
    return count;
  };
  return {
      entries("/proc/self/fd", ""), entries("/proc/self/task", ""), entries("/dev/shm", "ferry")};
}

TEST_P(JoinTest, AThousandJoinsLeaveNothingBehind) {
  const bool is_slow = transport() == "fabric";
  const int joins = long_tests() ? 1000 : is_slow ? 10 : 1000;
  // Rank 0 counts while the other has nothing open: both stand in a barrier of the outer group.
  const auto heard = in_ranks_of(transport(), 2, [&](Rank rank, Store& store) -> std::string {
    const auto outer = join(options_of(transport(), rank, 2), store);
    JoinOptions options = options_of(transport(), rank, 2);
    options.group = "again";
    const auto cycle = [&] {
      const auto end = join(options, store);
      const auto region = end->allocate_region(100, 1);
      end->put({.region = region.get(), .peer = 1 - rank, .signal = 0});
      return end->wait(*region, 0, 1, deadline_in(seconds(30))) == WaitResult::reached &&
             end->barrier(deadline_in(seconds(30))) == WaitResult::reached;
    };
    outer->progress();  // from now on it watches its peer, which takes a descriptor
    Held before{};
    for (int i = 0; i <= joins; ++i) {
      if (!cycle()) return "a join did not work";
      if (i > 0 && i < joins) continue;
      if (outer->barrier(deadline_in(seconds(30))) == WaitResult::timed_out) return "late";
      if (rank == 0 && i == 0) before = held_now();
      if (rank == 0 && i == joins && held_now() != before) {
        return fmt::format("descriptors {} -> {}, threads {} -> {}, names {} -> {}",
                           before.descriptors,
                           held_now().descriptors,
                           before.threads,
                           held_now().threads,
                           before.names,
                           held_now().names);
      }
      if (outer->barrier(deadline_in(seconds(30))) == WaitResult::timed_out) return "late";
    }
    return "nothing left";
  });
  for (const std::string& text : heard) EXPECT_EQ(text, "nothing left");
}

}  // namespace
}  // namespace ferry
