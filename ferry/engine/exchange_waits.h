// Who makes the ranks wait: what every rank's exchanges have counted of each source, and the one
// rank that all others wait for, if there is one.
#pragma once

#include <chrono>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "ferry/core/types.h"
#include "ferry/engine/step_record.h"
#include "ferry/exchange_stats.h"

namespace ferry {

/// On rank 0. Threads: one at a time.
///
/// A rank is named when in a window all other living ranks waited for it longer than for any other
/// source, on average for at least kNamedShare of the window, and kNamedLead times as long as for
/// any other.
class ExchangeWaits {
 public:
  using Clock = std::chrono::steady_clock;

  static constexpr std::chrono::seconds kWindow{30};
  static constexpr double kNamedShare = 0.05;
  static constexpr double kNamedLead = 2;

  explicit ExchangeWaits(int ranks);

  /// What `rank` has counted so far, [R] by source; nothing where it has not told this time.
  void take(Rank rank, std::span<const SourceStats> sources);

  /// Ends the window where it has lasted long enough. Returns a line for the operator when another
  /// rank is named than before, or none any more.
  std::optional<std::string> look(Clock::time_point now, const RankSet& gone);

  /// [R][R]: rank, then source, since the engine was made.
  const std::vector<SourceStats>& counted() const { return counted_; }

  /// In the last window; -1: none.
  Rank straggler() const { return straggler_; }

 private:
  /// Seconds that the other living ranks waited on average in the window, and whether for none
  /// longer.
  struct Waited {
    double seconds = 0;
    bool longest_of_all = true;
  };

  double in_window(Rank rank, Rank source) const;
  Waited waited_for(Rank source, const RankSet& gone) const;

  const int ranks_;
  std::vector<SourceStats> counted_;  // [R][R]
  std::vector<SourceStats> begun_;    // [R][R], when the window began
  std::optional<Clock::time_point> begin_;
  Rank straggler_ = -1;
};

}  // namespace ferry
