#include "ferry/engine/rebalancer.h"

#include <sched.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <exception>
#include <numeric>
#include <utility>

#include "ferry/core/error.h"

namespace ferry {

namespace {

constexpr std::size_t kLargestBudget = 8U << 20;
constexpr std::size_t kSmallestBudget = 4U << 10;
constexpr double kShareOfStep = 0.05;
constexpr double kFirstBytesPerSecond = 2e9;  // until copies have been measured
constexpr int kSampledSteps = 64;     // of the window, where a policy looks at more than their sum
constexpr int kEarliestPart = 10;     // of the steps between two plans
constexpr int kPlannerNiceness = 10;  // steps come first where cores are few

/// The calling thread from now on runs where steps leave time, also where they run at a real-time
/// priority, which it has inherited. Of this thread alone, on Linux; failing costs only politeness.
void stand_back() {
  const sched_param none{};
  sched_setscheduler(0, SCHED_OTHER, &none);
  setpriority(PRIO_PROCESS, static_cast<id_t>(gettid()), kPlannerNiceness);
}

std::vector<int> all_layers(int layers) {
  std::vector<int> order(static_cast<std::size_t>(layers));
  std::iota(order.begin(), order.end(), 0);
  return order;
}

int redundant_of(const Placement& placement) {
  const auto map = placement.expert_of_slots();
  const auto filled = std::count_if(map.begin(), map.end(), [](ExpertId e) { return e >= 0; });
  return static_cast<int>(filled) - placement.experts();
}

}  // namespace

std::size_t largest_budget(const RebalanceOptions& options) {
  return options.step_bytes > 0 ? options.step_bytes : kLargestBudget;
}

Rebalancer::Rebalancer(const RebalanceOptions& options, LoadRecorder& recorder, ExpertMover& mover)
    : options_(options), recorder_(recorder), mover_(mover) {
  FERRY_CHECK(options.every >= 1, "a plan every {} steps", options.every);
}

void Rebalancer::Times::add(double us) {
  ring[count % ring.size()] = static_cast<float>(us);
  ++count;
}

double Rebalancer::Times::quantile(double q) const {
  const std::size_t n = std::min<std::size_t>(count, ring.size());
  if (n == 0) return 0;
  std::vector<float> sorted(ring.begin(), ring.begin() + static_cast<std::ptrdiff_t>(n));
  std::sort(sorted.begin(), sorted.end());
  return sorted[static_cast<std::size_t>(q * static_cast<double>(n - 1))];
}

std::size_t Rebalancer::budget() const {
  if (options_.step_bytes > 0) return options_.step_bytes;
  const std::size_t n = std::min<std::size_t>(steps_, recent_.size());
  if (n == 0) return kSmallestBudget;
  const double shortest_s =
      *std::min_element(recent_.begin(), recent_.begin() + static_cast<std::ptrdiff_t>(n)) * 1e-6;
  // Sent and received bytes are copied once each, both in the same step.
  const auto copied = static_cast<double>(mover_.bytes_sent() + mover_.bytes_received());
  const double seconds = std::chrono::duration<double>(mover_.copy_time()).count();
  const double rate = copied > 1e6 ? copied / seconds : kFirstBytesPerSecond;
  return std::clamp(static_cast<std::size_t>(shortest_s * kShareOfStep * rate / 2),
                    kSmallestBudget,
                    kLargestBudget);
}

MoveOrders Rebalancer::orders() {
  // What an interrupted layer had received is dropped, so a plan gets at least a layer done before
  // the next one takes over: moves slower than plans must not stand still.
  const std::uint64_t announced = stats_.plans_adopted + stats_.shares_renewed;
  const bool may_interrupt = !mover_.moving() || mover_.switches() > switches_at_plan_;
  if (may_interrupt && planning_.valid() &&
      planning_.wait_for(std::chrono::seconds(0)) == std::future_status::ready)
    take_plan();
  step_moves_ = mover_.moving() || stats_.plans_adopted + stats_.shares_renewed > announced;
  return mover_.orders(budget());
}

void Rebalancer::end_step(std::chrono::nanoseconds time) {
  const double us = std::chrono::duration<double, std::micro>(time).count();
  (step_moves_ ? moving_ : quiet_).add(us);
  recent_[steps_++ % recent_.size()] = static_cast<float>(us);
  if (stats_.plans_adopted > 0 && !stats_.settled && !mover_.moving()) {
    stats_.settled = true;
    recorder_.mark();
  }
  if (!time_to_plan() || recorder_.window_steps() == 0) return;
  if (planning_.valid()) {
    // A whole interval was not enough: the machine has no core to spare for the planner, which a
    // step now waits for rather than never get a plan.
    planning_.wait();
    return;
  }
  steps_since_plan_ = 0;
  start_planning();
}

bool Rebalancer::time_to_plan() {
  const int steps = ++steps_since_plan_;
  if (steps >= options_.every) return true;
  // One in progress is not waited for before its time.
  return options_.early_below > 0 && steps >= options_.every / kEarliestPart &&
         !planning_.valid() && !mover_.moving() &&
         recorder_.recent_balancedness(static_cast<std::uint64_t>(steps)) < options_.early_below;
}

void Rebalancer::start_planning() {
  const Placement& now = mover_.placements().front();
  std::vector<ExpertLoad> window;
  if (options_.policy == Policy::risk)
    window = recorder_.sampled_steps(kSampledSteps);
  else
    window.push_back(recorder_.window_load());
  planning_ = std::async(std::launch::async,
                         [window = std::move(window),
                          current = ExpertPlacement(mover_.placements()),
                          topology = Topology{.ranks = now.ranks(), .nodes = options_.nodes},
                          plan = PlanOptions{.policy = options_.policy,
                                             .redundant = redundant_of(now),
                                             .weighted = options_.weighted}] {
                           stand_back();
                           Proposal proposal{plan_placement(window, current, topology, plan), {}};
                           if (plan.weighted)
                             proposal.shares_now = level_shares(total_load(window), current);
                           return proposal;
                         });
  planned_from_ = mover_.switches();
}

/// Where the placement is still the one that the plan began with.
void Rebalancer::renew_shares(Proposal& proposal) {
  if (!options_.weighted || mover_.moving() || mover_.switches() != planned_from_) return;
  const ExpertPlacement now = ExpertPlacement(mover_.placements());
  mover_.announce({now.maps(), std::move(proposal.shares_now)}, all_layers(now.layers()));
  switches_at_plan_ = mover_.switches();
  ++stats_.shares_renewed;
}

void Rebalancer::take_plan() {
  ++stats_.plans;
  try {
    Proposal proposal = planning_.get();
    Plan& plan = proposal.plan;
    const Balance& balance = plan.balance;
    if (balance.before > options_.enough || balance.after - balance.before < options_.least_gain)
      return renew_shares(proposal);
    // Those that gain most go first.
    std::vector<int> order = all_layers(plan.placement.layers());
    const auto gain = [&](int l) {
      const Balance& b = plan.layers[static_cast<std::size_t>(l)];
      return b.after - b.before;
    };
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return gain(a) > gain(b); });
    mover_.announce({plan.placement.maps(), std::move(plan.shares)}, order);
    switches_at_plan_ = mover_.switches();
    ++stats_.plans_adopted;
    stats_.predicted = balance.after;
    stats_.settled = false;
  } catch (const ConfigError& e) {  // what runs goes on running
    ++stats_.plans_failed;
    stats_.last_failure = e.what();
  }
}

RebalanceStats Rebalancer::stats() const {
  RebalanceStats stats = stats_;
  stats.layers_switched = mover_.switches();
  stats.bytes_moved = mover_.bytes_sent();
  stats.moving = mover_.moving();
  stats.quiet_step_us = quiet_.quantile(0.5);
  stats.moving_step_us = moving_.quantile(0.5);
  stats.quiet_p99_us = quiet_.quantile(0.99);
  stats.moving_p99_us = moving_.quantile(0.99);
  stats.moving_steps = moving_.count;
  return stats;
}

}  // namespace ferry
