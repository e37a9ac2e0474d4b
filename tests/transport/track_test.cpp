#include "ferry/transport/track.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cstring>
#include <string>

#include "ferry/core/error.h"
#include "support/ranks.h"

namespace ferry {
namespace {

constexpr std::size_t kWord = sizeof(std::uint64_t);

class Track : public testing::TestWithParam<RankKind> {};

/// Every rank tells the others of its track a number of its own; regions differ by track.
TEST_P(Track, IsAGroupOfItsRanks) {
  on_ranks({.kind = GetParam(), .ranks = 4}, [](Transport& group) {
    TrackTransport track(group, 2);
    ASSERT_EQ(track.size(), 2);
    ASSERT_EQ(track.rank(), group.rank() / 2);
    const Rank slice = group.rank() % 2;
    for (Rank r = 0; r < 2; ++r) EXPECT_EQ(track.host_of(r), group.host_of(2 * r + slice));

    const std::size_t bytes = slice == 0 ? 4 * kWord : 100'000;
    const auto region = track.allocate_region(bytes, 2);
    ASSERT_GE(region->local().size(), bytes);
    const std::uint64_t own = 1000 + static_cast<std::uint64_t>(group.rank());
    for (Rank peer = 0; peer < track.size(); ++peer) {
      track.put({.region = region.get(),
                 .peer = peer,
                 .offset = static_cast<std::size_t>(track.rank()) * kWord,
                 .source = std::as_bytes(std::span(&own, 1)),
                 .signal = track.rank()});
    }
    for (Rank peer = 0; peer < track.size(); ++peer) {
      ASSERT_EQ(track.wait(*region, peer, 1, deadline_in(std::chrono::seconds(30))),
                WaitResult::reached);
      EXPECT_EQ(track.signal_value(*region, peer), 1U);
      std::uint64_t heard = 0;
      std::memcpy(&heard, region->local().data() + static_cast<std::size_t>(peer) * kWord, kWord);
      EXPECT_EQ(heard, 1000U + static_cast<std::uint64_t>(2 * peer + slice));
      if (const auto window = track.peer_window(*region, peer); !window.empty()) {
        EXPECT_EQ(peer == track.rank(), window.data() == region->local().data());
        EXPECT_EQ(window.size(), region->local().size());
      }
    }
    track.progress();
    EXPECT_THROW(track.put({.region = region.get(), .peer = 2}), BrokenContract);
    ASSERT_EQ(track.barrier(deadline_in(std::chrono::seconds(30))), WaitResult::reached);
  });
}

/// A rank that waits for its group moves what it has put on its track: here everything is held back
/// until the sender calls again.
TEST_P(Track, MovesWhenItsGroupWaits) {
  on_ranks({.kind = GetParam(),
            .ranks = 4,
            .faults = Faults{.max_delay = std::chrono::milliseconds(2), .network = true}},
           [](Transport& group) {
             TrackTransport track(group, 2);
             const auto on_track = track.allocate_region(kWord, 1);
             const auto in_group = group.allocate_region(kWord, 1);
             const auto until = [] { return deadline_in(std::chrono::seconds(30)); };
             track.put({.region = on_track.get(), .peer = 1 - track.rank()});
             // Ranks 0 and 3 wait on their tracks first, and tell their neighbours only then.
             const bool first = group.rank() == 0 || group.rank() == 3;
             if (first) {
               ASSERT_EQ(track.wait(*on_track, 0, 1, until()), WaitResult::reached);
               group.put({.region = in_group.get(), .peer = group.rank() ^ 1});
             } else {
               ASSERT_EQ(group.wait(*in_group, 0, 1, until()), WaitResult::reached);
               ASSERT_EQ(track.wait(*on_track, 0, 1, until()), WaitResult::reached);
             }
             ASSERT_EQ(group.barrier(until()), WaitResult::reached);
           });
}

INSTANTIATE_TEST_SUITE_P(All, Track, testing::ValuesIn(main_rank_kinds()), [](const auto& kind) {
  return kind.param.label();
});

TEST(TrackErrors, RanksMustDivide) {
  on_ranks({.ranks = 3}, [](Transport& group) {
    EXPECT_THROW(TrackTransport(group, 2), ConfigError);
    EXPECT_THROW(TrackTransport(group, 0), ConfigError);
    EXPECT_NO_THROW(TrackTransport(group, 3));
  });
}

}  // namespace
}  // namespace ferry
