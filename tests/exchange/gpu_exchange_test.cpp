// Exchanges on GPUs, run by the emulator: ranks x wires x layouts x routings x row weights x groups
// x shapes, byte for byte what the CPU gives; and what goes wrong.
#include "ferry/exchange/gpu/gpu_exchange.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "ferry/core/error.h"
#include "ferry/exchange/gpu/cuda.h"
#include "gpu_harness.h"
#include "support/emulated_queue.h"
#include "support/long_tests.h"
#include "support/pairwise.h"
#include "support/ranks.h"

namespace ferry {
namespace {

using testing::Combination;
using testing::EmulatedQueue;
using testing::GpuEmulator;
using testing::GpuRuns;
using testing::Routing;
using testing::run_gpu_exchanges;

enum Axis {
  axis_ranks,
  axis_dispatch_wire,
  axis_expert_type,
  axis_combine_wire,
  axis_layout,
  axis_routing,
  axis_row_weights,
  axis_hidden,
  axis_tp,
  axis_blocks,
  axis_runs,
  axis_masks,
  axis_sums,
  axis_result_columns,
  axis_partition
};

constexpr int kRankCounts[] = {1, 2, 3, 4};
constexpr DispatchFormat kLayouts[] = {
    DispatchFormat::padded, DispatchFormat::ragged, DispatchFormat::row_pointers};
// More than a block of scales; rows that no wide access is aligned to; several pieces.
constexpr int kHidden[] = {168, 131, 1040};
constexpr int kTps[] = {1, 2, 4};
constexpr int kBlocks[] = {1, 3};
constexpr GpuRuns kRuns[] = {GpuRuns::calls, GpuRuns::graphs, GpuRuns::either};

std::vector<int> sizes() {
  const auto wires = static_cast<int>(wire_types().size());
  return {static_cast<int>(std::size(kRankCounts)),
          wires,
          2,  // experts take rows as delivered, or bf16
          wires,
          static_cast<int>(std::size(kLayouts)),
          4,
          2,
          static_cast<int>(std::size(kHidden)),
          static_cast<int>(std::size(kTps)),
          static_cast<int>(std::size(kBlocks)),
          static_cast<int>(std::size(kRuns)),
          2,
          2,
          2,
          2};
}

int ranks_of(const Combination& c) { return kRankCounts[c[axis_ranks]]; }

DispatcherOptions options_of(const Combination& c) {
  const auto at = [&](Axis axis) { return static_cast<std::size_t>(c[axis]); };
  DispatcherOptions o{.exchange = exchange_options(MoeA2ABackend::pplx),
                      .slots_per_rank = 3,
                      .hidden = kHidden[at(axis_hidden)],
                      .topk = 4,
                      .max_tokens = 9,
                      .tp = kTps[at(axis_tp)],
                      .row_alignment = c[axis_routing] % 2 == 0 ? 16 : 1,
                      .dispatch_wire = wire_types()[at(axis_dispatch_wire)],
                      .combine_wire = wire_types()[at(axis_combine_wire)]};
  o.exchange.format = kLayouts[at(axis_layout)];
  o.exchange.fixed_format = true;
  if (c[axis_masks] == 1) o.exchange.on_dead_rank = ExchangeOptions::OnDeadRank::mask;
  o.exchange.hidden_partition = c[axis_partition] == 1;
  if (c[axis_result_columns] == 1) o.result_columns = o.hidden / 3;
  if (c[axis_sums] == 1) o.exchange.reduce_at = ExchangeOptions::ReduceAt::rank_then_home;
  o.row_weights = c[axis_row_weights] == 1;
  o.expert_type = c[axis_expert_type] == 0 ? o.dispatch_wire : WireType::bf16;
  return o;
}

bool valid(const Combination& c) {
  try {
    check_gpu_options(options_of(c), ranks_of(c));
    return true;
  } catch (const ConfigError&) {
    return false;
  }
}

std::string name_of(const Combination& c) {
  const DispatcherOptions o = options_of(c);
  return fmt::format(
      "{} ranks, tp {}, {} to {}, back {}, {}, routing {}, row weights {}, hidden {}, {} blocks, "
      "runs {}, masks {}, sums by rank {}, results {}, partition {}",
      ranks_of(c),
      o.tp,
      wire_type_name(o.dispatch_wire),
      wire_type_name(o.expert_type),
      wire_type_name(o.combine_wire),
      format_name(o.exchange.format),
      c[axis_routing],
      o.row_weights,
      o.hidden,
      kBlocks[c[axis_blocks]],
      c[axis_runs],
      c[axis_masks] == 1,
      c[axis_sums] == 1,
      o.columns_of_results(),
      o.exchange.hidden_partition);
}

DispatcherOptions small_options() {
  DispatcherOptions o{.exchange = exchange_options(MoeA2ABackend::pplx),
                      .slots_per_rank = 3,
                      .hidden = 16,
                      .topk = 2,
                      .max_tokens = 4};
  return o;
}

class GpuExchangeOf : public ::testing::TestWithParam<int> {};

TEST_P(GpuExchangeOf, EveryPairDeliversEveryRowAndSumsInOrder) {
  std::uint64_t seed = 1;
  for (const Combination& c : testing::pairwise_combinations(sizes(), valid)) {
    if (c[axis_ranks] != GetParam()) continue;
    // A thread sanitizer takes a hundred times as long over fibres; the emulator finds races
    // itself.
    if (++seed % 8 != 0 && slow_run()) continue;
    SCOPED_TRACE(name_of(c));
    GpuEmulator device({.seed = seed});
    on_ranks({.ranks = ranks_of(c)}, [&](Transport& transport) {
      EmulatedQueue queue(device, kBlocks[c[axis_blocks]]);
      run_gpu_exchanges({.dispatcher = options_of(c),
                         .routing = static_cast<Routing>(c[axis_routing]),
                         .seed = 17,
                         .count = slow_run() ? 1 : 4,
                         .runs = kRuns[c[axis_runs]]},
                        transport,
                        queue);
    });
    if (HasFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(Ranks,
                         GpuExchangeOf,
                         ::testing::Range(0, static_cast<int>(std::size(kRankCounts))),
                         [](const auto& p) { return std::to_string(kRankCounts[p.param]); });

// --- Many exchanges, of one lane, in orders that the emulator draws
// --------------------------------

TEST(GpuExchange, DeliversExchangeAfterExchange) {
  const int count = long_tests() ? 400 : slow_run() ? 2 : 25;
  for (const std::uint64_t seed : {5U, 6U}) {
    GpuEmulator device({.seed = seed});
    on_ranks({.ranks = 3}, [&](Transport& transport) {
      EmulatedQueue queue(device, 2);
      run_gpu_exchanges(
          {.dispatcher = small_options(), .seed = seed, .count = count}, transport, queue);
    });
  }
}

// --- What goes wrong
// -------------------------------------------------------------------------------

/// One rank's exchange of two tokens, with the ids that it is told.
class SmallExchange {
 public:
  SmallExchange(const DispatcherOptions& options, Transport& transport, GpuQueue& queue)
      : exchange_(options, transport, queue), slots_(queue.allocate(4 * sizeof(SlotId))) {
    num_tokens_ = queue.allocate(sizeof(int));
    rows_ = queue.allocate(2 * 16 * sizeof(float));
    weights_ = queue.allocate(4 * sizeof(float));
    *num_tokens_->as<int>() = 2;
  }

  void send(const std::vector<SlotId>& ids) {
    std::ranges::copy(ids, slots_->as<SlotId>());
    exchange_.dispatch_send({.rows = rows(),
                             .count = 2,
                             .tokens = num_tokens_->as<int>(),
                             .slots = slots_->as<SlotId>()});
  }

  void finish() {
    exchange_.dispatch_recv();
    exchange_.combine_send();
    exchange_.combine_recv({.weights = weights_->as<float>(), .rows = {rows_->data(), kStride}});
  }

  GpuExchange& exchange() { return exchange_; }

  /// What the device is told, whether it can be or not.
  void say_tokens(int tokens) const { *num_tokens_->as<int>() = tokens; }

 private:
  static constexpr std::ptrdiff_t kStride = 16 * sizeof(float);

  RowsView rows() const { return {rows_->data(), kStride}; }

  GpuExchange exchange_;
  std::unique_ptr<GpuMemory> slots_, num_tokens_, rows_, weights_;
};

TEST(GpuExchange, NamesTheRankThatDoesNotCome) {
  GpuEmulator device({.seed = 1});
  DispatcherOptions options = small_options();
  options.timeout = std::chrono::milliseconds(300);
  on_ranks({.ranks = 3}, [&](Transport& transport) {
    EmulatedQueue queue(device, 1);
    SmallExchange small(options, transport, queue);
    if (transport.rank() != 1) {
      small.send({0, 1, 2, 3});
      small.finish();
      testing::expect_nothing_from(1, "dispatch_recv", small.exchange());
    }
    ASSERT_EQ(transport.barrier(kNoDeadline), WaitResult::reached);
  });
}

TEST(GpuExchange, NamesAnIdThatIsNoSlots) {
  GpuEmulator device({.seed = 1});
  on_ranks({.ranks = 1}, [&](Transport& transport) {
    EmulatedQueue queue(device, 2);
    SmallExchange small(small_options(), transport, queue);
    small.send({0, 1, 3, 2});
    small.finish();
    try {
      small.exchange().synchronise();
      ADD_FAILURE() << "no error";
    } catch (const BrokenContract& e) {
      EXPECT_NE(std::string(e.what()).find("token 1: choice 0 is slot 3, outside -1..2"),
                std::string::npos)
          << e.what();
    }
  });
}

// Kernels of this exchange and of later ones find no tokens, and touch no row behind the arrays.
TEST(GpuExchange, TellsANumberOfTokensThatCannotBe) {
  for (const int tokens : {3, -1, 1 << 30}) {
    GpuEmulator device({.seed = 1});
    on_ranks({.ranks = 1}, [&](Transport& transport) {
      EmulatedQueue queue(device, 2);
      SmallExchange small(small_options(), transport, queue);
      small.say_tokens(tokens);
      for (int n = 0; n < 2; ++n) {
        small.send({0, 1, 1, 2});
        small.finish();
      }
      try {
        small.exchange().synchronise();
        ADD_FAILURE() << "no error";
      } catch (const BrokenContract& e) {
        EXPECT_NE(
            std::string(e.what()).find(fmt::format("says {} tokens; 0 to 2 are possible", tokens)),
            std::string::npos)
            << e.what();
      }
    });
  }
}

TEST(GpuExchange, RefusesPhasesOutOfTurn) {
  GpuEmulator device;
  on_ranks({.ranks = 1}, [&](Transport& transport) {
    EmulatedQueue queue(device, 1);
    SmallExchange small(small_options(), transport, queue);
    EXPECT_THROW(small.exchange().combine_send(), BrokenContract);
    small.send({0, 1, 2, -1});
    EXPECT_THROW(small.send({0, 1, 2, -1}), BrokenContract);
    small.finish();
    small.exchange().synchronise();
  });
}

TEST(GpuExchange, RefusesByNameWhatItCannotDo) {
  const auto error_of = [](const DispatcherOptions& options) -> std::string {
    try {
      check_gpu_options(options, 2);
    } catch (const ConfigError& e) {
      return e.what();
    }
    return "no error";
  };
  DispatcherOptions options = small_options();
  EXPECT_EQ(error_of(options), "no error");
  options.exchange = exchange_options(MoeA2ABackend::ascend_fuseep);
  EXPECT_NE(error_of(options), "no error");
  options = small_options();
  options.topk = 33;
  options.slots_per_rank = 40;
  EXPECT_NE(error_of(options).find("32 experts"), std::string::npos) << error_of(options);
}

// --- On a device
// -----------------------------------------------------------------------------------

/// Skipped where there is none; tools/gpu_check.sh runs it.
class GpuDevice : public ::testing::TestWithParam<int> {};

TEST_P(GpuDevice, DeliversEveryRowAndSumsInOrder) {
  const CudaDevices devices = find_cuda_devices();
  if (devices.names.empty()) GTEST_SKIP() << devices.why_none;
  for (Combination c : testing::pairwise_combinations(sizes(), valid)) {
    SCOPED_TRACE(name_of(c));
    on_ranks({.ranks = GetParam()}, [&](Transport& transport) {
      const std::unique_ptr<GpuQueue> queue = make_cuda_queue(0, transport.size());
      run_gpu_exchanges({.dispatcher = options_of(c),
                         .routing = static_cast<Routing>(c[axis_routing]),
                         .seed = 23,
                         .count = 8,
                         .runs = kRuns[c[axis_runs]]},
                        transport,
                        *queue);
    });
    if (HasFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(Ranks, GpuDevice, ::testing::Values(1, 2, 4, 8));

}  // namespace
}  // namespace ferry
