// Exchanges on GPUs of ranks on several hosts: emulated kernels, real transports. Every pair of
// ranks, hosts, wires, layouts, routings, row weights, groups and shapes, byte for byte what the
// CPU gives; and over networks between processes, each with a device of its own.
#include "ferry/exchange/gpu/gpu_network.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "ferry/core/error.h"
#include "ferry/join.h"
#include "ferry/store.h"
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
  axis_hosts,
  axis_dispatch_wire,
  axis_expert_type,
  axis_combine_wire,
  axis_layout,
  axis_routing,
  axis_row_weights,
  axis_hidden,
  axis_tp,
  axis_runs,
  axis_result_columns,
};

constexpr int kRankCounts[] = {2, 3, 4, 6};
constexpr int kRanksPerHost[] = {1, 2, 3};
constexpr DispatchFormat kLayouts[] = {
    DispatchFormat::padded, DispatchFormat::ragged, DispatchFormat::row_pointers};
// Several runs in a letter, and one; rows that no wide access is aligned to.
constexpr int kHidden[] = {24, 131, 520};
constexpr int kTps[] = {1, 2};
constexpr GpuRuns kRuns[] = {GpuRuns::calls, GpuRuns::graphs, GpuRuns::either};

std::vector<int> sizes() {
  const auto wires = static_cast<int>(wire_types().size());
  return {static_cast<int>(std::size(kRankCounts)),
          static_cast<int>(std::size(kRanksPerHost)),
          wires,
          2,  // experts take rows as delivered, or bf16
          wires,
          static_cast<int>(std::size(kLayouts)),
          4,
          2,
          static_cast<int>(std::size(kHidden)),
          static_cast<int>(std::size(kTps)),
          static_cast<int>(std::size(kRuns)),
          2};
}

bool fabric_is_here() {
  const auto all = list_transports();
  return std::ranges::any_of(
      all, [](const TransportInfo& one) { return one.name == "fabric" && one.available; });
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
  if (c[axis_result_columns] == 1) o.result_columns = o.hidden / 3;
  o.row_weights = c[axis_row_weights] == 1;
  o.expert_type = c[axis_expert_type] == 0 ? o.dispatch_wire : WireType::bf16;
  return o;
}

bool valid(const Combination& c) {
  if (kRanksPerHost[c[axis_hosts]] >= ranks_of(c)) return false;
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
      "{} ranks, {} a host, tp {}, {} to {}, back {}, {}, routing {}, row weights {}, hidden {}, "
      "runs {}, results {}",
      ranks_of(c),
      kRanksPerHost[c[axis_hosts]],
      o.tp,
      wire_type_name(o.dispatch_wire),
      wire_type_name(o.expert_type),
      wire_type_name(o.combine_wire),
      format_name(o.exchange.format),
      c[axis_routing],
      o.row_weights,
      o.hidden,
      c[axis_runs],
      o.columns_of_results());
}

class GpuNetworkOf : public ::testing::TestWithParam<int> {};

TEST_P(GpuNetworkOf, EveryPairDeliversEveryRowAndSumsInOrder) {
  std::uint64_t seed = 1;
  for (const Combination& c : testing::pairwise_combinations(sizes(), valid)) {
    if (c[axis_ranks] != GetParam()) continue;
    if (++seed % 8 != 0 && slow_run()) continue;
    SCOPED_TRACE(name_of(c));
    GpuEmulator device({.seed = seed});
    on_ranks({.ranks = ranks_of(c)}, [&](Transport& transport) {
      EmulatedQueue queue(device, 2);
      run_gpu_exchanges({.dispatcher = options_of(c),
                         .routing = static_cast<Routing>(c[axis_routing]),
                         .seed = 41,
                         .count = slow_run() ? 1 : 3,
                         .runs = kRuns[c[axis_runs]],
                         .ranks_per_host = kRanksPerHost[c[axis_hosts]]},
                        transport,
                        queue);
    });
    if (HasFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(Ranks,
                         GpuNetworkOf,
                         ::testing::Range(0, static_cast<int>(std::size(kRankCounts))),
                         [](const auto& p) { return std::to_string(kRankCounts[p.param]); });

// --- Over real networks
// ----------------------------------------------------------------------------

DispatcherOptions some_options(int number) {
  DispatcherOptions o{.exchange = exchange_options(MoeA2ABackend::pplx),
                      .slots_per_rank = 3,
                      .hidden = 200,
                      .topk = 3,
                      .max_tokens = 12,
                      .tp = number % 2 + 1,
                      .dispatch_wire = number < 2 ? WireType::f32 : WireType::fp8,
                      .expert_type = number < 2 ? WireType::f32 : WireType::fp8,
                      .combine_wire = number < 2 ? WireType::fp8 : WireType::bf16,
                      .timeout = std::chrono::seconds(60)};
  o.exchange.format = kLayouts[number % 3];
  o.exchange.fixed_format = true;
  o.row_weights = number % 2 == 0;
  return o;
}

constexpr int kSomeOptions = 4;

/// All but mpi, which is refused.
std::vector<RankKind> kinds() {
  std::vector<RankKind> all = main_rank_kinds();
  std::erase_if(all, [](const RankKind& kind) { return kind.transport == "mpi"; });
  return all;
}

class GpuNetworkOver : public ::testing::TestWithParam<RankKind> {};

TEST_P(GpuNetworkOver, ProcessesWithADeviceEachDeliverEveryRow) {
  GpuEmulator shared({.seed = 7});
  on_ranks({.kind = GetParam(), .ranks = 4}, [&](Transport& transport) {
    GpuEmulator own({.seed = 7});
    EmulatedQueue queue(GetParam().processes() ? own : shared, 2);
    for (int number = 0; number < kSomeOptions; ++number) {
      if (slow_run() && number != 1) continue;
      SCOPED_TRACE(number);
      run_gpu_exchanges({.dispatcher = some_options(number),
                         .seed = 51,
                         .count = slow_run() ? 1 : 3,
                         .runs = GpuRuns::either,
                         .ranks_per_host = 1,
                         .in_place = number == 1},
                        transport,
                        queue);
    }
  });
}

INSTANTIATE_TEST_SUITE_P(All, GpuNetworkOver, ::testing::ValuesIn(kinds()), [](const auto& p) {
  return p.param.label();
});

/// Ranks as threads that share a device, of a network on which two share a host.
TEST(GpuNetwork, RanksOfAHostReadWhatOthersAreSent) {
  if (!fabric_is_here()) GTEST_SKIP() << "no libfabric";
  LocalStore store;
  GpuEmulator device({.seed = 9});
  std::vector<std::thread> ranks;
  for (Rank rank = 0; rank < 4; ++rank) {
    ranks.emplace_back([&, rank] {
      try {
        const auto transport = join({.transport = "fabric",
                                     .rank = rank,
                                     .size = 4,
                                     .ranks_per_host = 2,
                                     .fabric_provider = "tcp"},
                                    store);
        EmulatedQueue queue(device, 2);
        run_gpu_exchanges(
            {.dispatcher = some_options(1), .seed = 53, .count = 3, .runs = GpuRuns::either},
            *transport,
            queue);
      } catch (const std::exception& e) {
        ADD_FAILURE() << "rank " << rank << ": " << e.what();
      }
    });
  }
  for (std::thread& rank : ranks) rank.join();
}

}  // namespace
}  // namespace ferry
