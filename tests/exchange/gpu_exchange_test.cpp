// Exchanges on GPUs, run by the emulator: ranks x wires x layouts x routings x row weights x shapes,
// byte for byte what the CPU gives; and what goes wrong.
#include "ferry/exchange/gpu/gpu_exchange.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "ferry/core/error.h"
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
using testing::GpuHarnessOptions;
using testing::Routing;

enum Axis {
  axis_ranks,
  axis_dispatch_wire,
  axis_expert_type,
  axis_combine_wire,
  axis_layout,
  axis_routing,
  axis_row_weights,
  axis_hidden,
  axis_blocks
};

constexpr int kRankCounts[] = {1, 2, 3, 4};
constexpr DispatchFormat kLayouts[] = {DispatchFormat::padded, DispatchFormat::ragged};
// More than a block of scales; rows that no wide access is aligned to; several pieces.
constexpr int kHidden[] = {168, 131, 1040};
constexpr int kBlocks[] = {1, 3};

std::vector<int> sizes() {
  const auto wires = static_cast<int>(wire_types().size());
  return {static_cast<int>(std::size(kRankCounts)),
          wires,
          2,  // experts take rows as delivered, or bf16
          wires,
          2,
          4,
          2,
          static_cast<int>(std::size(kHidden)),
          static_cast<int>(std::size(kBlocks))};
}

int ranks_of(const Combination& c) { return kRankCounts[c[axis_ranks]]; }

DispatcherOptions options_of(const Combination& c) {
  const auto at = [&](Axis axis) { return static_cast<std::size_t>(c[axis]); };
  DispatcherOptions o{.exchange = exchange_options(MoeA2ABackend::pplx),
                      .slots_per_rank = 3,
                      .hidden = kHidden[at(axis_hidden)],
                      .topk = 4,
                      .max_tokens = 9,
                      .row_alignment = c[axis_routing] % 2 == 0 ? 16 : 1,
                      .dispatch_wire = wire_types()[at(axis_dispatch_wire)],
                      .combine_wire = wire_types()[at(axis_combine_wire)]};
  o.exchange.format = kLayouts[at(axis_layout)];
  o.exchange.fixed_format = true;
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
  return fmt::format("{} ranks, {} to {}, back {}, {}, routing {}, row weights {}, hidden {}, {} blocks",
                     ranks_of(c),
                     wire_type_name(o.dispatch_wire),
                     wire_type_name(o.expert_type),
                     wire_type_name(o.combine_wire),
                     format_name(o.exchange.format),
                     c[axis_routing],
                     o.row_weights,
                     o.hidden,
                     kBlocks[c[axis_blocks]]);
}

class GpuExchangeOf : public ::testing::TestWithParam<int> {};

TEST_P(GpuExchangeOf, EveryPairDeliversEveryRowAndSumsInOrder) {
  std::uint64_t seed = 1;
  for (const Combination& c : testing::pairwise_combinations(sizes(), valid)) {
    if (c[axis_ranks] != GetParam()) continue;
    SCOPED_TRACE(name_of(c));
    GpuEmulator device({.seed = ++seed});
    on_ranks({.ranks = ranks_of(c)}, [&](Transport& transport) {
      EmulatedQueue queue(device, kBlocks[c[axis_blocks]]);
      run_gpu_exchanges({.dispatcher = options_of(c),
                         .routing = static_cast<Routing>(c[axis_routing]),
                         .seed = 17,
                         .count = 4},
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

}  // namespace
}  // namespace ferry
