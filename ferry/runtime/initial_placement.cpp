#include "ferry/runtime/initial_placement.h"

#include <nlohmann/json.hpp>

#include "ferry/checkpoint/json_file.h"
#include "ferry/core/error.h"
#include "ferry/core/types.h"
#include "ferry/runtime/eplb_dump.h"

namespace ferry {

namespace {

ExpertPlacement placement_from(const std::string& file,
                               const ExpertLocationOptions& options,
                               const ModelConfig& config,
                               int ranks,
                               const InitialPlan& how) {
  const bool weighted = how.replica_rule == ReplicaRule::weighted;
  const nlohmann::json json = parse_json(read_text_file(file), file);
  if (json.is_object() &&
      (json.contains("physical_to_logical_map") || json.contains("layer_list"))) {
    const auto map = read_placement(file, ranks);
    if (std::ssize(map) != config.all_layers())
      fail<ModelError>(
          "{}: a map of {} layers for a model of {}", file, map.size(), config.all_layers());
    const ExpertPlacement placement(map, config.moe.experts, ranks);
    const auto shares = weighted ? read_shares(file) : std::nullopt;
    return shares ? placement.choosing(*shares) : placement;
  }
  const ExpertLoad load = total_load(read_load_dump(file).steps);
  if (load.layers != config.all_layers() || load.experts != config.moe.experts) {
    fail<ModelError>("{}: load of {} layers and {} experts for a model of {} and {}",
                     file,
                     load.layers,
                     load.experts,
                     config.all_layers(),
                     config.moe.experts);
  }
  const Plan plan = plan_placement(
      load,
      {},
      {.ranks = ranks},
      {.policy = how.policy, .redundant = options.redundant.value_or(0), .weighted = weighted});
  return weighted ? plan.placement.choosing(plan.shares) : plan.placement;
}

}  // namespace

ExpertPlacement initial_placement(const ExpertLocationOptions& options,
                                  const ModelConfig& config,
                                  int ranks,
                                  const InitialPlan& plan) {
  if (config.sparse_layers() == 0) {
    if (options.redundant.value_or(0) != 0 || options.init != "trivial")
      fail<ConfigError>("this model has no experts to place");
    return ExpertPlacement::identity(config.all_layers(), 1, ranks);
  }
  const int experts = config.moe.experts;
  const int redundant =
      settle_redundant(experts, ranks, options.redundant.value_or(0), UnevenSlots::allow_empty);
  if (options.init == "trivial")
    return ExpertPlacement::identity(config.all_layers(), experts, ranks, redundant);
  try {
    ExpertPlacement placement = placement_from(options.init, options, config, ranks, plan);
    const auto wanted = round_up(experts + redundant, ranks);
    if (options.redundant && placement.slots() != wanted) {
      fail<ConfigError>("it has {} slots, but --ep-num-redundant-experts {} on {} ranks makes {}",
                        placement.slots(),
                        redundant,
                        ranks,
                        wanted);
    }
    return placement;
  } catch (const ConfigError& e) {
    fail<ModelError>("--init-expert-location {}: {}", options.init, e.what());
  }
}

}  // namespace ferry
