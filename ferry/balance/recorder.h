// LoadRecorder: what the experts had to do in the last steps, from what their slots counted.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "ferry/buffer.h"
#include "ferry/expert_load.h"

namespace ferry {

/// How even the load was. Balancedness of a step: mean over max of the ranks' rows in a layer,
/// averaged over the layers that had any.
struct LoadMetrics {
  std::uint64_t steps = 0;  ///< counted so far
  double current = 1;       ///< of the last step
  double last_10 = 1;       ///< means of the steps' balancedness
  double last_100 = 1;
  double last_1000 = 1;
  std::vector<std::int64_t> rank_rows;  ///< [R] rows of the last step, all layers together

  // Since mark(): the ranks' rows are added up before they are compared, as a planner does.
  std::uint64_t steps_since_mark = 0;
  double since_mark = 1;
};

/// A ring of the last `window` steps, [layer][expert] each; kept on rank 0. Slots are turned into
/// experts as they come, through the placement in force in that step, so that the window survives a
/// change of placement. Allocates in the constructor only. Threads: one at a time.
class LoadRecorder {
 public:
  struct Options {
    int layers = 1;
    int experts = 1;
    int ranks = 1;
    int window = 1000;  ///< steps
  };

  explicit LoadRecorder(const Options& options);

  /// Rows that the slots of `rank` computed in the step: local_counts [slots_per_rank].
  void add(int layer,
           Rank rank,
           std::span<const std::int32_t> local_counts,
           const Placement& placement);

  /// Ends the step. One without any row (a dummy step) is forgotten.
  void end_step();
  /// Ends the step and forgets it.
  void drop_step();

  /// Forgets the window; metrics() goes on.
  void clear();

  /// Of the steps in the window, oldest first.
  int window_steps() const { return filled_; }

  /// [layers][experts] of one of them.
  std::span<const std::int32_t> step_counts(int step) const;

  /// The window's steps added up. Allocates.
  ExpertLoad window_load() const;

  /// At most `most` of the window's steps, evenly spread over it, oldest first. Allocates.
  std::vector<ExpertLoad> sampled_steps(int most) const;

  /// Mean of the balancedness of the last `steps` steps (at most 1000), or of those there were.
  double recent_balancedness(std::uint64_t steps) const;

  /// Allocates.
  LoadMetrics metrics() const;

  /// From now on LoadMetrics::since_mark counts anew.
  void mark();

  int layers() const { return options_.layers; }

  int experts() const { return options_.experts; }

 private:
  std::size_t step_size() const {
    return static_cast<std::size_t>(options_.layers) * static_cast<std::size_t>(options_.experts);
  }

  std::int32_t* row(int index) const {
    return ring_.as<std::int32_t>() + static_cast<std::size_t>(index) * step_size();
  }

  Options options_;
  Buffer ring_;   // int32 [window][layers][experts]
  int next_ = 0;  // row of the ring that the step goes to
  int filled_ = 0;
  std::vector<std::int32_t> step_;        // [layers][experts] of the step being counted
  std::vector<std::int64_t> sums_;        // [layers][experts] over the ring
  std::vector<std::int64_t> step_ranks_;  // [layers][ranks] of the step being counted
  std::vector<std::int64_t> last_ranks_;  // [ranks] of the last step
  std::vector<double> marked_ranks_;      // [layers][ranks] since mark()
  std::uint64_t marked_steps_ = 0;
  std::array<double, 1000> balancedness_{};  // ring, by steps_ % 1000
  std::uint64_t steps_ = 0;
};

}  // namespace ferry
