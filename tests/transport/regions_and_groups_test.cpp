// Regions over memory that the caller owns, and groups split off from others, over every transport.
#include <gtest/gtest.h>

#include <cstring>
#include <numeric>
#include <vector>

#include "ferry/core/error.h"
#include "joining.h"
#include "support/ranks.h"

namespace ferry {
namespace {

using std::chrono::seconds;

Deadline soon() { return deadline_in(seconds(30)); }

#define ASSERT_REACHED(wait) ASSERT_EQ(wait, WaitResult::reached)

class RegionsAndGroupsTest : public testing::TestWithParam<RankKind> {
 protected:
  void on_all(int ranks, const std::function<void(Transport&)>& body) {
    on_ranks({.kind = GetParam(), .ranks = ranks}, body);
  }
};

INSTANTIATE_TEST_SUITE_P(Transports,
                         RegionsAndGroupsTest,
                         testing::ValuesIn(all_and_joined_rank_kinds()),
                         [](const auto& p) { return p.param.label(); });

// --- Memory of the caller ----------------------------------------------------------------------

std::byte pattern(Rank from, Rank to, int round, std::size_t at) {
  return static_cast<std::byte>(static_cast<std::size_t>(from * 31 + to * 7 + round * 3) + at * 5 +
                                at / 256);
}

/// Every rank puts `bytes` bytes to every rank, in rounds that say when memory may be used again.
void exchange(Transport& transport, Region& inbox, Region& staging, std::size_t bytes, int rounds) {
  const int ranks = transport.size();
  const Rank me = transport.rank();
  const auto slot = [&](Region& region, Rank r) {
    return region.local().subspan(static_cast<std::size_t>(r) * bytes, bytes);
  };
  for (int round = 1; round <= rounds; ++round) {
    const auto count = static_cast<std::uint64_t>(round);
    for (Rank peer = 0; peer < ranks; ++peer) {
      ASSERT_REACHED(transport.wait(inbox, ranks + peer, count - 1, soon()));
      const auto source = slot(staging, peer);
      for (std::size_t i = 0; i < bytes; ++i) source[i] = pattern(me, peer, round, i);
      transport.put({.region = &inbox,
                     .peer = peer,
                     .offset = static_cast<std::size_t>(me) * bytes,
                     .source = source,
                     .signal = me});
    }
    for (Rank peer = 0; peer < ranks; ++peer) {
      ASSERT_REACHED(transport.wait(inbox, peer, count, soon()));
      const auto target = slot(inbox, peer);
      for (std::size_t i = 0; i < bytes; ++i)
        ASSERT_EQ(target[i], pattern(peer, me, round, i)) << "byte " << i << " of rank " << peer;
      transport.put({.region = &inbox, .peer = peer, .signal = ranks + me});
    }
  }
  for (Rank peer = 0; peer < ranks; ++peer)
    ASSERT_REACHED(transport.wait(inbox, ranks + peer, static_cast<std::uint64_t>(rounds), soon()));
}

TEST_P(RegionsAndGroupsTest, PutsReachMemoryOfTheCaller) {
  on_all(3, [](Transport& transport) {
    for (const std::size_t bytes : {std::size_t{1}, std::size_t{40}, std::size_t{70'001}}) {
      const std::size_t all = bytes * static_cast<std::size_t>(transport.size());
      // At no alignment at all, between bytes that nobody may touch.
      std::vector<std::byte> memory(all + 2, std::byte{0x5a});
      std::vector<std::byte> sources(all + 1);
      const auto inbox =
          transport.register_region(std::span(memory).subspan(1, all), 2 * transport.size());
      const auto staging = transport.register_region(std::span(sources).subspan(1), 0);
      EXPECT_EQ(inbox->local().data(), memory.data() + 1);
      EXPECT_EQ(inbox->local()[0], std::byte{0x5a});  // registering changes nothing
      ASSERT_REACHED(transport.barrier(soon()));
      exchange(transport, *inbox, *staging, bytes, 5);
      EXPECT_EQ(memory.front(), std::byte{0x5a});
      EXPECT_EQ(memory.back(), std::byte{0x5a});
      ASSERT_REACHED(transport.barrier(soon()));
    }
  });
}

TEST_P(RegionsAndGroupsTest, BothKindsOfRegionsWorkTogether) {
  on_all(2, [](Transport& transport) {
    const std::size_t bytes = 5000;
    std::vector<std::byte> memory(2 * bytes);
    const auto own = transport.register_region(memory, 4);
    const auto made = transport.allocate_region(2 * bytes, 4);
    exchange(transport, *own, *made, bytes, 3);
    exchange(transport, *made, *own, bytes, 3);
    ASSERT_REACHED(transport.barrier(soon()));
  });
}

TEST_P(RegionsAndGroupsTest, ManyPutsMayBeUnderWayToMemoryOfTheCaller) {
  constexpr int kPuts = 500;  // more than any queue holds
  on_all(2, [](Transport& transport) {
    std::vector<std::uint64_t> memory(2 * kPuts, 0);
    for (std::size_t i = 0; i < kPuts; ++i)
      memory[i] = 1000 * i + static_cast<std::size_t>(transport.rank());
    const auto region = transport.register_region(std::as_writable_bytes(std::span(memory)), 1);
    for (std::size_t i = 0; i < kPuts; ++i) {
      transport.put({.region = region.get(),
                     .peer = 1 - transport.rank(),
                     .offset = (kPuts + i) * sizeof(std::uint64_t),
                     .source = std::as_bytes(std::span(memory).subspan(i, 1)),
                     .signal = 0});
    }
    ASSERT_REACHED(transport.wait(*region, 0, kPuts, soon()));
    for (std::size_t i = 0; i < kPuts; ++i)
      ASSERT_EQ(memory[kPuts + i], 1000 * i + static_cast<std::size_t>(1 - transport.rank()));
    ASSERT_REACHED(transport.barrier(soon()));
  });
}

TEST_P(RegionsAndGroupsTest, PollingDeliversToo) {
  on_all(2, [](Transport& transport) {
    std::vector<std::byte> memory(100);
    const auto region = transport.register_region(memory, 1);
    const std::byte word{42};
    transport.put({.region = region.get(),
                   .peer = 1 - transport.rank(),
                   .offset = 7,
                   .source = std::span(&word, 1),
                   .signal = 0});
    const Deadline deadline = soon();
    while (transport.signal_value(*region, 0) == 0 && std::chrono::steady_clock::now() < deadline)
      transport.progress();
    EXPECT_EQ(memory[7], word);
    ASSERT_REACHED(transport.barrier(soon()));
  });
}

TEST_P(RegionsAndGroupsTest, WindowsToMemoryOfTheCallerMustBeAskedFor) {
  on_all(2, [](Transport& transport) {
    std::vector<std::byte> memory(64, static_cast<std::byte>(transport.rank()));
    const auto region = transport.register_region(memory, 1);
    EXPECT_EQ(transport.peer_window(*region, transport.rank()).data(), memory.data());
    const auto window = transport.peer_window(*region, 1 - transport.rank());
    if (transport.capabilities().one_process && transport.capabilities().load_store) {
      ASSERT_EQ(window.size(), memory.size());
      EXPECT_EQ(window[63], static_cast<std::byte>(1 - transport.rank()));
    } else {
      EXPECT_TRUE(window.empty());
    }
    ASSERT_REACHED(transport.barrier(soon()));
  });
}

TEST_P(RegionsAndGroupsTest, NoBytesAndOtherSizesAreWhatTheyAreElsewhere) {
  on_all(3, [](Transport& transport) {
    {
      const auto none = transport.register_region({}, 1);
      transport.put({.region = none.get(), .peer = (transport.rank() + 1) % 3, .signal = 0});
      ASSERT_REACHED(transport.wait(*none, 0, 1, soon()));
      ASSERT_REACHED(transport.barrier(soon()));
    }
    std::vector<std::byte> memory(transport.rank() == 2 ? 20 : 10);
    EXPECT_THROW((void)transport.register_region(memory, 1), BrokenContract);
  });
}

// --- Groups ------------------------------------------------------------------------------------

TEST_P(RegionsAndGroupsTest, TwoGroupsOfOneSplitWorkAtTheSameTime) {
  on_all(4, [](Transport& transport) {
    const int color = transport.rank() % 2;
    const auto group = transport.split(color, -transport.rank());
    ASSERT_NE(group, nullptr);
    EXPECT_EQ(group->name(), transport.name());
    EXPECT_EQ(group->size(), 2);
    EXPECT_EQ(group->rank(), transport.rank() < 2 ? 1 : 0);  // the keys turn the order round
    EXPECT_EQ(group->host_of(group->rank()) == group->host_of(1 - group->rank()),
              transport.host_of(color) == transport.host_of(color + 2));
    const std::size_t bytes = 3000;
    std::vector<std::byte> memory(2 * bytes);
    const auto inbox = group->allocate_region(2 * bytes, 4);
    const auto staging = group->register_region(memory, 0);
    exchange(*group, *inbox, *staging, bytes, color == 0 ? 20 : 5);  // not in step
    ASSERT_REACHED(group->barrier(soon()));
    // The first group lives on.
    EXPECT_EQ(say_hello(transport), hello_of(transport.rank(), 4));
    ASSERT_REACHED(group->barrier(soon()));
  });
}

TEST_P(RegionsAndGroupsTest, WhoHasNoColorIsInNoGroup) {
  on_all(3, [](Transport& transport) {
    const auto group = transport.split(transport.rank() == 1 ? -1 : 7, 0);
    EXPECT_EQ(group == nullptr, transport.rank() == 1);
    if (group) {
      EXPECT_EQ(say_hello(*group), hello_of(transport.rank() / 2, 2));
      const auto alone = group->split(group->rank(), 0);  // groups split as well
      EXPECT_EQ(say_hello(*alone), hello_of(0, 1));
    }
    EXPECT_EQ(transport.split(-1, 0), nullptr);
    ASSERT_REACHED(transport.barrier(soon()));
  });
}

TEST_P(RegionsAndGroupsTest, ADeathIsFeltInItsGroupAlone) {
  if (!GetParam().killable()) GTEST_SKIP() << "such a rank cannot be killed alone";
  on_ranks({.kind = GetParam(), .ranks = 4, .killed_rank = 3}, [](Transport& transport) {
    const auto group = transport.split(transport.rank() / 2, 0);
    const auto region = group->allocate_region(8, 2);
    ASSERT_REACHED(transport.barrier(soon()));
    if (transport.rank() == 3) kill(getpid(), SIGKILL);
    if (transport.rank() == 2) {
      try {
        (void)group->wait(*region, 0, 1, kNoDeadline);
        ADD_FAILURE() << "nothing was thrown";
      } catch (const TransportError& e) {
        EXPECT_EQ(e.peer(), 1) << e.what();  // of the group
      }
      group->mask(1);
      ASSERT_REACHED(group->barrier(soon()));
    } else {
      for (int round = 1; round <= 20; ++round) {
        group->put({.region = region.get(), .peer = 1 - group->rank(), .signal = 0});
        ASSERT_REACHED(group->wait(*region, 0, static_cast<std::uint64_t>(round), soon()));
        usleep(5000);
      }
      ASSERT_REACHED(group->barrier(soon()));
    }
    transport.mask(3);
    ASSERT_REACHED(transport.barrier(soon()));
    EXPECT_THROW((void)transport.split(0, 0), BrokenContract);  // as all that makes regions
  });
}

TEST_P(RegionsAndGroupsTest, AnAbortEndsItsGroupAlone) {
  on_all(4, [](Transport& transport) {
    const auto group = transport.split(transport.rank() % 2, 0);
    if (transport.rank() == 1) group->abort("enough");
    if (transport.rank() % 2 == 1) {
      EXPECT_THROW((void)group->barrier(soon()), TransportError);
    } else {
      EXPECT_EQ(say_hello(*group), hello_of(transport.rank() / 2, 2));
    }
    ASSERT_REACHED(transport.barrier(soon()));
  });
}

}  // namespace
}  // namespace ferry
