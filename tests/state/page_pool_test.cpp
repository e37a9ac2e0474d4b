#include "ferry/state/page_pool.h"

#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <random>
#include <utility>
#include <vector>

#include "ferry/core/error.h"

namespace ferry {
namespace {

/// Two classes with pages of the same size, and one with others.
StateLayout three_classes() {
  const std::vector<StateSpec> specs = {
      {.streams = 3, .row_bytes = 8},
      {.streams = 3, .row_bytes = 8, .span = {AttentionSpan::Kind::window, 20}},
      {.streams = 1, .row_bytes = 20}};
  return StateLayout(specs);
}

/// Every row of every stream of a page.
void mark(const PagePool& pool, int page_class, const Page& page, unsigned char value) {
  const PageClass& c = pool.layout().classes()[static_cast<std::size_t>(page_class)];
  for (int stream = 0; stream < c.streams; ++stream)
    std::memset(
        page.data() + stream * pool.stream_bytes(page_class), value, c.row_bytes * kPagePositions);
}

bool is_marked(const PagePool& pool, int page_class, const Page& page, unsigned char value) {
  const PageClass& c = pool.layout().classes()[static_cast<std::size_t>(page_class)];
  for (int stream = 0; stream < c.streams; ++stream) {
    const std::byte* rows = page.data() + stream * pool.stream_bytes(page_class);
    for (std::size_t i = 0; i < c.row_bytes * kPagePositions; ++i)
      if (rows[i] != std::byte{value}) return false;
  }
  return true;
}

TEST(PagePool, NoPageIsHeldTwiceAndNoneIsLost) {
  std::mt19937 random(5);
  PagePool pool(three_classes());

  struct Held {
    int page_class;
    Page page;
    unsigned char value;
  };

  std::vector<Held> held;
  std::size_t bytes = 0;
  std::size_t most = 0;
  const auto bytes_of = [&](const Held& h) {
    return pool.layout().classes()[static_cast<std::size_t>(h.page_class)].page_bytes();
  };
  for (int i = 0; i < 4000; ++i) {
    // Grows and shrinks in long waves, so that pieces of memory fill up and empty.
    if (held.empty() || random() % 100 < (i / 500 % 2 == 0 ? 65U : 35U)) {
      const int page_class = static_cast<int>(random() % 3);
      const Page nothing;
      Page page = pool.take(page_class, held.empty() ? nothing : held.back().page);
      const auto value = static_cast<unsigned char>(random());
      mark(pool, page_class, page, value);
      held.push_back({page_class, std::move(page), value});
      bytes += bytes_of(held.back());
    } else {
      std::swap(held[random() % held.size()], held.back());
      ASSERT_TRUE(is_marked(pool, held.back().page_class, held.back().page, held.back().value));
      bytes -= bytes_of(held.back());
      held.pop_back();
    }
    most = std::max(most, bytes);
    ASSERT_EQ(pool.held_bytes(), bytes);
  }
  for (const Held& h : held) ASSERT_TRUE(is_marked(pool, h.page_class, h.page, h.value));
  held.clear();
  EXPECT_EQ(pool.held_bytes(), 0U);
  EXPECT_GT(most, 200U * 160) << "more than one piece of memory";
}

TEST(PagePool, PagesTakenInARowFollowEachOther) {
  PagePool pool(three_classes());
  std::vector<Page> pages;
  const Page nothing;
  for (int i = 0; i < 64; ++i) pages.push_back(pool.take(0, i == 0 ? nothing : pages.back()));
  for (std::size_t i = 1; i < pages.size(); ++i)
    ASSERT_EQ(pages[i].data() - pages[i - 1].data(), 8 * kPagePositions);
  // Also where the lowest free page is another one.
  pages[3] = Page();
  pages[40] = Page();
  pages[41] = Page();
  const Page behind = pool.take(0, pages[39]);
  EXPECT_EQ(behind.data() - pages[39].data(), 8 * kPagePositions);
}

TEST(PagePool, SequencesThatGrowInTurnHaveRunsOfTheirOwn) {
  PagePool pool(three_classes());
  std::vector<std::vector<Page>> sequences(4);
  const Page nothing;
  for (int i = 0; i < 16; ++i)
    for (auto& pages : sequences)
      pages.push_back(pool.take(0, pages.empty() ? nothing : pages.back()));
  for (const auto& pages : sequences) {
    for (std::size_t i = 1; i < pages.size(); ++i) {
      if (i % 8 == 0) continue;
      ASSERT_EQ(pages[i].data() - pages[i - 1].data(), 8 * kPagePositions);
    }
  }
  EXPECT_EQ(pool.reserved_bytes(), 64 * pool.layout().classes()[0].page_bytes()) << "all in one";
}

TEST(PagePool, APageLivesUntilItsLastHolderLetsGo) {
  PagePool pool(three_classes());
  const std::size_t page_bytes = pool.layout().classes()[2].page_bytes();
  Page first = pool.take(2, {});
  Page second = first.share();
  Page third = second.share();
  EXPECT_EQ(first.data(), third.data());
  EXPECT_EQ(pool.held_bytes(), page_bytes);
  first = Page();
  third = Page();
  EXPECT_EQ(pool.held_bytes(), page_bytes);
  const Page other = pool.take(2, {});
  EXPECT_NE(other.data(), second.data());
  second = Page();
  EXPECT_EQ(pool.held_bytes(), page_bytes);
  EXPECT_THROW(static_cast<void>(second.share()), BrokenContract);
}

TEST(PagePool, ClassesWithPagesOfOneSizeUseTheSameOnes) {
  PagePool pool(three_classes());
  const auto fill = [&](int page_class, int count) {
    std::vector<Page> pages;
    const Page nothing;
    for (int i = 0; i < count; ++i)
      pages.push_back(pool.take(page_class, pages.empty() ? nothing : pages.back()));
    return pages;
  };
  {
    const auto pages = fill(0, 300);
    EXPECT_GE(pool.reserved_bytes(), pool.held_bytes());
  }
  const auto same_size = fill(1, 300);
  const std::size_t before = pool.reserved_bytes();
  EXPECT_LT(before, 2 * pool.held_bytes()) << "pages of one size are the same ones";
  const auto others = fill(2, 64);
  EXPECT_EQ(pool.reserved_bytes(), before + 64 * pool.layout().classes()[2].page_bytes());
  auto first = fill(0, 10);
  first.clear();
  EXPECT_EQ(pool.reserved_bytes(), before + 64 * pool.layout().classes()[2].page_bytes());
}

TEST(PagePool, IdleMemoryGoesWhereOthersWantSomeAndComesAgain) {
  PagePool pool(three_classes());
  for (int round = 0; round < 3; ++round) {
    for (const int page_class : {0, 2}) {
      const Page page = pool.take(page_class, {});
      mark(pool, page_class, page, 7);
      EXPECT_TRUE(is_marked(pool, page_class, page, 7));
      const PageClass& c = pool.layout().classes()[static_cast<std::size_t>(page_class)];
      EXPECT_EQ(pool.reserved_bytes(), 64 * c.page_bytes());
    }
  }
}

}  // namespace
}  // namespace ferry
