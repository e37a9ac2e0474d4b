// The options about expert load and its balance, named as SGLang names them.
#pragma once

#include <optional>
#include <string>

#include "ferry/engine/balancer.h"
#include "ferry/runtime/initial_placement.h"

namespace ferry {

class Command;

/// What rank 0 tells about the load at the end of a run.
struct LoadReportOptions {
  std::string file;  ///< dump of the recorded steps; empty = none
  bool metrics = false;
};

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
