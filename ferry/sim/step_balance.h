// Per-step balance (MoonEP and LLEP have it on devices): in the step that makes an expert hot,
// ranks with time left fetch its weights and compute some of its rows. Here it is planned only, so
// that a forecast can say whether it would pay; no exchange does it. docs/simulate.md has what is
// assumed.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "ferry/placement.h"
#include "ferry/sim/exchange_time.h"
#include "ferry/sim/traffic.h"

namespace ferry {

/// What per-step balance may do.
enum class StepBalance {
  none,
  replicas,  ///< rows go to another replica of their expert: no weights travel
  weights    ///< and to ranks that fetch its weights
};

/// Throws ConfigError that lists the names for an unknown one.
StepBalance parse_step_balance(std::string_view name);
inline constexpr std::string_view kStepBalanceNames = "none, replicas, weights";

/// What a plan reckons with, in microseconds.
struct StepCosts {
  double weights_us = 0;     ///< to read a slot's weights from own memory
  double row_memory_us = 0;  ///< to read and write a row
  double row_us = 0;         ///< of a row's arithmetic
  double near_us = 0;        ///< to read a slot's weights where they lie in a neighbour's memory
  PerLevel<double> far_us = {};       ///< a slot's weights through a port of a further level
  PerLevel<int> ranks_per_port = {};  ///< of it
  PerLevel<double> latency_us = {};   ///< of it
  double hidden_us = 0;  ///< that weights may take to come before anybody waits: dispatch
};

StepCosts step_costs(const Cluster& cluster,
                     const LinkLevels& levels,
                     const ExpertWork& work,
                     double hidden_us);

/// Rows of a slot that another rank computes, with weights of its own or of a neighbour.
struct Fetch {
  SlotId slot = 0;  ///< whose rows they are
  Rank to = 0;
  std::int64_t rows = 0;
  SlotId copy = 0;   ///< whose weights are taken; of `to` itself where it holds a replica
  Rank source = 0;   ///< whose slot that is
  Rank through = 0;  ///< to; or a neighbour that fetches them in this step, too

  bool own() const { return source == to; }
};

/// slot_rows: [R * L] that each slot would compute. From the rank that ends last rows go to the
/// rank that then makes the later of both end soonest, until nothing is won by that. A pure
/// function, as all ranks would have to plan alike.
std::vector<Fetch> plan_fetches(std::span<const std::int64_t> slot_rows,
                                const Placement& placement,
                                const LinkLevels& levels,
                                const StepCosts& costs,
                                StepBalance allowed);

/// Slots as an exchange of fetches has them: behind a rank's own those for what it fetches.
class FetchedSlots {
 public:
  FetchedSlots(std::span<const std::int64_t> slot_rows,
               std::span<const Fetch> fetches,
               int ranks,
               int slots_per_rank);

  int slots_per_rank() const { return all_per_rank_; }

  /// The slot that computes the next row of `slot`: the first ones stay. Call once for each row.
  SlotId next(SlotId slot);

 private:
  SlotId renumbered(SlotId slot) const {
    return slot / per_rank_ * all_per_rank_ + slot % per_rank_;
  }

  struct Part {
    SlotId slot = 0;
    std::int64_t until = 0;  ///< rows of the old slot, counted from its first
  };

  int per_rank_;
  int all_per_rank_;
  std::vector<std::vector<Part>> parts_;  // [R * L]
  std::vector<std::int64_t> taken_;       // [R * L]
};

/// What fetches add to the loads of an exchange over FetchedSlots: weights on links behind rows of
/// dispatch, work that waits for them, and counts of rows that every rank tells every other before.
void add_fetches(std::span<const Fetch> fetches,
                 const ExpertWork& work,
                 const LinkLevels& levels,
                 int experts,
                 std::span<RankLoad> loads);

}  // namespace ferry
