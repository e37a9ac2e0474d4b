// The options about expert load and its balance, named as SGLang names them.
#pragma once

#include <optional>
#include <string>

#include "ferry/balance/expert_placement.h"
#include "ferry/engine/balancer.h"
#include "ferry/model/config.h"

namespace ferry {

class Command;

/// What rank 0 tells about the load at the end of a run.
struct LoadReportOptions {
  std::string file;  ///< dump of the recorded steps; empty = none
  bool metrics = false;
};

/// Where experts lie at the start.
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

/// Part of CommonOptions; must live until parsing is over.
class BalanceFlags {
 public:
  void add_to(Command& app);

  /// Throws ConfigError that names the option, what is allowed and what was found.
  BalanceOptions resolve() const;

  LoadReportOptions report() const { return {record_file_, metrics_}; }

  ExpertLocationOptions location() const { return {init_location_, redundant_}; }

  /// Throws ConfigError for an unknown name.
  ReplicaRule replica_rule() const { return parse_replica_rule(replica_rule_); }

 private:
  void add_rebalancing_to(Command& app);

  std::string record_file_;
  int window_ = 1000;
  std::string phase_ = "all";
  bool metrics_ = false;
  std::string init_location_ = "trivial";
  std::optional<int> redundant_;
  RebalanceOptions rebalance_;
  std::string policy_ = "greedy";
  std::string replica_rule_ = "hash";
  std::size_t step_bytes_ = 0;
};

}  // namespace ferry
