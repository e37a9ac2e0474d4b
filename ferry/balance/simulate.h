// Replays a trace against a policy that plans anew every so many steps from what it has seen.
#pragma once

#include <vector>

#include "ferry/balance/trace.h"
#include "ferry/planner.h"

namespace ferry {

struct SimulateOptions {
  Topology topology;
  PlanOptions plan;
  int interval = 50;          // steps between two plans
  int window = 50;            // steps that a plan looks back on
  int share_interval = 0;     // weighted: steps between new shares; 0 = only plans bring them
  bool nearest = false;       // tokens go to the nearest replica, within its part
  double expert_bytes = 0;    // weights of one expert
  double row_us = 1;          // time of one row in an expert
  double bytes_per_us = 1e4;  // what a rank receives of moved weights
};

struct Simulation {
  std::vector<double> balancedness;  // [step], mean over layers
  double mean_balancedness = 0;
  double min_balancedness = 1;
  /// Mean over steps of the part of the rows that leave their rank, their node.
  double off_rank = 0;
  double off_node = 0;
  int plans = 0;
  int transfers = 0;
  double bytes_moved = 0;
  /// Mean over steps of the sum over layers of the most loaded rank's rows * row_us: a model, not a
  /// measurement.
  double step_us = 0;
  /// What moving adds to it per step if nothing hides it: the rank that receives most in each plan.
  double move_us = 0;
};

/// Starts from the identity placement. The first plan is made after `interval` steps. Throws
/// ConfigError as plan_placement does, and for a trace without steps or of unequal ones.
Simulation simulate(const Trace& trace, const SimulateOptions& options);

}  // namespace ferry
