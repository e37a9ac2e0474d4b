// Rank 0's side of rebalancing: when to plan, what to make of a plan, and how many bytes a step may
// move. Planning runs on a thread of its own, beside the steps.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <future>
#include <optional>
#include <string>
#include <vector>

#include "ferry/balance/expert_mover.h"
#include "ferry/balance/recorder.h"
#include "ferry/planner.h"

namespace ferry {

/// All ranks must have the same.
struct RebalanceOptions {
  bool enabled = false;
  int every = 1000;  ///< steps between two plans
  /// A plan is made earlier, down to a tenth of `every` behind the last one, where the steps' mean
  /// balancedness since then is below this. 0: never.
  double early_below = 0;
  Policy policy = Policy::greedy;
  /// Plans are made for replicas that are chosen by shares, and say them. Where nothing is to be
  /// moved, the shares follow the load all the same. The Balancer takes this from the decoder, and
  /// the nodes from the transport.
  bool weighted = false;
  int nodes = 1;
  /// A plan is not carried out where the window's balancedness is above this..
  double enough = 1.0;
  /// ..or where it would rise by less than this, which does not pay for the moves.
  double least_gain = 0.01;
  /// That a rank sends, and receives, at most in a step. 0: what copies in a twentieth of the
  /// shortest recent step, measured as it goes.
  std::size_t step_bytes = 0;
  bool canary = false;  ///< every block that comes into use is compared with what it should be
};

struct RebalanceStats {
  std::uint64_t plans = 0;           ///< made
  std::uint64_t plans_adopted = 0;   ///< the others were not worth it, or failed
  std::uint64_t shares_renewed = 0;  ///< plans that changed nothing but shares
  std::uint64_t plans_failed = 0;
  std::string last_failure;
  std::uint64_t layers_switched = 0;
  std::uint64_t bytes_moved = 0;  ///< sent by rank 0 to others
  bool moving = false;
  double predicted = 1;  ///< balancedness that the last adopted plan promised for its window
  bool settled = false;  ///< it is in place, so that LoadMetrics::since_mark is what it achieved
  double quiet_step_us = 0;  ///< medians of the last steps without and with moves
  double moving_step_us = 0;
  double quiet_p99_us = 0;
  double moving_p99_us = 0;
  std::uint64_t moving_steps = 0;
};

/// Borrows recorder and mover. Threads: one at a time. A failed plan changes nothing and is
/// counted.
class Rebalancer {
 public:
  Rebalancer(const RebalanceOptions& options, LoadRecorder& recorder, ExpertMover& mover);

  /// The orders of the next step; announces a plan that is ready.
  MoveOrders orders();
  /// Behind a step that took `time`: looks whether it is time to plan.
  void end_step(std::chrono::nanoseconds time);

  RebalanceStats stats() const;

 private:
  /// The last step times, to the microsecond.
  struct Times {
    std::array<float, 1000> ring{};
    std::uint64_t count = 0;

    void add(double us);
    double quantile(double q) const;
  };

  struct Proposal {
    Plan plan;
    std::vector<std::vector<float>> shares_now;  // weighted: for the placement as it is
  };

  std::size_t budget() const;
  bool time_to_plan();
  void start_planning();
  void take_plan();
  void renew_shares(Proposal& proposal);

  RebalanceOptions options_;
  LoadRecorder& recorder_;
  ExpertMover& mover_;
  std::future<Proposal> planning_;
  std::uint64_t planned_from_ = 0;  // switches of the placement that it plans from
  int steps_since_plan_ = 0;
  std::uint64_t switches_at_plan_ = 0;  // when the plan in work was announced
  bool step_moves_ = false;
  Times quiet_, moving_;
  std::array<float, 16> recent_{};  // times of the last steps
  std::uint64_t steps_ = 0;
  RebalanceStats stats_;
};

/// Step bytes that no budget exceeds.
std::size_t largest_budget(const RebalanceOptions& options);

}  // namespace ferry
