// Where experts lie when a model starts.
#pragma once

#include <optional>
#include <string>

#include "ferry/expert_placement.h"
#include "ferry/model/config.h"
#include "ferry/placement.h"
#include "ferry/planner.h"

namespace ferry {

struct ExpertLocationOptions {
  std::string init = "trivial";  ///< or a file, see initial_placement()
  std::optional<int> redundant;  ///< none: as the file says, else 0
};

/// How a placement is planned from a load.
struct InitialPlan {
  Policy policy = Policy::greedy;
  ReplicaRule replica_rule = ReplicaRule::hash;
};

/// A placement for each layer of the model (those of dense layers mean nothing). `init` is trivial:
/// experts in order, replicas of the first ones behind them; or a JSON file that read_placement()
/// knows, taken as it is, or with SGLang's logical_count, which is planned from. Where replicas are
/// chosen by shares, it has those of the file or of the plan. Throws ConfigError for impossible
/// numbers, ModelError for a file that does not fit.
ExpertPlacement initial_placement(const ExpertLocationOptions& options,
                                  const ModelConfig& config,
                                  int ranks,
                                  const InitialPlan& plan);

}  // namespace ferry
