#include "ferry/balance/recorder.h"

#include <algorithm>
#include <cstring>

#include "ferry/core/error.h"

namespace ferry {

namespace {

/// Mean over the layers with any load of mean over max of their ranks' loads. rows:
/// [layers][ranks].
template <class T>
double mean_balancedness(std::span<const T> rows, std::size_t ranks) {
  double sum = 0;
  int layers = 0;
  for (; !rows.empty(); rows = rows.subspan(ranks)) {
    double total = 0;
    double most = 0;
    for (const T& value : rows.first(ranks)) {
      total += static_cast<double>(value);
      most = std::max(most, static_cast<double>(value));
    }
    if (most == 0) continue;
    sum += total / static_cast<double>(ranks) / most;
    ++layers;
  }
  return layers == 0 ? 1.0 : sum / layers;
}

}  // namespace

LoadRecorder::LoadRecorder(const Options& options) : options_(options) {
  FERRY_CHECK(
      options.layers >= 1 && options.experts >= 1 && options.ranks >= 1 && options.window >= 1,
      "a recorder of {} layers, {} experts, {} ranks, {} steps",
      options.layers,
      options.experts,
      options.ranks,
      options.window);
  ring_ = Buffer(static_cast<std::size_t>(options.window) * step_size() * sizeof(std::int32_t));
  // Its pages are made here: a step that touched one first would pay more for that than for all of
  // its counting.
  std::memset(ring_.data(), 0, ring_.size());
  step_.resize(step_size());
  sums_.resize(step_size());
  const auto ranks = static_cast<std::size_t>(options.ranks);
  step_ranks_.resize(static_cast<std::size_t>(options.layers) * ranks);
  marked_ranks_.resize(step_ranks_.size());
  last_ranks_.resize(ranks);
}

void LoadRecorder::add(int layer,
                       Rank rank,
                       std::span<const std::int32_t> local_counts,
                       const Placement& placement) {
  FERRY_CHECK(std::ssize(local_counts) == placement.slots_per_rank() &&
                  placement.experts() == options_.experts && placement.ranks() == options_.ranks,
              "{} counts of a rank, placement of {} slots a rank",
              local_counts.size(),
              placement.slots_per_rank());
  const auto first = static_cast<SlotId>(rank * placement.slots_per_rank());
  std::int32_t* counts = step_.data() + static_cast<std::ptrdiff_t>(layer) * options_.experts;
  std::int64_t rows = 0;
  for (std::size_t i = 0; i < local_counts.size(); ++i) {
    if (local_counts[i] == 0) continue;  // empty slots among them
    rows += local_counts[i];
    counts[placement.expert_of(first + static_cast<SlotId>(i))] += local_counts[i];
  }
  step_ranks_[static_cast<std::size_t>(layer * options_.ranks + rank)] += rows;
}

void LoadRecorder::drop_step() {
  std::fill(step_.begin(), step_.end(), 0);
  std::fill(step_ranks_.begin(), step_ranks_.end(), 0);
}

void LoadRecorder::end_step() {
  if (std::all_of(step_ranks_.begin(), step_ranks_.end(), [](auto rows) { return rows == 0; }))
    return;
  std::int32_t* oldest = row(next_);  // zeros while the ring is not full
  for (std::size_t i = 0; i < step_.size(); ++i) {
    sums_[i] += step_[i] - oldest[i];
    oldest[i] = step_[i];
  }
  next_ = (next_ + 1) % options_.window;
  filled_ = std::min(filled_ + 1, options_.window);

  const auto ranks = static_cast<std::size_t>(options_.ranks);
  std::fill(last_ranks_.begin(), last_ranks_.end(), 0);
  for (std::size_t i = 0; i < step_ranks_.size(); ++i) {
    last_ranks_[i % ranks] += step_ranks_[i];
    marked_ranks_[i] += static_cast<double>(step_ranks_[i]);
  }
  balancedness_[steps_ % balancedness_.size()] =
      mean_balancedness<std::int64_t>(step_ranks_, ranks);
  ++steps_;
  ++marked_steps_;
  drop_step();
}

void LoadRecorder::clear() {
  std::fill_n(row(0), static_cast<std::size_t>(filled_) * step_size(), 0);
  std::fill(sums_.begin(), sums_.end(), 0);
  next_ = filled_ = 0;
}

std::span<const std::int32_t> LoadRecorder::step_counts(int step) const {
  FERRY_CHECK(step >= 0 && step < filled_, "step {} of {}", step, filled_);
  const int index = filled_ < options_.window ? step : (next_ + step) % options_.window;
  return {row(index), step_size()};
}

ExpertLoad LoadRecorder::window_load() const {
  ExpertLoad load(options_.layers, options_.experts);
  std::transform(sums_.begin(), sums_.end(), load.counts.begin(), [](std::int64_t sum) {
    return static_cast<double>(sum);
  });
  return load;
}

std::vector<ExpertLoad> LoadRecorder::sampled_steps(int most) const {
  const int n = std::min(most, filled_);
  std::vector<ExpertLoad> steps;
  for (int i = 1; i <= n; ++i) {
    const auto counts =
        step_counts(static_cast<int>(static_cast<std::int64_t>(filled_) * i / n) - 1);
    ExpertLoad& load = steps.emplace_back(options_.layers, options_.experts);
    std::copy(counts.begin(), counts.end(), load.counts.begin());
  }
  return steps;
}

double LoadRecorder::recent_balancedness(std::uint64_t steps) const {
  const std::uint64_t n = std::min<std::uint64_t>({steps, steps_, balancedness_.size()});
  double sum = 0;
  for (std::uint64_t i = 1; i <= n; ++i) sum += balancedness_[(steps_ - i) % balancedness_.size()];
  return n == 0 ? 1.0 : sum / static_cast<double>(n);
}

LoadMetrics LoadRecorder::metrics() const {
  return {.steps = steps_,
          .current = recent_balancedness(1),
          .last_10 = recent_balancedness(10),
          .last_100 = recent_balancedness(100),
          .last_1000 = recent_balancedness(1000),
          .rank_rows = last_ranks_,
          .steps_since_mark = marked_steps_,
          .since_mark =
              mean_balancedness<double>(marked_ranks_, static_cast<std::size_t>(options_.ranks))};
}

void LoadRecorder::mark() {
  std::fill(marked_ranks_.begin(), marked_ranks_.end(), 0.0);
  marked_steps_ = 0;
}

}  // namespace ferry
