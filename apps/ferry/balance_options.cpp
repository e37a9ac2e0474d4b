#include "apps/ferry/balance_options.h"

#include "apps/ferry/command_line.h"
#include "ferry/core/error.h"

namespace ferry {

namespace {

constexpr int kMaxWindow = 1 << 20;
constexpr std::size_t kMaxStepBytes = std::size_t{1} << 30;

}  // namespace

void BalanceFlags::add_to(Command& app) {
  constexpr const char* kGroup = "Expert load";
  app.add_option("--record-expert-distribution",
                 record_file_,
                 "Write the experts' load in the last steps as JSON, for ferry eplb --stats")
      ->type_name("FILE")
      ->group(kGroup);
  app.add_option(
         "--expert-distribution-recorder-buffer-size", window_, "Steps that are kept of the load")
      ->type_name("N")
      ->capture_default_str()
      ->group(kGroup);
  app.add_option("--expert-distribution-phase",
                 phase_,
                 "Steps that count: all, prefill (with any prompt token), decode (the others)")
      ->type_name("P")
      ->capture_default_str()
      ->group(kGroup);
  app.add_flag("--enable-expert-distribution-metrics",
               metrics_,
               "How even the ranks' load was; on stderr, with --json as eplb")
      ->group(kGroup);
  add_rebalancing_to(app);
}

void BalanceFlags::add_rebalancing_to(Command& app) {
  constexpr const char* kGroup = "Expert placement";
  app.add_option("--init-expert-location",
                 init_location_,
                 "Where experts lie at the start: trivial, or a JSON file with "
                 "physical_to_logical_map or logical_count")
      ->type_name("FILE")
      ->capture_default_str()
      ->group(kGroup);
  app.add_option("--ep-num-redundant-experts",
                 redundant_,
                 "Replicas beyond one of each expert, in every layer [as the file, or 0]")
      ->type_name("N")
      ->group(kGroup);
  app.add_flag("--enable-eplb",
               rebalance_.enabled,
               "Move experts while the model runs, so that ranks finish together; same bits")
      ->group(kGroup);
  app.add_option("--eplb-rebalance-num-iterations", rebalance_.every, "Steps between two plans")
      ->type_name("N")
      ->capture_default_str()
      ->group(kGroup);
  app.add_option("--eplb-algorithm,--eplb-policy", policy_, fmt::format("Of {}", kPolicyNames))
      ->type_name("P")
      ->capture_default_str()
      ->group(kGroup);
  app.add_option(
         "--eplb-replica-choice",
         replica_rule_,
         fmt::format("How tokens choose among replicas: {} (by the plan's shares); same bits",
                     kReplicaRuleNames))
      ->type_name("C")
      ->capture_default_str()
      ->group(kGroup);
  app.add_option(
         "--eplb-early-below",
         rebalance_.early_below,
         "A plan before its time where the steps' balancedness since the last is below this")
      ->type_name("X")
      ->capture_default_str()
      ->group(kGroup);
  app.add_option("--eplb-min-rebalancing-utilization-threshold",
                 rebalance_.enough,
                 "Nothing moves while the balancedness of the recorded load is above this")
      ->type_name("X")
      ->capture_default_str()
      ->group(kGroup);
  app.add_option("--eplb-min-gain",
                 rebalance_.least_gain,
                 "Nothing moves for a plan that raises balancedness by less")
      ->type_name("X")
      ->capture_default_str()
      ->group(kGroup);
  app.add_option("--eplb-bytes-per-step",
                 step_bytes_,
                 "Weights that a rank sends, and receives, at most in a step [what copies in a "
                 "twentieth of it]")
      ->type_name("N")
      ->group(kGroup);
  app.add_flag("--eplb-canary",
               rebalance_.canary,
               "Check every expert that has moved, byte for byte; a wrong one ends the run")
      ->group(kGroup);
}

BalanceOptions BalanceFlags::resolve() const {
  if (window_ < 1 || window_ > kMaxWindow) {
    fail<ConfigError>(
        "--expert-distribution-recorder-buffer-size must be 1 to {}, not {}", kMaxWindow, window_);
  }
  if (rebalance_.every < 1)
    fail<ConfigError>("--eplb-rebalance-num-iterations must be at least 1, not {}",
                      rebalance_.every);
  if (!(rebalance_.enough >= 0 && rebalance_.enough <= 1)) {
    fail<ConfigError>("--eplb-min-rebalancing-utilization-threshold must be 0 to 1, not {}",
                      rebalance_.enough);
  }
  if (!(rebalance_.early_below >= 0 && rebalance_.early_below <= 1))
    fail<ConfigError>("--eplb-early-below must be 0 to 1, not {}", rebalance_.early_below);
  if (!(rebalance_.least_gain >= 0 && rebalance_.least_gain <= 1))
    fail<ConfigError>("--eplb-min-gain must be 0 to 1, not {}", rebalance_.least_gain);
  if (step_bytes_ > kMaxStepBytes) {
    fail<ConfigError>(
        "--eplb-bytes-per-step must be 1 to {}, or 0, not {}", kMaxStepBytes, step_bytes_);
  }
  RebalanceOptions rebalance = rebalance_;
  rebalance.policy = parse_policy(policy_);
  rebalance.step_bytes = step_bytes_;
  return {.record = metrics_ || !record_file_.empty(),
          .phase = parse_load_phase(phase_),
          .window = window_,
          .rebalance = rebalance};
}

}  // namespace ferry
