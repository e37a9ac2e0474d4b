#include "ferry/balance/recorder.h"

#include <gtest/gtest.h>

#include "ferry/core/error.h"
#include "support/allocation_count.h"

namespace ferry {
namespace {

/// Adds a step of one layer; slots: rows of each slot.
void add_step(LoadRecorder& recorder,
              const Placement& placement,
              const std::vector<std::int32_t>& slots) {
  const auto per_rank = static_cast<std::size_t>(placement.slots_per_rank());
  for (Rank rank = 0; rank < placement.ranks(); ++rank) {
    recorder.add(0,
                 rank,
                 std::span(slots).subspan(static_cast<std::size_t>(rank) * per_rank, per_rank),
                 placement);
  }
  recorder.end_step();
}

std::vector<std::int32_t> counts_of(const LoadRecorder& recorder, int step) {
  const auto counts = recorder.step_counts(step);
  return {counts.begin(), counts.end()};
}

TEST(LoadRecorder, CountsExpertsThroughTheMapInForce) {
  LoadRecorder recorder({.layers = 1, .experts = 3, .ranks = 2, .window = 4});
  add_step(recorder, Placement({0, 1, 2, 0}, 3, 2), {5, 1, 2, 4});
  add_step(recorder, Placement({2, 0, 1, -1}, 3, 2), {7, 3, 1, 0});
  ASSERT_EQ(recorder.window_steps(), 2);
  EXPECT_EQ(counts_of(recorder, 0), (std::vector<std::int32_t>{9, 1, 2}));
  EXPECT_EQ(counts_of(recorder, 1), (std::vector<std::int32_t>{3, 1, 7}));
  EXPECT_EQ(recorder.window_load().counts, (std::vector<double>{12, 2, 9}));
  const LoadMetrics metrics = recorder.metrics();
  EXPECT_EQ(metrics.rank_rows, (std::vector<std::int64_t>{10, 1}));
  EXPECT_DOUBLE_EQ(metrics.current, 5.5 / 10);
  EXPECT_DOUBLE_EQ(metrics.last_10, (1.0 + 5.5 / 10) / 2);
}

TEST(LoadRecorder, ForgetsTheOldestStep) {
  LoadRecorder recorder({.layers = 1, .experts = 2, .ranks = 1, .window = 3});
  const Placement placement = Placement::identity(2, 1);
  for (std::int32_t i = 1; i <= 7; ++i) add_step(recorder, placement, {i, 10 * i});
  ASSERT_EQ(recorder.window_steps(), 3);
  for (int step = 0; step < 3; ++step)
    EXPECT_EQ(counts_of(recorder, step), (std::vector<std::int32_t>{5 + step, 10 * (5 + step)}));
  EXPECT_EQ(recorder.window_load().counts, (std::vector<double>{18, 180}));
  EXPECT_EQ(recorder.metrics().steps, 7U);
}

TEST(LoadRecorder, SampledStepsSpreadOverTheWindow) {
  LoadRecorder recorder({.layers = 1, .experts = 1, .ranks = 1, .window = 10});
  const Placement placement = Placement::identity(1, 1);
  for (std::int32_t i = 1; i <= 12; ++i) add_step(recorder, placement, {i});
  std::vector<double> counts;
  for (const ExpertLoad& load : recorder.sampled_steps(5)) counts.push_back(load.counts[0]);
  EXPECT_EQ(counts, (std::vector<double>{4, 6, 8, 10, 12}));
  EXPECT_EQ(recorder.sampled_steps(100).size(), 10U);
}

TEST(LoadRecorder, DummyAndDroppedStepsLeaveNoTrace) {
  LoadRecorder recorder({.layers = 1, .experts = 2, .ranks = 2, .window = 3});
  const Placement placement = Placement::identity(2, 2);
  add_step(recorder, placement, {3, 1});
  add_step(recorder, placement, {0, 0});
  recorder.add(0, 0, std::vector<std::int32_t>{100}, placement);
  recorder.drop_step();
  EXPECT_EQ(recorder.window_steps(), 1);
  EXPECT_EQ(recorder.window_load().counts, (std::vector<double>{3, 1}));
  EXPECT_EQ(recorder.metrics().steps, 1U);
}

TEST(LoadRecorder, SinceMarkAddsUpBeforeItCompares) {
  LoadRecorder recorder({.layers = 1, .experts = 2, .ranks = 2, .window = 3});
  const Placement placement = Placement::identity(2, 2);
  add_step(recorder, placement, {9, 0});
  recorder.mark();
  EXPECT_EQ(recorder.metrics().steps_since_mark, 0U);
  add_step(recorder, placement, {4, 0});
  add_step(recorder, placement, {0, 4});
  const LoadMetrics metrics = recorder.metrics();
  EXPECT_EQ(metrics.steps_since_mark, 2U);
  EXPECT_DOUBLE_EQ(metrics.since_mark, 1.0);
  EXPECT_DOUBLE_EQ(metrics.current, 0.5);
}

TEST(LoadRecorder, LayersWithoutRowsDoNotFlatterTheMean) {
  LoadRecorder recorder({.layers = 2, .experts = 2, .ranks = 2, .window = 3});
  recorder.add(1, 0, std::vector<std::int32_t>{6}, Placement::identity(2, 2));
  recorder.end_step();
  EXPECT_DOUBLE_EQ(recorder.metrics().current, 0.5);
}

TEST(LoadRecorder, StepsAllocateNothing) {
  LoadRecorder recorder({.layers = 1, .experts = 3, .ranks = 2, .window = 2});
  const Placement placement({0, 1, 2, 0}, 3, 2);
  const std::vector<std::int32_t> slots{5, 1, 2, 4};
  const testing::AllocationCount allocations;
  for (int i = 0; i < 5; ++i) add_step(recorder, placement, slots);
  EXPECT_EQ(allocations.so_far(), 0);
}

}  // namespace
}  // namespace ferry
