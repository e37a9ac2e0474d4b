// The test tool itself: each fault shows as a user of the transport would meet it.
#include "support/faulty_transport.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <vector>

#include "ferry/core/error.h"
#include "ferry/inproc.h"
#include "support/ranks.h"

namespace ferry {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

/// A group of one, on this thread.
struct Alone {
  explicit Alone(const Faults& faults, std::size_t bytes = 4096)
      : ends(make_inproc(1)),
        transport(*ends[0], faults),
        region(transport.allocate_region(bytes, 2)) {}

  Put put_of(std::span<const std::byte> source) const {
    return {.region = region.get(), .source = source};
  }

  std::vector<std::unique_ptr<Transport>> ends;
  FaultyTransport transport;
  std::unique_ptr<Region> region;
};

TEST(FaultyTransport, HoldsPutsBackUntilTheSenderCallsAgain) {
  Alone alone({.max_delay = milliseconds(5)});
  const std::byte value{7};
  alone.transport.put(alone.put_of({&value, 1}));
  EXPECT_EQ(alone.transport.held(), 1u);
  usleep(6000);
  EXPECT_EQ(alone.transport.signal_value(*alone.region, 0), 0u);
  alone.transport.progress();
  EXPECT_EQ(alone.transport.held(), 0u);
  EXPECT_EQ(alone.transport.signal_value(*alone.region, 0), 1u);
  EXPECT_EQ(alone.region->local()[0], value);
}

TEST(FaultyTransport, WaitsAndBarriersDeliver) {
  Alone alone({.max_delay = milliseconds(3), .reorder = true});
  for (int i = 0; i < 10; ++i) alone.transport.put(alone.put_of({}));
  EXPECT_EQ(alone.transport.wait(*alone.region, 0, 10, kNoDeadline), WaitResult::reached);
  alone.transport.put(alone.put_of({}));
  EXPECT_EQ(alone.transport.barrier(kNoDeadline), WaitResult::reached);
  EXPECT_EQ(alone.transport.held(), 0u);
}

constexpr int kPuts = 30;

/// Which of the puts that write 0, 1, 2, ... to the same byte arrives last.
int last_to_arrive(const Faults& faults) {
  Alone alone(faults);
  for (int i = 0; i < kPuts; ++i) {
    const auto value = static_cast<std::byte>(i);
    alone.transport.put(alone.put_of({&value, 1}));
  }
  EXPECT_EQ(alone.transport.wait(*alone.region, 0, kPuts, kNoDeadline), WaitResult::reached);
  return static_cast<int>(alone.region->local()[0]);
}

TEST(FaultyTransport, ReordersOnlyWhenAsked) {
  int overtaken = 0;
  for (std::uint64_t seed = 1; seed <= 10; ++seed) {
    EXPECT_EQ(last_to_arrive({.seed = seed, .max_delay = milliseconds(1)}), kPuts - 1);
    const Faults faults{.seed = seed, .max_delay = milliseconds(1), .reorder = true};
    overtaken += last_to_arrive(faults) != kPuts - 1;
  }
  EXPECT_GT(overtaken, 5);
}

TEST(FaultyTransport, LosesPuts) {
  Alone alone({.drop = 0.5});
  for (int i = 0; i < 200; ++i) alone.transport.put(alone.put_of({}));
  alone.transport.progress();
  const std::uint64_t arrived = alone.transport.signal_value(*alone.region, 0);
  EXPECT_GT(arrived, 50u);
  EXPECT_LT(arrived, 150u);
}

TEST(FaultyTransport, ActsLikeANetworkTowardsSources) {
  Alone alone({.max_delay = milliseconds(1), .network = true});
  EXPECT_FALSE(alone.transport.capabilities().load_store);

  const std::vector<std::byte> outside(kInlineBytes + 1);
  EXPECT_THROW(alone.transport.put(alone.put_of(outside)), BrokenContract);
  alone.transport.put(alone.put_of(std::span(outside).first(kInlineBytes)));

  Put put = alone.put_of(alone.region->local().subspan(1000, 1000));
  alone.transport.put(put);
  alone.region->local()[1500] = std::byte{1};
  EXPECT_THROW(
      {
        usleep(2000);
        alone.transport.progress();
      },
      BrokenContract);
}

TEST(FaultyTransport, DeliversWhatItHoldsWhenARegionIsDestroyed) {
  on_ranks({.ranks = 2, .faults = Faults{.max_delay = seconds(5)}, .faulty_rank = 0},
           [](Transport& transport) {
             const auto region = transport.allocate_region(0, 1);
             if (transport.rank() == 0) {
               transport.put({.region = region.get(), .peer = 1, .signal = 0});
               return;
             }
             EXPECT_EQ(transport.wait(*region, 0, 1, deadline_in(seconds(4))), WaitResult::reached);
           });
}

/// Ring of puts in which the faulty rank ends itself.
void ring(Transport& transport) {
  const auto region = transport.allocate_region(0, 1);
  for (std::uint64_t lap = 1; lap <= 20; ++lap) {
    transport.put(
        {.region = region.get(), .peer = (transport.rank() + 1) % transport.size(), .signal = 0});
    (void)transport.wait(*region, 0, lap, kNoDeadline);
  }
}

TEST(FaultyTransport, EndsARankByAnException) {
  EXPECT_THROW(run_ranks({.ranks = 3},
                         [](Transport& transport) {
                           FaultyTransport faulty(transport,
                                                  {.ends_at_put = transport.rank() == 1 ? 5 : -1});
                           ring(faulty);
                           return 0;
                         }),
               RankEnded);
}

TEST(FaultyTransport, EndsARankByASignal) {
  on_ranks({.kind = {"shm"},
            .ranks = 3,
            .faults = Faults{.ends_at_put = 5, .ends_by_signal = true},
            .faulty_rank = 1,
            .killed_rank = 1},
           [](Transport& transport) {
             try {
               ring(transport);
               ADD_FAILURE() << "nothing was thrown";
             } catch (const TransportError& e) {
               EXPECT_EQ(e.kind(), TransportError::Kind::peer_died) << e.what();
               EXPECT_EQ(e.peer(), 1) << e.what();
             }
           });
}

}  // namespace
}  // namespace ferry
