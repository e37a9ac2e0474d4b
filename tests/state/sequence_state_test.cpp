#include "ferry/state/sequence_state.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <utility>
#include <vector>

#include "ferry/core/error.h"

namespace ferry {
namespace {

constexpr AttentionSpan kWindow{AttentionSpan::Kind::window, 37};
constexpr AttentionSpan kBlock{AttentionSpan::Kind::block, 40};

std::vector<StateSpec> five_layers() {
  return {{.streams = 2, .row_bytes = 12},
          {.streams = 3, .row_bytes = 12, .span = kWindow},
          {.streams = 2, .row_bytes = 12, .fixed_bytes = 10},
          {.streams = 1, .row_bytes = 20, .span = kBlock, .fixed_bytes = 70},
          {.fixed_bytes = 5}};
}

void fill(SequenceState& state, int tokens) {
  state.reserve(tokens);
  state.commit(tokens);
}

/// Writes into every row of positions [begin, end) a number of its own and of `salt`.
class Rows {
 public:
  explicit Rows(const std::vector<StateSpec>& specs) : specs_(specs) {}

  void write(const SequenceState& state, std::int64_t begin, std::int64_t end, int salt) const {
    each_row([&](int layer, int stream, std::size_t bytes) {
      const StateRows rows = state.rows(layer, stream);
      for (std::int64_t p = begin; p < end; ++p)
        std::memset(rows.row(p), number(layer, stream, p, salt), bytes);
    });
  }

  /// Of the positions that the query behind `end` sees.
  bool are_there(const SequenceState& state, std::int64_t end, int salt) const {
    bool there = true;
    each_row([&](int layer, int stream, std::size_t bytes) {
      const StateRows rows = state.rows(layer, stream);
      const AttentionSpan& span = specs_[static_cast<std::size_t>(layer)].span;
      for (std::int64_t p = span.first(end); p < end; ++p)
        for (std::size_t i = 0; i < bytes; ++i)
          there &= rows.row(p)[i] == std::byte(number(layer, stream, p, salt));
    });
    return there;
  }

 private:
  static unsigned char number(int layer, int stream, std::int64_t p, int salt) {
    return static_cast<unsigned char>(layer * 97 + stream * 41 + p * 7 + salt * 13);
  }

  template <class Body>
  void each_row(Body body) const {
    for (std::size_t layer = 0; layer < specs_.size(); ++layer)
      for (int stream = 0; stream < specs_[layer].streams; ++stream)
        body(static_cast<int>(layer), stream, specs_[layer].row_bytes);
  }

  std::vector<StateSpec> specs_;
};

TEST(SequenceState, EveryRowThatIsSeenStaysWhateverIsCommitted) {
  const std::vector<StateSpec> specs = five_layers();
  const Rows rows(specs);
  PagePool pool{StateLayout(specs)};
  std::mt19937 random(9);
  std::vector<SequenceState> states;
  for (int s = 0; s < 5; ++s) states.emplace_back(pool, 900);
  for (int step = 0; step < 600; ++step) {
    const std::size_t which = random() % states.size();
    SequenceState& state = states[which];
    const int salt = static_cast<int>(which);
    const int tokens = static_cast<int>(random() % 60);
    if (state.length() + tokens > state.capacity()) {
      state = SequenceState(pool, 900);
      continue;
    }
    const int accepted = static_cast<int>(random() % static_cast<unsigned>(tokens + 1));
    const int begin = state.length();
    state.reserve(tokens);
    ASSERT_EQ(state.held_bytes(), pool.layout().bytes_held(begin, begin + tokens));
    ASSERT_TRUE(rows.are_there(state, begin, salt)) << "step " << step;
    rows.write(state, begin, begin + accepted, salt);
    rows.write(state, begin + accepted, begin + tokens, salt + 1);  // what is not accepted
    state.commit(accepted);
    ASSERT_EQ(state.length(), begin + accepted);
    state.let_go();
    ASSERT_EQ(state.held_bytes(), pool.layout().bytes_held(begin + accepted));
    ASSERT_TRUE(rows.are_there(state, begin + accepted, salt)) << "step " << step;
  }
  for (std::size_t s = 0; s < states.size(); ++s)
    EXPECT_TRUE(rows.are_there(states[s], states[s].length(), static_cast<int>(s)));
  states.clear();
  EXPECT_EQ(pool.held_bytes(), 0U);
}

TEST(SequenceState, AStepMayRunAgainBeforeItIsCommitted) {
  const std::vector<StateSpec> specs = five_layers();
  const Rows rows(specs);
  PagePool pool{StateLayout(specs)};
  SequenceState state(pool, 200);
  state.reserve(50);
  rows.write(state, 0, 50, 1);
  state.commit(50);
  state.reserve(60);
  rows.write(state, 50, 110, 2);
  state.reserve(20);  // the same, or a shorter one
  rows.write(state, 50, 70, 1);
  state.commit(20);
  EXPECT_EQ(state.length(), 70);
  EXPECT_TRUE(rows.are_there(state, 70, 1));
  state.let_go();
  EXPECT_EQ(state.held_bytes(), pool.layout().bytes_held(70));
}

TEST(SequenceState, AWindowGivesItsPagesBack) {
  const StateSpec spec{.streams = 2, .row_bytes = 16, .span = {AttentionSpan::Kind::window, 128}};
  PagePool pool{StateLayout({&spec, 1})};
  SequenceState state(pool, 40000);
  for (int n = 0; n < 40000; n += 400) {
    fill(state, 400);
    state.let_go();
    ASSERT_LE(pool.held_bytes(), 9 * pool.layout().classes()[0].page_bytes());
  }
  EXPECT_LT(pool.reserved_bytes(), 130 * pool.layout().classes()[0].page_bytes())
      << "the same pages again and again";
}

TEST(SequenceState, ARejectedTokenCostsNoPageThatIsStillNeeded) {
  // The query at 160 sees from 33 on, the one at 176 from 49 on: not the page of 32 to 47.
  const StateSpec spec{.streams = 1, .row_bytes = 4, .span = {AttentionSpan::Kind::window, 128}};
  const Rows rows({spec});
  PagePool pool{StateLayout({&spec, 1})};
  SequenceState state(pool, 400);
  state.reserve(160);
  rows.write(state, 0, 160, 1);
  state.commit(160);
  state.reserve(16);
  state.commit(0);
  EXPECT_EQ(state.length(), 160);
  EXPECT_TRUE(rows.are_there(state, 160, 1));
  state.reserve(16);
  rows.write(state, 160, 176, 1);
  state.commit(16);
  EXPECT_TRUE(rows.are_there(state, 176, 1));
  EXPECT_NE(state.rows(0, 0).pages[2], nullptr) << "for others, until the next step";
  state.let_go();
  EXPECT_EQ(state.rows(0, 0).pages[2], nullptr);
  EXPECT_NE(state.rows(0, 0).pages[3], nullptr);
}

const std::vector<std::pair<int, int>> kFixedBytes = {{2, 10}, {3, 70}, {4, 5}};  // of layers

void write_next(const SequenceState& state, int salt) {
  for (const auto& [layer, bytes] : kFixedBytes)
    std::memset(state.next_fixed(layer), layer + salt, static_cast<std::size_t>(bytes));
}

/// Whether all of a layer's fixed bytes are what write_next() wrote; `salt` 0: as at first.
bool fixed_is(const SequenceState& state, int salt) {
  return std::ranges::all_of(kFixedBytes, [&](const auto& of) {
    const auto& [layer, bytes] = of;
    const std::byte want = salt == 0 ? std::byte{0} : std::byte(layer + salt);
    return std::all_of(
        state.fixed(layer), state.fixed(layer) + bytes, [&](std::byte b) { return b == want; });
  });
}

TEST(SequenceState, FixedBytesAreZeroAtFirstAndAdvanceWithACommitAlone) {
  PagePool pool{StateLayout(five_layers())};
  SequenceState one(pool, 10), two(pool, 10);
  EXPECT_TRUE(fixed_is(one, 0));
  one.reserve(3);
  write_next(one, 100);
  EXPECT_TRUE(fixed_is(one, 0)) << "the step may run again";
  write_next(one, 50);
  one.commit(2);
  EXPECT_TRUE(fixed_is(one, 50));
  EXPECT_TRUE(fixed_is(two, 0));
  one.reserve(1);
  write_next(one, 70);
  one.commit(0);
  EXPECT_TRUE(fixed_is(one, 50)) << "no token counts";
  one.reserve(1);
  write_next(one, 90);
  one.commit(1);
  EXPECT_TRUE(fixed_is(one, 90));
  two.set_fixed(one.fixed());
  EXPECT_TRUE(fixed_is(two, 90));
  EXPECT_THROW(two.set_fixed(one.fixed().first(10)), BrokenContract);
}

TEST(SequenceState, RefusesMoreThanItHasRoomForOrHasRun) {
  PagePool pool{StateLayout(five_layers())};
  EXPECT_THROW(SequenceState(pool, 0), BrokenContract);
  SequenceState state(pool, 20);
  EXPECT_THROW(state.reserve(21), BrokenContract);
  EXPECT_THROW(state.reserve(-1), BrokenContract);
  EXPECT_THROW(state.commit(1), BrokenContract) << "nothing has run";
  state.reserve(5);
  EXPECT_THROW(state.commit(6), BrokenContract);
  EXPECT_THROW(state.commit(-1), BrokenContract);
  state.commit(5);
  EXPECT_THROW(state.commit(1), BrokenContract) << "committed already";
  state.reserve(15);
  state.commit(15);
  EXPECT_THROW(state.reserve(1), BrokenContract);
  state.reserve(0);
  EXPECT_EQ(state.length(), 20);
}

}  // namespace
}  // namespace ferry
