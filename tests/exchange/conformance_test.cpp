// The exchange engine's conformance suite: backends x transports x ranks x wires x layouts x
// routings x groups x row weights x data planes. Every pair of these meets in the short run, and
// once more over two and three hosts with two ranks each; every combination in the long one
// (scripts/test.sh
// --long). Under mpirun the transports are those of mpi (CMakeLists.txt).
#include <gtest/gtest.h>

#include <algorithm>
#include <iterator>
#include <string>
#include <vector>

#include "exchange_harness.h"
#include "ferry/exchange/compatibility.h"
#include "support/long_tests.h"
#include "support/pairwise.h"
#include "support/ranks.h"

namespace ferry {
namespace {

using testing::Combination;
using testing::HarnessOptions;
using testing::Routing;

struct Backend {
  std::string name;
  ExchangeOptions options;
};

std::vector<Backend> backends() {
  std::vector<Backend> all;
  for (const MoeA2ABackend backend : all_backends()) {
    if (backend == MoeA2ABackend::automatic) continue;  // one of the others
    const std::string name(backend_name(backend));
    if (backend != MoeA2ABackend::deepep) {
      all.push_back({name, exchange_options(backend)});
      continue;
    }
    for (const DeepepMode mode : all_deepep_modes()) {
      if (mode == DeepepMode::automatic) continue;
      all.push_back(
          {name + "_" + std::string(deepep_mode_name(mode)), exchange_options(backend, mode)});
    }
  }
  ExchangeOptions columns = exchange_options(MoeA2ABackend::alltoallv);
  columns.hidden_partition = true;
  all.push_back({"hidden_partition", columns});
  return all;
}

enum Axis {
  axis_backend,
  axis_kind,
  axis_ranks,
  axis_dispatch_wire,
  axis_expert_type,
  axis_combine_wire,
  axis_layout,
  axis_routing,
  axis_group,
  axis_row_weights,
  axis_plane
};

const std::vector<Backend>& all_of_backends() {
  static const std::vector<Backend> all = backends();
  return all;
}

const std::vector<RankKind>& kinds() {
  static const std::vector<RankKind> all = main_rank_kinds();
  return all;
}

constexpr int kRankCounts[] = {1, 2, 3, 4, 6, 7};
constexpr DispatchFormat kLayouts[] = {
    DispatchFormat::padded, DispatchFormat::ragged, DispatchFormat::row_pointers};
constexpr std::string_view kPlaneNames[] = {"", "_queued", "_captured"};
constexpr std::string_view kRoutingNames[] = {"random", "masked", "duplicates", "oneExpert"};

std::vector<int> sizes() {
  const auto wires = static_cast<int>(wire_types().size());
  return {static_cast<int>(all_of_backends().size()),
          static_cast<int>(kinds().size()),
          static_cast<int>(std::size(kRankCounts)),
          wires,
          2,  // experts take rows as delivered, or bf16
          wires,
          3,
          4,
          2,  // every rank for itself, or groups of two with the same tokens
          2,  // results are weighted, or rows as well
          3};
}

int ranks_of(const Combination& c) { return kRankCounts[c[axis_ranks]]; }

DispatcherOptions options_of(const Combination& c) {
  const auto at = [&](Axis axis) { return static_cast<std::size_t>(c[axis]); };
  DispatcherOptions o{.exchange = all_of_backends()[at(axis_backend)].options,
                      .slots_per_rank = 3,
                      .hidden = 168,  // more than a block of scales; divides by 1, 2, 3, 4 and 7
                      .topk = 4,
                      .max_tokens = 9,
                      .tp = c[axis_group] + 1,
                      .row_alignment = c[axis_routing] % 2 == 0 ? 16 : 1,
                      .dispatch_wire = wire_types()[at(axis_dispatch_wire)],
                      .combine_wire = wire_types()[at(axis_combine_wire)]};
  o.exchange.format = kLayouts[at(axis_layout)];
  o.exchange.fixed_format = true;
  o.row_weights = c[axis_row_weights] == 1;
  o.expert_type = c[axis_expert_type] == 0 ? o.dispatch_wire : WireType::bf16;
  return o;
}

/// What the dispatcher refuses, with its reasons, is no combination. (mpi cannot lose a rank.)
bool valid(const Combination& c) {
  const bool masks = options_of(c).exchange.on_dead_rank == ExchangeOptions::OnDeadRank::mask;
  if (masks && !kinds()[static_cast<std::size_t>(c[axis_kind])].started_here()) return false;
  try {
    check_options(options_of(c), ranks_of(c));
    return true;
  } catch (const ConfigError&) {
    return false;
  }
}

std::string name_of(const Combination& c) {
  const DispatcherOptions o = options_of(c);
  return fmt::format("{}_{}_{}_{}{}_{}_{}_{}_dp{}{}{}",
                     all_of_backends()[static_cast<std::size_t>(c[axis_backend])].name,
                     kinds()[static_cast<std::size_t>(c[axis_kind])].label(),
                     ranks_of(c),
                     wire_type_name(o.dispatch_wire),
                     c[axis_expert_type] == 0 ? "" : "_to_bf16",
                     wire_type_name(o.combine_wire),
                     format_name(o.exchange.format),
                     kRoutingNames[c[axis_routing]],
                     o.tp,
                     o.row_weights ? "_row_weights" : "",
                     kPlaneNames[c[axis_plane]]);
}

void run(const Combination& c, int count) {
  const HarnessOptions options{.dispatcher = options_of(c),
                               .routing = static_cast<Routing>(c[axis_routing]),
                               .seed = 17,
                               .count = count,
                               .lanes = 2,
                               .plane = static_cast<HarnessOptions::Plane>(c[axis_plane])};
  const RanksOptions on{.kind = kinds()[static_cast<std::size_t>(c[axis_kind])],
                        .ranks = ranks_of(c)};
  on_ranks(on, [&](Transport& transport) {
    ThreadPool pool(ranks_of(c) == 2 ? 2 : 1);
    run_exchanges(options, transport, pool);
  });
}

std::string backend_label(const ::testing::TestParamInfo<std::tuple<int, int>>& info) {
  return all_of_backends()[static_cast<std::size_t>(std::get<0>(info.param))].name + "_" +
         std::to_string(kRankCounts[std::get<1>(info.param)]);
}

/// The combinations of one backend and one number of ranks.
class Conformance : public ::testing::TestWithParam<std::tuple<int, int>> {
 protected:
  void run_those_of(const std::vector<Combination>& all, int count) {
    const int backend = std::get<0>(GetParam());
    const int ranks = std::get<1>(GetParam());
    for (const Combination& c : all) {
      if (c[axis_backend] != backend || c[axis_ranks] != ranks) continue;
      SCOPED_TRACE(name_of(c));
      run(c, count);
      if (HasFailure()) return;
    }
  }
};

TEST_P(Conformance, EveryPairDeliversEveryRowAndSumsInOrder) {
  run_those_of(testing::pairwise_combinations(sizes(), valid), 16);
}

TEST_P(Conformance, EveryCombinationDeliversEveryRowAndSumsInOrder) {
  if (!long_tests()) GTEST_SKIP() << "takes minutes; scripts/test.sh --long runs it";
  const int backend = std::get<0>(GetParam());
  const int ranks = std::get<1>(GetParam());
  run_those_of(testing::all_combinations(
                   sizes(),
                   [&](const Combination& c) {
                     // Routings, row weights and planes take turns: they meet everything in
                     // passing.
                     return c[axis_backend] == backend && c[axis_ranks] == ranks &&
                            c[axis_routing] == (c[axis_dispatch_wire] + c[axis_combine_wire]) % 4 &&
                            c[axis_row_weights] == (c[axis_layout] + c[axis_combine_wire]) % 2 &&
                            c[axis_plane] == (c[axis_kind] + c[axis_dispatch_wire]) % 3 && valid(c);
                   }),
               8);
}

INSTANTIATE_TEST_SUITE_P(
    All,
    Conformance,
    ::testing::Combine(::testing::Range(0, static_cast<int>(all_of_backends().size())),
                       ::testing::Range(0, static_cast<int>(std::size(kRankCounts)))),
    backend_label);

// --- Long rows -----------------------------------------------------------------------------------

class ConformanceOfLongRows : public ::testing::TestWithParam<RankKind> {};

/// Where sums are pushed they leave in blocks of 128 KiB; here that is 8 tokens of 40.
TEST_P(ConformanceOfLongRows, SumsLeaveInBlocks) {
  const HarnessOptions options{
      .dispatcher = {.exchange = exchange_options(MoeA2ABackend::deepep, DeepepMode::normal),
                     .slots_per_rank = 3,
                     .hidden = 8192,
                     .topk = 4,
                     .max_tokens = 40},
      .routing = Routing::masked,
      .seed = 3,
      .count = 3};
  on_ranks({.kind = GetParam(), .ranks = 3}, [&](Transport& transport) {
    ThreadPool pool(2);
    run_exchanges(options, transport, pool);
  });
}

INSTANTIATE_TEST_SUITE_P(Transports,
                         ConformanceOfLongRows,
                         ::testing::ValuesIn(kinds()),
                         [](const auto& p) { return p.param.label(); });

// --- Over cables ---------------------------------------------------------------------------------

/// Levels of axis_ranks: two and three hosts of two.
constexpr int kOverHosts[] = {3, 4};
static_assert(kRankCounts[kOverHosts[0]] == 4 && kRankCounts[kOverHosts[1]] == 6);

class ConformanceOverHosts : public Conformance {};

TEST_P(ConformanceOverHosts, EveryPairDeliversEveryRowAndSumsInOrder) {
  const auto cables = std::find_if(
      kinds().begin(), kinds().end(), [](const RankKind& kind) { return kind.namespaces; });
  if (cables == kinds().end()) GTEST_SKIP() << "no fabric, or no network namespaces";
  const auto over_hosts = [&](Combination c) {
    c[axis_kind] = static_cast<int>(cables - kinds().begin());
    c[axis_ranks] = kOverHosts[c[axis_ranks]];
    return c;
  };
  std::vector<int> levels = sizes();
  levels[axis_kind] = 1;
  levels[axis_ranks] = static_cast<int>(std::size(kOverHosts));
  std::vector<Combination> all = testing::pairwise_combinations(
      levels, [&](const Combination& c) { return valid(over_hosts(c)); });
  std::transform(all.begin(), all.end(), all.begin(), over_hosts);
  run_those_of(all, 4);
}

INSTANTIATE_TEST_SUITE_P(
    All,
    ConformanceOverHosts,
    ::testing::Combine(::testing::Range(0, static_cast<int>(all_of_backends().size())),
                       ::testing::ValuesIn(kOverHosts)),
    backend_label);

}  // namespace
}  // namespace ferry
