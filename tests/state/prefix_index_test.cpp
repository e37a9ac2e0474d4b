#include "ferry/state/prefix_index.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <map>
#include <random>

#include "ferry/core/error.h"

namespace ferry {
namespace {

using Ids = std::vector<std::int32_t>;

constexpr StateSpec kFull{.streams = 2, .row_bytes = 12};
constexpr StateSpec kWindow{
    .streams = 1, .row_bytes = 8, .span = {AttentionSpan::Kind::window, 33}};
constexpr StateSpec kBlock{.streams = 1, .row_bytes = 8, .span = {AttentionSpan::Kind::block, 48}};

constexpr StateSpec kRecurrent{.fixed_bytes = 8};

StateLayout layout_of(const std::vector<StateSpec>& specs) { return StateLayout(specs); }

/// `pages` pages of tokens that begin with `first`, and `more` tokens.
Ids ids_of(std::int32_t first, int pages, int more = 0) {
  Ids ids(static_cast<std::size_t>(pages * kPagePositions + more));
  for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = first + static_cast<std::int32_t>(i);
  return ids;
}

/// A sequence that has come to the end of these tokens and is gone.
void run(PrefixIndex& index, const Ids& ids, std::string_view salt = "") {
  PrefixPath path = index.begin(salt);
  index.fill(path, ids, std::ssize(ids) / kPagePositions);
  index.advance(path, std::ssize(ids));
  index.end(path);
}

TEST(PrefixIndex, FindsTheFullPagesThatBeginAlike) {
  PrefixIndex index(layout_of({kFull}));
  const Ids ids = ids_of(0, 4, 5);
  EXPECT_EQ(index.find("", ids, 100).pages, 0);
  run(index, ids);
  EXPECT_EQ(index.pages(), 4U);
  EXPECT_EQ(index.find("", ids, 100).pages, 4);
  EXPECT_EQ(index.find("", ids, 3).pages, 3) << "no more than asked for";
  EXPECT_EQ(index.find("", ids, 0).pages, 0);
  EXPECT_EQ(index.find("", std::span(ids).first(47), 100).pages, 2);
  EXPECT_EQ(index.find("", {}, 100).pages, 0);
  Ids other = ids;
  other[40] = -1;
  EXPECT_EQ(index.find("", other, 100).pages, 2);
  run(index, other);
  EXPECT_EQ(index.pages(), 6U) << "two are the same";
  // The same tokens somewhere else are no prefix.
  EXPECT_EQ(index.find("", std::span(ids).subspan(16), 100).pages, 0);
}

TEST(PrefixIndex, SaltsSeeNothingOfEachOther) {
  PrefixIndex index(layout_of({kFull}));
  const Ids ids = ids_of(0, 2);
  run(index, ids, "a");
  EXPECT_EQ(index.find("a", ids, 2).pages, 2);
  EXPECT_EQ(index.find("", ids, 2).pages, 0);
  EXPECT_EQ(index.find("b", ids, 2).pages, 0);
  run(index, ids, "b");
  EXPECT_EQ(index.pages(), 4U);
}

TEST(PrefixIndex, LeastRecentlyUsedPagesLeaveFirstAndLeavesBeforeWhatTheyFollow) {
  PrefixIndex index(layout_of({kFull}));
  const Ids a = ids_of(0, 2), b = ids_of(1000, 2), c = ids_of(2000, 1);
  run(index, a);
  run(index, b);
  run(index, c);
  run(index, a);
  const auto left = [&] {
    return std::array{
        index.find("", a, 9).pages, index.find("", b, 9).pages, index.find("", c, 9).pages};
  };
  using Left = std::array<std::int64_t, 3>;
  ASSERT_TRUE(index.forget_oldest());
  EXPECT_EQ(left(), (Left{2, 1, 1}));
  ASSERT_TRUE(index.forget_oldest());
  EXPECT_EQ(left(), (Left{2, 0, 1}));
  ASSERT_TRUE(index.forget_oldest());
  EXPECT_EQ(left(), (Left{2, 0, 0}));
  ASSERT_TRUE(index.forget_oldest());
  EXPECT_EQ(left(), (Left{1, 0, 0}));
  ASSERT_TRUE(index.forget_oldest());
  EXPECT_FALSE(index.forget_oldest());
  EXPECT_EQ(index.full_bytes(), 0U);
}

TEST(PrefixIndex, PagesInUseStay) {
  PrefixIndex index(layout_of({kFull}));
  const Ids ids = ids_of(0, 3);
  run(index, ids);
  PrefixPath path = index.begin("");
  index.adopt(path, ids, 2);
  EXPECT_EQ(index.find("", ids, 9).in_use, 2);
  EXPECT_TRUE(index.forget_oldest());
  EXPECT_FALSE(index.forget_oldest());
  EXPECT_EQ(index.find("", ids, 9).pages, 2);
  EXPECT_EQ(index.used_full_bytes(), index.full_bytes());
  EXPECT_THROW(index.clear(), BrokenContract);
  index.end(path);
  EXPECT_EQ(index.used_full_bytes(), 0U);
  index.clear();
  EXPECT_EQ(index.pages(), 0U);
  EXPECT_EQ(index.idle_bytes(), 0U);
}

TEST(PrefixIndex, BehindAWindowThatHasLeftThereIsNoGoingOn) {
  PrefixIndex index(layout_of({kFull, kWindow}));
  const Ids ids = ids_of(0, 6);
  run(index, ids);
  EXPECT_EQ(index.find("", ids, 6).pages, 6);
  // The windows that the sequence left behind first are the oldest: its first pages'.
  const auto gone = index.forget_oldest();
  ASSERT_TRUE(gone && gone->windows_only);
  EXPECT_EQ(index.find("", ids, 6).pages, 6);
  EXPECT_EQ(index.find("", ids, 2).pages, 0) << "the query at 32 sees position 0";
  EXPECT_EQ(index.find("", ids, 3).pages, 3) << "that at 48 sees 16 and on";
  // One that runs them again brings them back.
  run(index, std::vector(ids.begin(), ids.begin() + 32));
  EXPECT_EQ(index.find("", ids, 2).pages, 2);
}

TEST(PrefixIndex, AtTheEndOfABlockNothingBeforeIsNeeded) {
  PrefixIndex index(layout_of({kFull, kBlock}));
  const Ids ids = ids_of(0, 7);
  run(index, ids);
  while (index.idle_window_bytes() > 0 && index.find("", ids, 7).pages == 7) {
    const auto gone = index.forget_oldest();
    ASSERT_TRUE(gone);
    if (!gone->windows_only) break;
  }
  EXPECT_EQ(index.find("", ids, 7).pages, 6) << "48 positions are a block";
}

TEST(PrefixIndex, RecurrentLayersGoOnWhereASequenceStoodAlone) {
  PrefixIndex index(layout_of({kFull, kRecurrent}));
  const Ids ids = ids_of(0, 6, 3);
  PrefixPath path = index.begin("");
  index.fill(path, ids, 2, true);
  index.advance(path, 32);
  EXPECT_EQ(index.find("", ids, 6).pages, 2);
  EXPECT_EQ(index.find("", ids, 1).pages, 0) << "nobody stood at 16";
  EXPECT_EQ(index.idle_window_bytes(), 0U) << "a sequence stands there";
  index.fill(path, ids, 5, false);
  index.advance(path, 90);
  EXPECT_EQ(index.find("", ids, 6).pages, 2);
  EXPECT_EQ(index.idle_window_bytes(), 64U);
  PrefixPath other = index.begin("");
  EXPECT_EQ(index.known(other, ids), 5);
  index.adopt(other, ids, 2);
  EXPECT_EQ(index.idle_window_bytes(), 0U);
  EXPECT_FALSE(index.forget_oldest()) << "all is in use";
  index.fill(other, ids, 3, true);
  index.advance(other, 48);
  EXPECT_EQ(index.find("", ids, 6).pages, 3) << "the page was there, the snapshot is new";
  const auto gone = index.forget_oldest();
  ASSERT_TRUE(gone && gone->windows_only);
  EXPECT_EQ(index.find("", ids, 6).pages, 3);
  EXPECT_EQ(index.find("", ids, 2).pages, 0);
  index.end(path);
  index.end(other);
  index.clear();
  EXPECT_EQ(index.idle_bytes(), 0U);
}

TEST(PrefixIndex, WindowsBesideRecurrentLayersAreRefused) {
  EXPECT_THROW(PrefixIndex(layout_of({kFull, kWindow, kRecurrent})), BrokenContract);
}

TEST(PrefixIndex, AStepTellsWhoseNextPageIsTheSame) {
  PrefixIndex index(layout_of({kFull}));
  const Ids a = ids_of(0, 2), b = ids_of(0, 1, 15);
  PrefixPath of_a = index.begin(""), of_b = index.begin("");
  EXPECT_EQ(PrefixIndex::next_key(of_a, a), PrefixIndex::next_key(of_b, b));
  index.fill(of_a, a, 1);
  EXPECT_NE(PrefixIndex::next_key(of_a, a), PrefixIndex::next_key(of_b, b));
  index.adopt(of_b, b, 1);
  EXPECT_TRUE(PrefixIndex::next_key(of_a, a));
  EXPECT_FALSE(PrefixIndex::next_key(of_b, b)) << "15 tokens fill no page";
  index.end(of_a);
  index.end(of_b);
}

/// What the index has to say, by comparing tokens from the first on.
class Reference {
 public:
  Reference(StateLayout layout, bool windows) : layout_(std::move(layout)), windows_(windows) {}

  std::map<Ids, bool> pages;  // all tokens up to a page's end -> whether its windows are there

  std::int64_t find(const Ids& ids, std::int64_t most) const {
    std::int64_t best = 0;
    for (std::int64_t n = 1; n <= std::min<std::int64_t>(most, std::ssize(ids) / 16); ++n) {
      if (!pages.contains(prefix(ids, n))) break;
      bool there = true;
      for (std::int64_t i = layout_.first_window_page(n * 16); windows_ && i < n; ++i)
        there &= pages.at(prefix(ids, i + 1));
      if (there) best = n;
    }
    return best;
  }

  static Ids prefix(const Ids& ids, std::int64_t pages) {
    return {ids.begin(), ids.begin() + pages * 16};
  }

 private:
  StateLayout layout_;
  bool windows_;
};

TEST(PrefixIndex, IsThatOfComparingAllTokens) {
  std::mt19937 random(5);
  const auto below = [&](int n) { return static_cast<int>(random() % static_cast<unsigned>(n)); };
  for (int round = 0; round < 40; ++round) {
    const std::vector<StateSpec> specs =
        std::array{std::vector{kFull},
                   std::vector{kFull, kWindow},
                   std::vector{kBlock, kFull, kWindow},
                   std::vector{kRecurrent, kFull}}[static_cast<std::size_t>(round % 4)];
    const bool recurrent = round % 4 == 3;
    const StateLayout layout(specs);
    PrefixIndex index(layout);
    Reference reference(layout, specs.size() > 1);

    struct Live {
      Ids ids;
      PrefixPath path;
      std::int64_t length = 0;
    };

    std::vector<Live> live;
    std::map<std::uint64_t, Ids> numbers;
    std::size_t found = 0;
    for (int step = 0; step < 300; ++step) {
      if (live.size() < 4 && below(3) > 0) {
        Ids ids;  // pages of few kinds, so that many begin alike
        for (int page = 1 + below(8); page > 0; --page) ids.insert(ids.end(), 16, below(2));
        const std::int64_t most = below(9);
        const std::int64_t pages = index.find("", ids, most).pages;
        ASSERT_EQ(pages, reference.find(ids, most));
        found += static_cast<std::size_t>(pages);
        Live one{.ids = ids, .path = index.begin(""), .length = pages * 16};
        index.adopt(one.path, ids, pages);
        live.push_back(std::move(one));
      } else if (!live.empty() && below(3) > 0) {
        Live& one = live[static_cast<std::size_t>(below(static_cast<int>(live.size())))];
        one.length = std::min(std::ssize(one.ids), one.length + below(40));
        const std::int64_t from = one.path.pages();
        const bool ends_there = one.length % 16 == 0;
        index.fill(one.path, one.ids, one.length / 16, ends_there);
        for (std::int64_t i = from; i < one.path.pages(); ++i) {
          const Ids prefix = Reference::prefix(one.ids, i + 1);
          reference.pages[prefix] |= !recurrent || (ends_there && i + 1 == one.path.pages());
          numbers[one.path.numbers[static_cast<std::size_t>(i)]] = prefix;
        }
        index.advance(one.path, one.length);
        if (one.length == std::ssize(one.ids)) {
          index.end(one.path);
          live.erase(live.begin() + (&one - live.data()));
        }
      } else if (const auto gone = index.forget_oldest()) {
        const Ids& prefix = numbers.at(gone->number);
        if (gone->windows_only)
          reference.pages.at(prefix) = false;
        else
          ASSERT_EQ(reference.pages.erase(prefix), 1U);
      }
      ASSERT_EQ(index.pages(), reference.pages.size());
      std::size_t used = 0;
      for (const auto& [prefix, windows] : reference.pages) {
        used += std::ranges::any_of(live, [&](const Live& one) {
          return one.path.pages() * 16 >= std::ssize(prefix) &&
                 std::equal(prefix.begin(), prefix.end(), one.ids.begin());
        });
      }
      ASSERT_EQ(index.used_full_bytes(), used * layout.full_page_bytes());
    }
    EXPECT_GT(found, 10U);
    for (Live& one : live) index.end(one.path);
    index.clear();
    EXPECT_EQ(index.idle_bytes(), 0U);
  }
}

}  // namespace
}  // namespace ferry
