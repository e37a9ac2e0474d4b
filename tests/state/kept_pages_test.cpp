#include "ferry/state/kept_pages.h"

#include <gtest/gtest.h>

#include <cstring>

#include "ferry/core/error.h"

namespace ferry {
namespace {

const std::vector<StateSpec> kLayers = {
    {.streams = 2, .row_bytes = 4},
    {.streams = 1, .row_bytes = 8, .span = {AttentionSpan::Kind::window, 17}}};

/// Position p of layer and stream has the number p + salt.
void run(SequenceState& state, int tokens, int salt) {
  state.let_go();
  state.reserve(tokens);
  for (int p = state.length(); p < state.length() + tokens; ++p)
    for (const auto& [layer, stream] : {std::pair{0, 0}, {0, 1}, {1, 0}})
      std::memset(state.rows(layer, stream).row(p), p + salt, 4);
  state.commit(tokens);
}

std::byte at(const SequenceState& state, int layer, int stream, int position) {
  return *state.rows(layer, stream).row(position);
}

TEST(KeptPages, AnotherSequenceGoesOnBehindThem) {
  PagePool pool{StateLayout(kLayers)};
  KeptPages kept(pool);
  SequenceState first(pool, 100);
  run(first, 50, 1);
  for (std::uint64_t page = 0; page < 3; ++page)
    kept.keep(10 + page, 9 + page, static_cast<std::int64_t>(page), first);
  first = SequenceState(pool, 100);
  EXPECT_EQ(pool.held_bytes(), 3 * pool.layout().bytes_held(1));

  SequenceState second(pool, 100);
  kept.give(12, 3, second);
  EXPECT_EQ(second.length(), 48);
  for (int p = 0; p < 48; ++p)
    for (const int stream : {0, 1}) EXPECT_EQ(at(second, 0, stream, p), std::byte(p + 1));
  for (int p = 32; p < 48; ++p) EXPECT_EQ(at(second, 1, 0, p), std::byte(p + 1));
  EXPECT_EQ(second.rows(1, 0).pages[1], nullptr) << "the query at 48 sees 32 and on";
  EXPECT_EQ(second.held_bytes(), pool.layout().bytes_held(48));
  run(second, 20, 1);
  EXPECT_EQ(at(second, 0, 1, 67), std::byte(68));
  EXPECT_EQ(at(second, 0, 1, 5), std::byte(6));

  SequenceState third(pool, 100);
  run(third, 5, 7);  // its own page goes
  kept.give(10, 1, third);
  EXPECT_EQ(third.length(), 16);
  EXPECT_EQ(at(third, 0, 0, 3), std::byte(4));
  run(third, 1, 2);
  EXPECT_EQ(at(second, 0, 0, 16), std::byte(17)) << "the page behind is not shared";
}

TEST(KeptPages, WhatTwoHaveFilledIsHeldOnce) {
  PagePool pool{StateLayout(kLayers)};
  KeptPages kept(pool);
  SequenceState one(pool, 100), two(pool, 100);
  run(one, 32, 1);
  run(two, 40, 1);
  const std::size_t page = pool.layout().bytes_held(1);
  EXPECT_EQ(pool.held_bytes(), 5 * page);
  for (SequenceState* state : {&one, &two}) {
    kept.keep(1, 0, 0, *state);
    kept.keep(2, 1, 1, *state);
  }
  EXPECT_EQ(kept.size(), 2U);
  EXPECT_EQ(pool.held_bytes(), 3 * page);
  EXPECT_EQ(at(two, 0, 1, 31), std::byte(32));
  EXPECT_EQ(two.rows(0, 0).pages[0], one.rows(0, 0).pages[0]);
}

TEST(KeptPages, ForgottenOnesAreFreeOnceNobodyUsesThem) {
  PagePool pool{StateLayout(kLayers)};
  KeptPages kept(pool);
  const std::size_t full = pool.layout().full_page_bytes();
  const std::size_t window = pool.layout().window_page_bytes();
  {
    SequenceState state(pool, 100);
    run(state, 32, 1);
    kept.keep(1, 0, 0, state);
    kept.keep(2, 1, 1, state);
    kept.forget_windows(1);
    EXPECT_EQ(pool.held_bytes(), 2 * (full + window)) << "the state has it still";
    state.let_go();
    EXPECT_EQ(pool.held_bytes(), 2 * full + window) << "the query at 32 sees 16 and on";
  }
  SequenceState state(pool, 100);
  EXPECT_THROW(kept.give(1, 1, state), BrokenContract) << "without its windows";
  state = SequenceState(pool, 100);
  kept.give(2, 2, state);
  kept.forget(2);
  kept.forget(1);
  EXPECT_EQ(pool.held_bytes(), 2 * full + window) << "in use";
  EXPECT_THROW(kept.forget(1), BrokenContract);
  EXPECT_EQ(at(state, 0, 0, 20), std::byte(21));
  state = SequenceState(pool, 100);
  EXPECT_EQ(pool.held_bytes(), 0U);
}

TEST(KeptPages, WhatLiesBesidePagesIsThereWhereTheSequenceStood) {
  PagePool pool{
      StateLayout(std::vector<StateSpec>{{.streams = 1, .row_bytes = 4}, {.fixed_bytes = 64}})};
  KeptPages kept(pool);
  SequenceState state(pool, 100);
  const auto step = [&](int tokens) {
    state.reserve(tokens);
    std::memset(state.next_fixed(1), state.length() + tokens, 64);
    state.commit(tokens);
  };
  step(32);
  kept.keep(1, 0, 0, state);
  kept.keep(2, 1, 1, state);
  EXPECT_EQ(kept.snapshot_bytes(), 64U) << "of the end alone";
  step(20);
  kept.keep(3, 2, 2, state);
  EXPECT_EQ(kept.snapshot_bytes(), 64U) << "48 positions are behind it";
  SequenceState other(pool, 100);
  EXPECT_THROW(kept.give(1, 1, other), BrokenContract);
  EXPECT_THROW(kept.give(3, 3, other), BrokenContract);
  other = SequenceState(pool, 100);
  kept.give(2, 2, other);
  EXPECT_EQ(other.length(), 32);
  EXPECT_EQ(*other.fixed(1), std::byte{32});
  EXPECT_EQ(*state.fixed(1), std::byte{52});
  kept.forget_windows(2);
  EXPECT_EQ(kept.snapshot_bytes(), 0U);
  kept.keep(2, 1, 1, other);  // a sequence that stands there brings it back
  EXPECT_EQ(kept.snapshot_bytes(), 64U);
}

TEST(KeptPages, APageThatTheStateHasLetGoIsRefused) {
  PagePool pool{StateLayout(kLayers)};
  KeptPages kept(pool);
  SequenceState state(pool, 100);
  run(state, 60, 1);
  state.let_go();
  EXPECT_THROW(kept.keep(1, 0, 0, state), BrokenContract);
}

TEST(KeptPages, AStateThatIsTooShortIsRefused) {
  PagePool pool{StateLayout(kLayers)};
  SequenceState state(pool, 32);
  EXPECT_THROW(state.start_behind(2), BrokenContract) << "no room for a token";
  state.start_behind(1);
  EXPECT_THROW(state.replace(0, 1, Page()), BrokenContract);
  EXPECT_THROW(state.replace(0, 0, Page()), BrokenContract);
}

}  // namespace
}  // namespace ferry
