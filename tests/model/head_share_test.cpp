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
          std::vector<int> times(static_cast<std::size_t>(heads + 2 * kv_heads) * 3 + 1);
          for (const PanelRange& range : head_panels(share, heads, kv_heads, head_dim))
            for (auto p = range.begin; p < range.end; ++p) ++times.at(static_cast<std::size_t>(p));
          ASSERT_LE(*std::ranges::max_element(times), 1);
          const auto expect_covered = [&](int first_head, const HeadRange& own) {
            const int end = (first_head + own.end) * head_dim;
            for (int c = (first_head + own.begin) * head_dim; c < end; ++c)
              ASSERT_EQ(times.at(static_cast<std::size_t>(c / kPanelColumns)), 1) << "column " << c;
          };
          expect_covered(0, share.query);
          expect_covered(heads, share.kv);
          expect_covered(heads + kv_heads, share.kv);
        }
      }
    }
  }
}

}  // namespace
}  // namespace ferry
