// Data planes: what each refuses, what a host must not read, and which layout memory asks for. That
// they give the same bytes is the conformance suite's affair.
#include "ferry/exchange/data_plane.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "exchange_harness.h"
#include "ferry/core/error.h"
#include "ferry/exchange/cpu_plane.h"
#include "ferry/inproc.h"
#include "support/queued_plane.h"
#include "support/ranks.h"

namespace ferry {
namespace {

DispatcherOptions small_options() {
  return {.slots_per_rank = 3, .hidden = 16, .topk = 2, .max_tokens = 4};
}

/// One rank alone, its tokens and a queue that stands still until it is synchronised.
class OneRank : public ::testing::Test {
 protected:
  RoutedTokens tokens(const MemoryPlace& place) const {
    return {.place = place, .rows = rows(), .tokens = 3, .slots = slots_, .weights = weights_};
  }

  RowsView rows() const { return {reinterpret_cast<const std::byte*>(hidden_.data()), kStride}; }

  CombineTarget target(const MemoryPlace& place) {
    return {.place = place,
            .weights = weights_,
            .rows = {reinterpret_cast<std::byte*>(out_.data()), kStride}};
  }

  template <class Call>
  std::string config_error_of(Call call) {
    try {
      call();
    } catch (const ConfigError& e) {
      return e.what();
    }
    return "no error";
  }

  static constexpr std::ptrdiff_t kStride = 16 * sizeof(float);

  std::vector<std::unique_ptr<Transport>> transports_ = make_inproc(1);
  Transport& transport_ = *transports_.front();
  ThreadPool pool_{1};
  const std::vector<float> hidden_ = std::vector<float>(3 * 16, 1.0F);
  const std::vector<SlotId> slots_ = {0, 2, 2, -1, 0, 2};
  const std::vector<float> weights_ = std::vector<float>(6, 1.0F);
  std::vector<float> out_ = std::vector<float>(3 * 16);
};

class CpuPlaneOfOneRank : public OneRank {};

TEST_F(CpuPlaneOfOneRank, RefusesByNameWhatIsNotOnTheHost) {
  Dispatcher dispatcher(small_options(), transport_, pool_);
  const std::string device = config_error_of(
      [&] { dispatcher.dispatch_send(tokens({.kind = MemoryKind::device, .device = 3})); });
  EXPECT_NE(device.find("dispatch_send"), std::string::npos) << device;
  EXPECT_NE(device.find("device 3"), std::string::npos) << device;
}

TEST_F(CpuPlaneOfOneRank, RefusesRowsThatBecomeValidOnAQueue) {
  const CpuPlane plane(pool_);
  int queue = 0;
  const std::string error = config_error_of(
      [&] { plane.check({.kind = MemoryKind::host_pinned, .queue = &queue}, "combine_recv"); });
  EXPECT_NE(error.find("combine_recv"), std::string::npos) << error;
  EXPECT_NE(error.find("host_pinned"), std::string::npos) << error;
}

TEST_F(CpuPlaneOfOneRank, TakesPinnedHostMemory) {
  Dispatcher dispatcher(small_options(), transport_, pool_);
  dispatcher.dispatch_send(tokens({.kind = MemoryKind::host_pinned}));
  EXPECT_EQ(dispatcher.dispatch_recv().place, MemoryPlace{});
}

class QueuedPlaneOfOneRank : public OneRank {
 protected:
  QueuedPlane plane_{pool_, QueuedPlane::Start::at_synchronise};
};

TEST_F(QueuedPlaneOfOneRank, RunsNothingBeforeTheHostSynchronises) {
  Dispatcher dispatcher(small_options(), transport_, plane_);
  bool computed = false;
  dispatcher.dispatch_send(tokens(plane_.place()));
  dispatcher.dispatch_recv([&](const ExpertRows& rows) {
    EXPECT_EQ(rows.place, plane_.place());
    plane_.run(rows, [&](const ExpertRows& queued) {
      computed = true;
      EXPECT_EQ(queued.counts[0], 2);
      EXPECT_EQ(queued.counts[1], 0);
      EXPECT_EQ(queued.counts[2], 3);
      for (std::size_t slot = 0; slot < 3; ++slot) {
        for (int i = 0; i < queued.counts[slot]; ++i) {
          auto* out = reinterpret_cast<float*>(queued.out.row(queued.offsets[slot] + i));
          std::fill_n(out, 16, static_cast<float>(slot + 1));
        }
      }
    });
  });
  dispatcher.combine_send();
  dispatcher.combine_recv(target(plane_.place()));
  EXPECT_FALSE(computed);
  EXPECT_EQ(out_[0], 0.0F);
  dispatcher.synchronise();
  EXPECT_TRUE(computed);
  EXPECT_EQ(out_[0], 4.0F);   // slots 0 and 2
  EXPECT_EQ(out_[16], 3.0F);  // slot 2 alone
  EXPECT_EQ(dispatcher.stats().exchanges, 1U);
}

TEST_F(QueuedPlaneOfOneRank, SaysSoWhenTheHostAsksTooEarly) {
  Dispatcher dispatcher(small_options(), transport_, plane_);
  dispatcher.dispatch_send(tokens(plane_.place()));
  EXPECT_THROW(dispatcher.chunks_of_all(), BrokenContract);
  EXPECT_THROW(dispatcher.lost_tokens(), BrokenContract);
  EXPECT_THROW(dispatcher.stats(), BrokenContract);
  dispatcher.synchronise();
  EXPECT_EQ(dispatcher.stats().exchanges, 1U);
}

using QueuedPlaneDeathTest = QueuedPlaneOfOneRank;

TEST_F(QueuedPlaneDeathTest, FaultsAHostThatReadsCountsTooEarly) {
  Dispatcher dispatcher(small_options(), transport_, plane_);
  dispatcher.dispatch_send(tokens(plane_.place()));
  const ExpertRows rows = dispatcher.dispatch_recv();
  const volatile std::int32_t* count = rows.counts.data();
  EXPECT_DEATH(static_cast<void>(*count), "");
  dispatcher.synchronise();
  EXPECT_EQ(*count, 2);
}

TEST_F(QueuedPlaneOfOneRank, ThrowsWhatAStepThrewWhereItIsWaitedFor) {
  Dispatcher dispatcher(small_options(), transport_, plane_);
  RoutedTokens wrong = tokens(plane_.place());
  const std::vector<SlotId> outside(6, 99);
  wrong.slots = outside;
  dispatcher.dispatch_send(wrong);
  EXPECT_THROW(dispatcher.synchronise(), BrokenContract);
}

TEST_F(QueuedPlaneOfOneRank, RefusesRowsThatAreNotOnItsQueue) {
  Dispatcher dispatcher(small_options(), transport_, plane_);
  EXPECT_THROW(dispatcher.dispatch_send(tokens({})), BrokenContract);
}

// --- Layouts
// --------------------------------------------------------------------------------------

TEST(FormatFor, PadsOnlyWhereReservedMemoryIsFree) {
  ExchangeOptions options = exchange_options(MoeA2ABackend::pplx);
  ASSERT_EQ(options.format, DispatchFormat::padded);
  EXPECT_EQ(format_for(options, false), DispatchFormat::padded);
  EXPECT_EQ(format_for(options, true), DispatchFormat::ragged);
  options.fixed_format = true;
  EXPECT_EQ(format_for(options, true), DispatchFormat::padded);
  options = exchange_options(MoeA2ABackend::ascend_fuseep);
  EXPECT_EQ(format_for(options, true), DispatchFormat::row_pointers);
}

TEST_F(QueuedPlaneOfOneRank, GetsRaggedRowsOnADevice) {
  const Dispatcher device(small_options(), transport_, plane_);
  EXPECT_EQ(device.options().exchange.format, DispatchFormat::ragged);
  const Dispatcher host(small_options(), transport_, pool_);
  EXPECT_EQ(host.options().exchange.format, DispatchFormat::padded);
}

TEST(Dispatcher, ReservesNoPaddingOnATransportThatPins) {
  const DispatcherOptions options{.slots_per_rank = 8, .hidden = 64, .topk = 2, .max_tokens = 32};
  on_ranks({.ranks = 2, .faults = Faults{.network = true, .pins_memory = true}},
           [&](Transport& transport) {
             ThreadPool pool(1);
             ASSERT_TRUE(transport.capabilities().pins_memory);
             const Dispatcher dispatcher(options, transport, pool);
             EXPECT_EQ(dispatcher.options().exchange.format, DispatchFormat::ragged);
             testing::run_exchanges({.dispatcher = options, .count = 6}, transport, pool);
           });
  const auto bytes = [&](bool pins) {
    return Dispatcher::mem_size(options, 2, {.pins_memory = pins});
  };
  EXPECT_LT(bytes(true), bytes(false) * 2 / 3);
}

}  // namespace
}  // namespace ferry
