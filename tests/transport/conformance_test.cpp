// What every transport must do when nothing goes wrong: one suite, run by all of them.
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <filesystem>
#include <numeric>
#include <vector>

#include "ferry/core/error.h"
#include "ferry/core/types.h"
#include "support/long_tests.h"
#include "support/ranks.h"

namespace ferry {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

Deadline soon() { return deadline_in(seconds(30)); }

#define EXPECT_REACHED(wait) EXPECT_EQ(wait, WaitResult::reached)
#define ASSERT_REACHED(wait) ASSERT_EQ(wait, WaitResult::reached)

/// Bytes that differ for every source, destination, round and place: the 64-bit word at `index`.
std::uint64_t pattern_word(Rank from, Rank to, int round, std::size_t index) {
  const std::uint64_t start = static_cast<std::uint64_t>(from) << 48 ^
                              static_cast<std::uint64_t>(to) << 32 ^
                              static_cast<std::uint64_t>(round);
  return start * 0x9e3779b97f4a7c15u + index * 0xd1b54a32d192ed03u;
}

void fill_pattern(std::span<std::byte> bytes, Rank from, Rank to, int round) {
  for (std::size_t at = 0; at < bytes.size(); at += 8) {
    const std::uint64_t word = pattern_word(from, to, round, at);
    std::memcpy(bytes.data() + at, &word, std::min<std::size_t>(8, bytes.size() - at));
  }
}

bool has_pattern(std::span<const std::byte> bytes, Rank from, Rank to, int round) {
  for (std::size_t at = 0; at < bytes.size(); at += 8) {
    const std::uint64_t word = pattern_word(from, to, round, at);
    if (std::memcmp(bytes.data() + at, &word, std::min<std::size_t>(8, bytes.size() - at)) != 0) {
      return false;
    }
  }
  return true;
}

struct Group {
  RankKind kind;
  int ranks;
};

std::vector<Group> groups(const std::vector<RankKind>& kinds) {
  std::vector<Group> all;
  for (const RankKind& kind : kinds) {
    // Of two ranks or fewer, all are on the first host.
    const bool hosts = kind.ranks_per_host > 1 || kind.namespaces;
    const bool takes_time = kind.joined && kind.transport == "fabric";
    for (const int ranks : takes_time ? std::vector{3}
                           : hosts    ? std::vector{3, 4, 7}
                                      : std::vector{1, 2, 3, 7})
      all.push_back({kind, ranks});
  }
  return all;
}

std::string group_name(const Group& group) {
  return group.kind.label() + "_" + std::to_string(group.ranks) + "_ranks";
}

class TransportTest : public testing::TestWithParam<Group> {
 protected:
  void on_all(const std::function<void(Transport&)>& body) {
    on_ranks({.kind = GetParam().kind, .ranks = GetParam().ranks}, body);
  }
};

INSTANTIATE_TEST_SUITE_P(Conformance,
                         TransportTest,
                         testing::ValuesIn(groups(all_and_joined_rank_kinds())),
                         [](const auto& p) { return group_name(p.param); });

// --- Bytes -------------------------------------------------------------------------------------

/// `rounds` exchanges of one put of `bytes` from every rank to every rank. A rank's staging memory
/// is written again only after the peer has said that it has the bytes.
void exchange_all_to_all(Transport& transport, std::size_t bytes, int rounds) {
  const int ranks = transport.size();
  const Rank me = transport.rank();
  const std::size_t slot = static_cast<std::size_t>(round_up(static_cast<std::int64_t>(bytes), 64));
  const auto inbox = transport.allocate_region(slot * static_cast<std::size_t>(ranks), 2 * ranks);
  const auto staging = transport.allocate_region(slot * static_cast<std::size_t>(ranks), 0);
  const auto slot_of = [&](Region& region, Rank r) {
    return region.local().subspan(static_cast<std::size_t>(r) * slot, bytes);
  };
  for (int round = 1; round <= rounds; ++round) {
    const auto count = static_cast<std::uint64_t>(round);
    for (Rank peer = 0; peer < ranks; ++peer) {
      ASSERT_REACHED(transport.wait(*inbox, ranks + peer, count - 1, soon()));
      fill_pattern(slot_of(*staging, peer), me, peer, round);
      transport.put({.region = inbox.get(),
                     .peer = peer,
                     .offset = static_cast<std::size_t>(me) * slot,
                     .source = slot_of(*staging, peer),
                     .signal = me});
    }
    for (Rank peer = 0; peer < ranks; ++peer) {
      ASSERT_REACHED(transport.wait(*inbox, peer, count, soon()));
      EXPECT_TRUE(has_pattern(slot_of(*inbox, peer), peer, me, round))
          << "round " << round << ", " << bytes << " bytes from rank " << peer;
      transport.put({.region = inbox.get(), .peer = peer, .signal = ranks + me});
    }
  }
  for (Rank peer = 0; peer < ranks; ++peer) {
    ASSERT_REACHED(
        transport.wait(*inbox, ranks + peer, static_cast<std::uint64_t>(rounds), soon()));
  }
}

TEST_P(TransportTest, PutsFromAllToAllArriveWhole) {
  on_all([](Transport& transport) {
    exchange_all_to_all(transport, 0, 20);
    exchange_all_to_all(transport, 1, 20);
    exchange_all_to_all(transport, 4097, 20);
  });
}

TEST_P(TransportTest, LargePutsFromAllToAllArriveWhole) {
  const std::size_t bytes = kSanitized ? (256 << 10) + 1 : (3 << 20) + 1;
  on_all([&](Transport& transport) { exchange_all_to_all(transport, bytes, 2); });
}

TEST_P(TransportTest, SmallPutsMayComeFromAnywhereAndAreCopied) {
  on_all([](Transport& transport) {
    const int ranks = transport.size();
    const auto region =
        transport.allocate_region(static_cast<std::size_t>(ranks) * kInlineBytes, 1);
    for (Rank peer = 0; peer < ranks; ++peer) {
      std::array<std::byte, kInlineBytes> bytes;
      fill_pattern(bytes, transport.rank(), peer, 0);
      transport.put({.region = region.get(),
                     .peer = peer,
                     .offset = static_cast<std::size_t>(transport.rank()) * kInlineBytes,
                     .source = bytes,
                     .signal = 0});
      bytes.fill(std::byte{0});
    }
    ASSERT_REACHED(transport.wait(*region, 0, static_cast<std::uint64_t>(ranks), soon()));
    for (Rank peer = 0; peer < ranks; ++peer) {
      EXPECT_TRUE(has_pattern(
          region->local().subspan(static_cast<std::size_t>(peer) * kInlineBytes, kInlineBytes),
          peer,
          transport.rank(),
          0));
    }
  });
}

TEST_P(TransportTest, WindowsShowPeersMemory) {
  on_all([](Transport& transport) {
    const int ranks = transport.size();
    const auto region = transport.allocate_region(4096 * static_cast<std::size_t>(ranks), ranks);
    const auto my_page = static_cast<std::size_t>(transport.rank()) * 4096;
    const auto is_near = [&](Rank peer) {
      return transport.host_of(peer) == transport.host_of(transport.rank());
    };
    for (Rank peer = 0; peer < ranks; ++peer) {
      const std::span<std::byte> window = transport.peer_window(*region, peer);
      if (!is_near(peer)) {
        EXPECT_FALSE(transport.capabilities().load_store);
        EXPECT_TRUE(window.empty());
        continue;
      }
      ASSERT_EQ(window.size(), region->local().size());
      fill_pattern(window.subspan(my_page, 4096), transport.rank(), peer, 3);
      transport.put({.region = region.get(), .peer = peer, .signal = transport.rank()});
    }
    for (Rank peer = 0; peer < ranks; ++peer) {
      if (!is_near(peer)) continue;
      ASSERT_REACHED(transport.wait(*region, peer, 1, soon()));
      EXPECT_TRUE(has_pattern(region->local().subspan(static_cast<std::size_t>(peer) * 4096, 4096),
                              peer,
                              transport.rank(),
                              3));
    }
  });
}

// --- Signals -----------------------------------------------------------------------------------

TEST_P(TransportTest, SignalsCountExactlyOverThousandsOfEpochs) {
  const int epochs = GetParam().kind.faulty || kSanitized ? 300 : 4000;
  on_all([&](Transport& transport) {
    const int ranks = transport.size();
    const auto region = transport.allocate_region(0, ranks + 1);
    std::uint64_t expected = 0;
    for (int epoch = 0; epoch < epochs; ++epoch) {
      const auto add = 1 + static_cast<std::uint32_t>(epoch) % kMaxAdd;
      expected += add;
      for (Rank peer = 0; peer < ranks; ++peer) {
        transport.put(
            {.region = region.get(), .peer = peer, .signal = transport.rank(), .add = add});
        transport.put({.region = region.get(), .peer = peer, .signal = ranks, .add = 1});
      }
      for (Rank peer = 0; peer < ranks; ++peer) {
        ASSERT_REACHED(transport.wait(*region, peer, expected, soon()));
      }
    }
    ASSERT_REACHED(
        transport.wait(*region, ranks, static_cast<std::uint64_t>(epochs) * ranks, soon()));
    ASSERT_REACHED(transport.barrier(soon()));
    for (Rank peer = 0; peer < ranks; ++peer) {
      EXPECT_EQ(transport.signal_value(*region, peer), expected);
    }
    EXPECT_EQ(transport.signal_value(*region, ranks), static_cast<std::uint64_t>(epochs) * ranks);
  });
}

TEST_P(TransportTest, WaitsReachTheirDeadline) {
  on_all([](Transport& transport) {
    const auto region = transport.allocate_region(0, 1);
    ASSERT_REACHED(transport.barrier(soon()));
    const auto start = std::chrono::steady_clock::now();
    EXPECT_EQ(transport.wait(*region, 0, 1, start + milliseconds(60)), WaitResult::timed_out);
    const auto took = std::chrono::steady_clock::now() - start;
    EXPECT_GE(took, milliseconds(60));
    EXPECT_LT(took, seconds(5));
    EXPECT_EQ(transport.wait(*region, 0, 1, start), WaitResult::timed_out);
    EXPECT_REACHED(transport.wait(*region, 0, 0, start));  // a deadline in the past is a test
    ASSERT_REACHED(transport.barrier(kNoDeadline));
  });
}

TEST_P(TransportTest, SleepersAreWoken) {
  on_all([](Transport& transport) {
    const auto region = transport.allocate_region(0, 1);
    const Rank next = (transport.rank() + 1) % transport.size();
    for (std::uint64_t lap = 1; lap <= 3; ++lap) {
      if (transport.rank() != 0) {
        ASSERT_REACHED(transport.wait(*region, 0, lap, kNoDeadline));
      }
      usleep(5000);  // long enough for the others to sleep in the kernel
      transport.put({.region = region.get(), .peer = next, .signal = 0});
      if (transport.rank() == 0) {
        ASSERT_REACHED(transport.wait(*region, 0, lap, kNoDeadline));
      }
    }
  });
}

TEST_P(TransportTest, NobodyPassesABarrierBeforeTheLastHasCome) {
  on_all([](Transport& transport) {
    using Clock = std::chrono::steady_clock;
    const int ranks = transport.size();
    const auto region = transport.allocate_region(sizeof(Clock::rep) * 8, 1);
    for (int round = 0; round < 3; ++round) {
      usleep(static_cast<useconds_t>((transport.rank() + round) % ranks) * 2000);
      const Clock::rep entered = Clock::now().time_since_epoch().count();
      ASSERT_REACHED(transport.barrier(soon()));
      const Clock::rep passed = Clock::now().time_since_epoch().count();
      for (Rank peer = 0; peer < ranks; ++peer) {
        transport.put({.region = region.get(),
                       .peer = peer,
                       .offset = sizeof entered * static_cast<std::size_t>(transport.rank()),
                       .source = std::as_bytes(std::span(&entered, 1)),
                       .signal = 0});
      }
      ASSERT_REACHED(
          transport.wait(*region, 0, static_cast<std::uint64_t>((round + 1) * ranks), soon()));
      std::array<Clock::rep, 8> all;
      std::memcpy(all.data(), region->local().data(), sizeof all);
      for (Rank peer = 0; peer < ranks; ++peer) {
        EXPECT_GE(passed, all[static_cast<std::size_t>(peer)]) << "rank " << peer;
      }
      ASSERT_REACHED(transport.barrier(soon()));  // before `region` is overwritten
    }
  });
}

// --- Regions -----------------------------------------------------------------------------------

TEST_P(TransportTest, RegionsStartZeroedAndMayComeAndGo) {
  on_all([](Transport& transport) {
    std::unique_ptr<Region> kept;
    for (int i = 0; i < 50; ++i) {
      const auto bytes = static_cast<std::size_t>(i * 997 % 9000);
      auto region = transport.allocate_region(bytes, i % 5);
      ASSERT_EQ(region->local().size(), bytes);
      ASSERT_EQ(region->num_signals(), i % 5);
      ASSERT_EQ(reinterpret_cast<std::uintptr_t>(region->local().data()) % 4096, 0u);
      for (const std::byte b : region->local()) ASSERT_EQ(b, std::byte{0});
      for (int s = 0; s < i % 5; ++s) {
        ASSERT_EQ(transport.signal_value(*region, s), 0u);
        transport.put({.region = region.get(), .peer = transport.rank(), .signal = s});
        ASSERT_REACHED(transport.wait(*region, s, 1, soon()));
      }
      std::fill(region->local().begin(), region->local().end(), std::byte{0xee});
      if (i % 7 == 0) kept = std::move(region);  // lifetimes overlap
    }
  });
}

TEST_P(TransportTest, UntouchedMemoryCostsNothing) {
  on_all([](Transport& transport) {
    const std::size_t bytes = std::size_t{8} << 30;
    const auto region = transport.allocate_region(bytes, 1);
    region->local()[bytes - 1] = std::byte{1};
    ASSERT_REACHED(transport.barrier(soon()));
  });
}

TEST_P(TransportTest, WhatAPeerMayReadOutlivesTheOwnersPart) {
  on_all([](Transport& transport) {
    auto region = transport.allocate_region(4096, 1);
    fill_pattern(region->local(), transport.rank(), 0, 1);
    ASSERT_REACHED(transport.barrier(soon()));
    const Rank last = transport.size() - 1;
    if (transport.rank() != last) region.reset();
    ASSERT_REACHED(transport.barrier(soon()));
    for (Rank peer = 0; peer < transport.size() && region; ++peer) {
      const std::span<std::byte> window = transport.peer_window(*region, peer);
      EXPECT_TRUE(window.empty() || has_pattern(window, peer, 0, 1));
    }
  });
}

TEST_P(TransportTest, ArgumentsOutsideTheirRangeAreRefused) {
  on_all([](Transport& transport) {
    const auto region = transport.allocate_region(100, 2);
    const std::array<std::byte, 8> bytes{};
    const Put good{.region = region.get(), .peer = 0, .offset = 92, .source = bytes, .signal = 1};
    const auto refused = [&](auto change) {
      Put bad = good;
      change(bad);
      // Where a put is held back, its arguments are looked at when it is delivered.
      EXPECT_THROW(
          {
            transport.put(bad);
            usleep(200);
            transport.progress();
          },
          BrokenContract);
    };
    refused([](Put& put) { put.region = nullptr; });
    refused([](Put& put) { put.offset = 93; });
    refused([](Put& put) { put.offset = SIZE_MAX; });
    refused([](Put& put) { put.signal = 2; });
    refused([](Put& put) { put.signal = -1; });
    refused([&](Put& put) { put.peer = transport.size(); });
    refused([](Put& put) { put.peer = -1; });
    refused([](Put& put) { put.add = 0; });
    refused([](Put& put) { put.add = kMaxAdd + 1; });
    EXPECT_THROW((void)transport.wait(*region, 2, 1, soon()), BrokenContract);
    EXPECT_THROW((void)transport.signal_value(*region, -1), BrokenContract);
    ASSERT_REACHED(transport.barrier(soon()));
  });
}

TEST_P(TransportTest, ProgressTellsWhetherPutsMoveOverANetwork) {
  const bool is_network = GetParam().kind.between_hosts();
  on_all([&](Transport& transport) {
    const auto region = transport.allocate_region(8192, 1);
    const Rank next = (transport.rank() + 1) % transport.size();
    const Rank last = (transport.rank() + transport.size() - 1) % transport.size();
    const auto comes_to_rest = [&] {
      const Deadline deadline = soon();
      while (transport.progress() && std::chrono::steady_clock::now() < deadline) continue;
      return std::chrono::steady_clock::now() < deadline;
    };
    ASSERT_REACHED(transport.barrier(soon()));
    EXPECT_TRUE(comes_to_rest());
    ASSERT_REACHED(transport.barrier(soon()));
    transport.put({.region = region.get(),
                   .peer = next,
                   .offset = 4096,
                   .source = region->local().first(4096)});
    bool moved = false;
    const Deadline deadline = soon();
    while (transport.signal_value(*region, 0) == 0 && std::chrono::steady_clock::now() < deadline)
      moved = transport.progress() || moved;
    ASSERT_EQ(transport.signal_value(*region, 0), 1U);
    moved = transport.progress() || moved;
    const bool is_far = transport.host_of(last) != transport.host_of(transport.rank());
    EXPECT_TRUE(moved || !is_network || !is_far);
    ASSERT_REACHED(transport.barrier(soon()));
    EXPECT_TRUE(comes_to_rest());
    ASSERT_REACHED(transport.barrier(soon()));
  });
}

// --- Groups ------------------------------------------------------------------------------------

TEST_P(TransportTest, GroupsDoNotKnowEachOther) {
  if (!GetParam().kind.started_here()) GTEST_SKIP() << "a rank of mpirun starts no ranks";
  // Every rank is the launcher of a group of its own, all at the same time.
  on_all([&](Transport& outer) {
    const int inner_ranks = 1 + outer.rank() % 3;
    const int status = run_ranks(GetParam().kind.launch(inner_ranks), [&](Transport& transport) {
      EXPECT_EQ(transport.size(), inner_ranks);
      exchange_all_to_all(transport, 100, 5);
      return testing::Test::HasFailure() ? 1 : 0;
    });
    EXPECT_EQ(status, 0);
    ASSERT_REACHED(outer.barrier(soon()));
  });
}

struct Held {
  std::size_t descriptors;
  std::size_t threads;
  std::size_t names;
  bool operator==(const Held&) const = default;
};

std::size_t entries(const char* directory) {
  const std::filesystem::directory_iterator all(directory);
  return static_cast<std::size_t>(std::distance(begin(all), end(all)));
}

/// Names of shared memory that are ours. Those of libfabric and MPI come and go with tests that run
/// at the same time.
std::size_t shared_names() {
  std::size_t count = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/dev/shm"))
    count += entry.path().string().find("ferry") != std::string::npos ? 1 : 0;
  return count;
}

Held held_now() { return {entries("/proc/self/fd"), entries("/proc/self/task"), shared_names()}; }

class BareTransportTest : public testing::TestWithParam<RankKind> {};

INSTANTIATE_TEST_SUITE_P(Conformance,
                         BareTransportTest,
                         testing::ValuesIn(bare_rank_kinds()),
                         [](const auto& p) { return p.param.label(); });

TEST_P(BareTransportTest, GroupsLeaveNothingBehind) {
  if (!GetParam().started_here()) GTEST_SKIP() << "MPI keeps what it once opened";
  // Each process of a network opens it anew, which takes libfabric's tcp a tenth of a second.
  const int cycles = long_tests() ? 1000 : 25;
  const auto cycle = [&] {
    return run_ranks(GetParam().launch(2), [](Transport& transport) {
      const auto first = transport.allocate_region(5000, 1);
      const auto second = transport.allocate_region(100, 3);
      transport.put({.region = first.get(), .peer = 1 - transport.rank(), .signal = 0});
      return transport.wait(*first, 0, 1, soon()) == WaitResult::reached ? 0 : 1;
    });
  };
  ASSERT_EQ(cycle(), 0);
  const Held before = held_now();
  for (int i = 0; i < cycles; ++i) ASSERT_EQ(cycle(), 0);
  const Held after = held_now();
  EXPECT_EQ(after.descriptors, before.descriptors);
  EXPECT_EQ(after.threads, before.threads);
  EXPECT_EQ(after.names, before.names);
}

TEST_P(BareTransportTest, AThousandRegionsLeaveNothingBehind) {
  on_ranks({.kind = GetParam(), .ranks = 2}, [](Transport& transport) {
    const auto cycle = [&] {
      const auto region = transport.allocate_region(100'000, 4);
      std::fill(region->local().begin(), region->local().end(), std::byte{1});
    };
    cycle();
    ASSERT_REACHED(transport.barrier(soon()));
    // Threads share descriptors, those used for counting too: one counts at a time.
    std::size_t before = 0;
    for (Rank r = 0; r < transport.size(); ++r) {
      if (r == transport.rank()) before = entries("/proc/self/fd");
      ASSERT_REACHED(transport.barrier(soon()));
    }
    for (int i = 0; i < 1000; ++i) cycle();
    for (Rank r = 0; r < transport.size(); ++r) {
      ASSERT_REACHED(transport.barrier(soon()));
      if (r != transport.rank()) continue;
      // It may have begun to watch its peers, which takes a descriptor for each.
      EXPECT_LE(entries("/proc/self/fd"), before + 1);
    }
  });
}

/// Kilobytes held by the unnamed files that this process has open.
std::size_t memfd_kilobytes() {
  std::size_t blocks = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code gone;
    const std::string target = std::filesystem::read_symlink(entry.path(), gone).string();

    struct stat status {};

    if (target.rfind("/memfd:ferry", 0) == 0 && stat(entry.path().c_str(), &status) == 0) {
      blocks += static_cast<std::size_t>(status.st_blocks);
    }
  }
  return blocks / 2;
}

TEST(ShmTransport, RegionsGiveTheirMemoryBack) {
  on_ranks({.kind = {"shm"}, .ranks = 3}, [](Transport& transport) {
    const std::size_t before = memfd_kilobytes();
    auto region = transport.allocate_region(std::size_t{4} << 20, 1);
    std::fill(region->local().begin(), region->local().end(), std::byte{1});
    ASSERT_REACHED(transport.barrier(soon()));
    EXPECT_GE(memfd_kilobytes(), before + 3 * 4096);
    ASSERT_REACHED(transport.barrier(soon()));
    region.reset();
    ASSERT_REACHED(transport.barrier(soon()));
    EXPECT_LE(memfd_kilobytes(), before + 64);
    ASSERT_REACHED(transport.barrier(soon()));
  });
}

}  // namespace
}  // namespace ferry
