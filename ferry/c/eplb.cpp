// Plans of where experts should lie.
#include "ferry/c/eplb.h"

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "ferry/c/arguments.h"
#include "ferry/c/status.h"
#include "ferry/planner.h"

struct ferry_plan {  // NOLINT(readability-identifier-naming): as C has it
  ferry::Plan plan;
};

namespace ferry::c {

FERRY_C_STRUCT(ferry_plan_options, FERRY_PLAN_OPTIONS);
FERRY_C_STRUCT(ferry_plan_info, FERRY_PLAN_INFO);

namespace {

void check_sizes(const ferry_plan_options& o) {
  constexpr int kMost = 1 << 20;
  const std::pair<const char*, int> sizes[] = {{"steps", o.steps},
                                               {"layers", o.layers},
                                               {"experts", o.experts},
                                               {"ranks", o.ranks},
                                               {"nodes", o.nodes},
                                               {"groups", o.groups}};
  for (const auto& [name, size] : sizes)
    if (size < 1 || size > kMost)
      fail<ConfigError>("{} is {}; 1 to {} are possible", name, size, kMost);
  if (o.max_transfers < 0 || o.max_transfers_per_pair < 0 || !(o.tolerance >= 0))
    fail<ConfigError>("at most {} transfers, {} of a pair, tolerance {}: at least 0 is possible",
                      o.max_transfers,
                      o.max_transfers_per_pair,
                      o.tolerance);
}

std::vector<ExpertLoad> window_of(const ferry_plan_options& o) {
  const std::int64_t step = std::int64_t{o.layers} * o.experts;
  const auto load = array(o.load, step * o.steps, "load");
  for (const double count : load)
    if (!(count >= 0 && count <= std::numeric_limits<double>::max()))
      fail<ConfigError>("a load of {}; finite numbers from 0 on are possible", count);
  std::vector<ExpertLoad> window;
  for (int s = 0; s < o.steps; ++s) {
    ExpertLoad& one = window.emplace_back(o.layers, o.experts);
    std::copy_n(load.begin() + s * step, step, one.counts.begin());
  }
  return window;
}

std::optional<ExpertPlacement> current_of(const ferry_plan_options& o) {
  if (o.current == nullptr) return std::nullopt;
  if (o.current_slots < 1) fail<ConfigError>("current_slots is {}", o.current_slots);
  std::vector<std::vector<ExpertId>> maps;
  for (int l = 0; l < o.layers; ++l) {
    const std::int32_t* map = o.current + std::int64_t{l} * o.current_slots;
    maps.emplace_back(map, map + o.current_slots);
  }
  return ExpertPlacement(maps, o.experts, o.ranks);
}

Plan make_plan(const ferry_plan_options& o) {
  check_sizes(o);
  const Topology topology{.ranks = o.ranks, .nodes = o.nodes, .groups = o.groups};
  return plan_placement(window_of(o),
                        current_of(o),
                        topology,
                        {.policy = parse_policy(text_or(o.policy, "greedy")),
                         .redundant = o.redundant,
                         .uneven = enumerator(o.uneven, UnevenSlots::adjust, "uneven"),
                         .weighted = o.weighted != 0,
                         .max_transfers = o.max_transfers,
                         .max_transfers_per_pair = o.max_transfers_per_pair,
                         .tolerance = o.tolerance});
}

const Plan& of(const ferry_plan* handle) { return need(handle, "the plan")->plan; }

}  // namespace

}  // namespace ferry::c

using namespace ferry::c;  // NOLINT(google-build-using-namespace)

ferry_status ferry_plan_create(const ferry_plan_options* options, ferry_plan** out) {
  return guarded([&] {
    *need(out, "out") = nullptr;
    *out = new ferry_plan{make_plan(read_struct(options))};
  });
}

ferry_status ferry_plan_destroy(ferry_plan* plan) {
  return guarded([&] { delete plan; });
}

ferry_status ferry_plan_info_get(const ferry_plan* plan, ferry_plan_info* info) {
  return guarded([&] {
    const ferry::Plan& p = of(plan);
    check_head(info);
    ferry_plan_info filled = FERRY_PLAN_INFO_INIT;
    filled.layers = p.placement.layers();
    filled.slots = p.placement.slots();
    filled.slots_per_rank = p.placement.slots_per_rank();
    filled.transfers = p.transfers;
    filled.transfers_bound = p.transfers_bound;
    filled.duplicates = p.duplicates;
    filled.balance_before = p.balance.before;
    filled.balance_after = p.balance.after;
    filled.balance_bound = p.balance.bound;
    fill_struct(info, filled);
  });
}

ferry_status ferry_plan_layer(const ferry_plan* plan,
                              int32_t layer,
                              const int32_t** experts,
                              const int32_t** sources,
                              const float** shares) {
  return guarded([&] {
    const ferry::Plan& p = of(plan);
    if (layer < 0 || layer >= p.placement.layers())
      ferry::fail<ferry::ConfigError>(
          "layer {}; 0 to {} are possible", layer, p.placement.layers() - 1);
    const auto l = static_cast<std::size_t>(layer);
    if (experts != nullptr) *experts = p.placement.physical_to_logical(layer).data();
    if (sources != nullptr) *sources = p.moves[l].source.data();
    if (shares != nullptr) *shares = p.shares.empty() ? nullptr : p.shares[l].data();
  });
}
