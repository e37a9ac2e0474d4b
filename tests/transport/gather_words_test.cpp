#include "ferry/transport/gather_words.h"

#include <gtest/gtest.h>

#include <chrono>
#include <string>
#include <vector>

#include "ferry/core/error.h"
#include "support/ranks.h"

namespace ferry {
namespace {

class GatherWords : public testing::TestWithParam<RankKind> {};

/// Also none, and more than some transports put at once or copy when a put starts.
TEST_P(GatherWords, GiveAllRanksWhatEachOneSaid) {
  const auto word = [](Rank rank, std::size_t i) {
    return (static_cast<std::uint64_t>(rank) + 1) * 0x9e3779b97f4a7c15U + i;
  };
  for (const int ranks : {1, 2, 3}) {
    on_ranks({.kind = GetParam(), .ranks = ranks}, [&](Transport& transport) {
      for (const std::size_t count : {1U, 0U, 5U, 200'000U}) {
        std::vector<std::uint64_t> own;
        for (std::size_t i = 0; i < count; ++i) own.push_back(word(transport.rank(), i));
        const std::vector<std::uint64_t> all =
            gather_words(own, "test's words", std::chrono::seconds(30), transport);
        ASSERT_EQ(all.size(), count * static_cast<std::size_t>(ranks));
        for (std::size_t i = 0; i < all.size(); ++i)
          ASSERT_EQ(all[i], word(static_cast<Rank>(i / count), i % count)) << "word " << i;
      }
    });
  }
}

INSTANTIATE_TEST_SUITE_P(All,
                         GatherWords,
                         testing::ValuesIn(main_rank_kinds()),
                         [](const auto& kind) { return kind.param.label(); });

TEST(GatherWordsErrors, NameTheRankThatSaysNothing) {
  on_ranks({.ranks = 2}, [](Transport& transport) {
    if (transport.rank() == 1) {
      const auto region = transport.allocate_region(2 * sizeof(std::uint64_t), 2);
      static_cast<void>(transport.barrier(deadline_in(std::chrono::seconds(30))));
      return;
    }
    try {
      static_cast<void>(gather_words(
          std::vector<std::uint64_t>{7}, "number", std::chrono::milliseconds(20), transport));
      ADD_FAILURE() << "rank 1 had said nothing";
    } catch (const TransportError& e) {
      EXPECT_EQ(e.kind(), TransportError::Kind::timeout);
      EXPECT_EQ(e.peer(), 1);
      EXPECT_NE(std::string(e.what()).find("rank 1 did not say its number"), std::string::npos);
    }
    static_cast<void>(transport.barrier(deadline_in(std::chrono::seconds(30))));
  });
}

}  // namespace
}  // namespace ferry
