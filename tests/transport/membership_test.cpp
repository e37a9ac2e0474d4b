// Groups from epoch to epoch: growth, replacement, shrinking, and newcomers that die on the way.
#include "ferry/membership.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "ferry/launch.h"
#include "joining.h"

namespace ferry {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

Deadline soon() { return deadline_in(seconds(30)); }

JoinOptions options_of(const std::string& transport, Rank rank, int founders) {
  return {.transport = transport,
          .rank = rank,
          .size = founders,
          .join_timeout = seconds(20),
          .fabric_provider = transport == "fabric" ? "tcp" : ""};
}

/// Founders come first; whoever is beyond them announces itself.
Membership member(const std::string& transport, int index, int founders, Store& store) {
  return index < founders ? Membership::found(options_of(transport, index, founders), store)
                          : Membership::announce(options_of(transport, 0, 1), store);
}

/// The leader waits until so many newcomers are there.
std::vector<std::string> await_newcomers(Membership& membership, std::size_t count) {
  std::vector<std::string> names;
  while (names.size() < count) {
    names = membership.newcomers();
    std::this_thread::sleep_for(milliseconds(2));
  }
  return names;
}

/// Memory that outlives epochs: every rank puts a word behind its own in the next rank's memory.
std::string pass_on(Transport& transport, std::vector<std::uint64_t>& memory) {
  const auto region = transport.register_region(std::as_writable_bytes(std::span(memory)), 1);
  const Rank next = (transport.rank() + 1) % transport.size();
  const std::uint64_t word = memory[0] * 10;
  transport.put({.region = region.get(),
                 .peer = next,
                 .offset = sizeof word,
                 .source = std::as_bytes(std::span(&word, 1)),
                 .signal = 0});
  if (transport.wait(*region, 0, 1, soon()) == WaitResult::timed_out) return "no word";
  if (transport.barrier(soon()) == WaitResult::timed_out) return "no barrier";
  return fmt::format("{}/{}:{},{} ", transport.rank(), transport.size(), memory[0], memory[1]);
}

class MembershipTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    for (const TransportInfo& info : list_transports())
      if (info.name == transport() && !info.available) GTEST_SKIP() << info.reason;
  }

  std::string transport() const { return GetParam(); }
};

INSTANTIATE_TEST_SUITE_P(Transports,
                         MembershipTest,
                         testing::Values("inproc", "shm", "fabric"),
                         [](const auto& p) { return std::string(p.param); });

/// Founder 2 ends at the boundary, and the others know it: nobody waits out the 20 seconds.
TEST_P(MembershipTest, NobodyIsWaitedForWhoIsKnownToComeNoMore) {
  const auto heard = in_ranks_of(transport(), 3, [&](int index, Store& store) -> std::string {
    Membership self = member(transport(), index, 3, store);
    std::unique_ptr<Transport> end = self.next();
    self.watch([](const std::string& name) { return name == "founder 2"; });
    if (index == 0) self.publish(std::vector{0, 1, 2}, {});
    if (index == 2) return "gone";
    end.reset();
    const auto begin = std::chrono::steady_clock::now();
    try {
      end = self.next();
      return "met";
    } catch (const TransportError& e) {
      if (std::chrono::steady_clock::now() - begin > seconds(10)) return "late";
      return fmt::format("{} {}", e.peer(), e.kind() == TransportError::Kind::peer_died);
    }
  });
  EXPECT_EQ(heard, (std::vector<std::string>{"2 true", "2 true", "gone"}));
}

TEST_P(MembershipTest, AGroupGrowsStaysAndShrinks) {
  const auto heard = in_ranks_of(transport(), 4, [&](int index, Store& store) {
    Membership self = member(transport(), index, 2, store);
    std::vector<std::uint64_t> memory{static_cast<std::uint64_t>(index + 1), 0};
    std::string text;
    std::unique_ptr<Transport> end;
    if (index < 2) {
      end = self.next();
      text += pass_on(*end, memory);
    }
    if (index == 0) self.publish(std::vector{0, 1}, await_newcomers(self, 2));
    end = self.next();  // the old end goes after the new one is there
    EXPECT_EQ(self.epoch(), 1u);
    // Which newcomer came first is chance; all know who is who.
    const bool swapped = end->rank() != index;
    text += pass_on(*end, memory);
    if (index == 0) {
      EXPECT_TRUE(self.newcomers().empty());
      self.publish(std::vector{0, 1, 2, 3}, {});
    }
    end.reset();  // and here before
    end = self.next();
    text += pass_on(*end, memory);
    // Without ranks 1 and 2: rank 3 becomes 1.
    if (index == 0) self.publish(std::vector{0, 3}, {});
    end = self.next();
    text += end ? fmt::format("{} of {} ", end->rank(), end->size()) : "left out ";
    if (end) say_hello(*end);
    return text + (swapped ? "swapped" : "in order");
  });
  EXPECT_EQ(heard[0].substr(0, 8), "0/2:1,20");
  EXPECT_EQ(heard[1].substr(0, 8), "1/2:2,10");
  for (std::size_t i = 0; i < 4; ++i) {
    const bool swapped = heard[i].ends_with("swapped");
    const std::size_t rank = swapped ? 5 - i : i;
    const auto value_at = [&](std::size_t r) {
      const bool others = heard[2].ends_with("swapped");
      return (others && r >= 2 ? 5 - r : r) + 1;
    };
    const std::string full =
        fmt::format("{}/4:{},{}0 ", rank, value_at(rank), value_at((rank + 3) % 4));
    EXPECT_NE(heard[i].find(full + full), std::string::npos) << heard[i] << " without " << full;
    const std::string last = rank == 0 ? "0 of 2 " : rank == 3 ? "1 of 2 " : "left out ";
    EXPECT_NE(heard[i].find(full + last), std::string::npos) << heard[i];
  }
}

TEST_P(MembershipTest, ADeadRankIsReplaced) {
  if (transport() == "inproc") GTEST_SKIP() << "threads are not killed";
  testing::internal::CaptureStderr();
  const auto heard = in_processes(4, [&](int index, Store& store) {
    Membership self = member(transport(), index, 3, store);
    std::unique_ptr<Transport> end;
    if (index < 3) {
      end = self.next();
      if (index == 1) {
        await_newcomers(self, 1);
        kill(getpid(), SIGKILL);
      }
      EXPECT_THROW((void)end->barrier(kNoDeadline), TransportError);
      end->mask(1);
      if (end->barrier(soon()) == WaitResult::timed_out) return std::string("late");
    }
    if (index == 0) self.publish(std::vector{0, 2}, self.newcomers());
    end = self.next();
    return say_hello(*end);
  });
  testing::internal::GetCapturedStderr();
  EXPECT_EQ(heard[0], hello_of(0, 3));
  EXPECT_EQ(heard[1], "killed");
  EXPECT_EQ(heard[2], hello_of(1, 3));
  EXPECT_EQ(heard[3], hello_of(2, 3));
}

TEST_P(MembershipTest, TheLowestSurvivorMayLead) {
  const auto heard = in_ranks_of(transport(), 3, [&](int index, Store& store) {
    Membership self = member(transport(), index, 3, store);
    std::unique_ptr<Transport> end = self.next();
    if (end->barrier(soon()) == WaitResult::timed_out) return std::string("late");
    end.reset();
    if (index == 0) return std::string("gone");
    if (index == 1) self.publish(std::vector{1, 2}, {});
    return say_hello(*self.next());
  });
  EXPECT_EQ(heard[1], hello_of(0, 2));
  EXPECT_EQ(heard[2], hello_of(1, 2));
}

TEST_P(MembershipTest, ANewcomerThatDiesWhileJoiningIsNamedAndLeftOut) {
  if (transport() == "inproc") GTEST_SKIP() << "threads are not killed";
  // Calls: number, name, invitation, members; then those of join().
  for (const int call : {3, 4, 5, 6}) {
    testing::internal::CaptureStderr();
    const auto heard = in_processes(3, [&](int index, Store& store) {
      DeadlyStore deadly(store, index == 2 ? call : -1);
      JoinOptions options = options_of(transport(), index, 2);
      options.join_timeout = seconds(2);
      Membership self =
          index < 2 ? Membership::found(options, store) : Membership::announce(options, deadly);
      std::unique_ptr<Transport> end = index < 2 ? self.next() : nullptr;
      if (index == 0) self.publish(std::vector{0, 1}, await_newcomers(self, 1));
      std::string text;
      try {
        end = self.next();
      } catch (const TransportError& e) {
        text = e.what();
      }
      EXPECT_EQ(say_hello(*end), hello_of(index, 2));  // the old epoch still holds
      if (index == 0) self.publish(std::vector{0, 1}, {});
      end = self.next();
      EXPECT_EQ(self.epoch(), 2u);
      return text + " | " + say_hello(*end);
    });
    testing::internal::GetCapturedStderr();
    EXPECT_EQ(heard[2], "killed");
    for (std::size_t r = 0; r < 2; ++r) {
      EXPECT_NE(heard[r].find("rank 2 is newcomer 1"), std::string::npos)
          << call << ": " << heard[r];
      EXPECT_TRUE(heard[r].ends_with(" | " + hello_of(static_cast<Rank>(r), 2))) << heard[r];
    }
  }
}

TEST_P(MembershipTest, EverythingHasADeadline) {
  const auto heard = in_ranks_of(transport(), 2, [&](int index, Store& store) -> std::string {
    JoinOptions options = options_of(transport(), 0, 1);
    options.join_timeout = milliseconds(200);
    Membership self =
        index == 0 ? Membership::found(options, store) : Membership::announce(options, store);
    const auto end = index == 0 ? self.next() : nullptr;
    return say_hello(*self.next());
  });
  EXPECT_EQ(heard[0], "founder 0: nobody said who is in epoch 1 within 0.2 s");
  EXPECT_EQ(heard[1], "newcomer 1: nobody took it into group world within 0.2 s");
}

TEST(Membership, WhatCannotBeIsRefused) {
  LocalStore store;
  Membership self = Membership::found({.transport = "inproc"}, store);
  const auto end = self.next();
  const std::vector<std::string> nobody;
  EXPECT_THROW(self.publish(std::vector{1}, nobody), ConfigError);
  EXPECT_THROW(self.publish(std::vector{-1}, nobody), ConfigError);
  EXPECT_THROW(self.publish(std::vector{0, 0}, nobody), ConfigError);
  EXPECT_THROW(self.publish({}, std::vector<std::string>{"newcomer 1"}), ConfigError);
  self.publish(std::vector{0}, nobody);
  EXPECT_EQ(self.next()->size(), 1);
}

}  // namespace
}  // namespace ferry
