#include "ferry/model/mixers/head_share.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <utility>
#include <vector>

namespace ferry {
namespace {

TEST(HeadShare, DealsOutEveryHeadOnceWithWhatItReads) {
  for (int kv_heads = 1; kv_heads <= 9; ++kv_heads) {
    for (int readers = 1; readers <= 5; ++readers) {
      for (int tp = 1; tp <= 12; ++tp) {
        const int heads = kv_heads * readers;
        int next = 0;
        int most = 0;
        int least = heads;
        for (int m = 0; m < tp; ++m) {
          const HeadShare share = head_share(heads, kv_heads, {m, tp});
          ASSERT_EQ(share.query.begin, next);
          next = share.query.end;
          for (int head = share.query.begin; head < share.query.end; ++head) {
            ASSERT_LE(share.kv.begin, head / readers);
            ASSERT_LT(head / readers, share.kv.end);
          }
          if (share.query.size() > 0) {
            ASSERT_EQ(share.kv.begin, share.query.begin / readers);
            ASSERT_EQ(share.kv.end, (share.query.end - 1) / readers + 1) << "more than is read";
          } else {
            ASSERT_EQ(share.kv.size(), 0);
          }
          most = std::max(most, share.query.size());
          least = std::min(least, share.query.size());
        }
        ASSERT_EQ(next, heads);
        ASSERT_LE(most - least, kv_heads >= tp ? readers : 1) << "uneven";
      }
    }
  }
}

TEST(HeadShare, KeyValueHeadsAreKeptOnceWhereTheySuffice) {
  for (int m = 0; m < 3; ++m) {
    const HeadShare share = head_share(12, 4, {m, 3});
    EXPECT_EQ(share.kv.size(), m == 2 ? 2 : 1);
    EXPECT_EQ(share.query.size(), 3 * share.kv.size());
  }
}

TEST(HeadShare, PanelsHoldEveryColumnOfTheShareAndNoneTwice) {
  for (const int head_dim : {6, 16, 20, 48}) {
    for (const auto& [heads, kv_heads] : {std::pair{6, 2}, {5, 1}, {4, 4}, {12, 3}}) {
      for (int tp = 1; tp <= 5; ++tp) {
        for (int m = 0; m < tp; ++m) {
          const HeadShare share = head_share(heads, kv_heads, {m, tp});
          const int q = heads * head_dim;
          const int kv = kv_heads * head_dim;
          const auto ranges = head_columns(share, heads, kv_heads, head_dim);
          // As one strip, values by themselves, and each by itself.
          for (const std::vector<int>& strips :
               {std::vector{q + 2 * kv}, std::vector{q + kv, kv}, std::vector{q, kv, kv}}) {
            std::vector<int> times(static_cast<std::size_t>(q + 2 * kv));
            int first = 0;
            for (const int width : strips) {
              StripPanels panels(first, width);
              for (const ColumnRange& range : ranges) {
                const PanelRange own = panels.next(range);
                const std::int64_t end = std::min<std::int64_t>(own.end * kPanelColumns, width);
                for (auto c = own.begin * kPanelColumns; c < end; ++c)
                  ++times.at(static_cast<std::size_t>(first + c));
              }
              first += width;
            }
            ASSERT_LE(*std::ranges::max_element(times), 1);
            for (const ColumnRange& range : ranges)
              for (auto c = range.begin; c < range.end; ++c)
                ASSERT_EQ(times.at(static_cast<std::size_t>(c)), 1) << "column " << c;
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace ferry
