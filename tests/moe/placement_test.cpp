#include "ferry/moe/placement.h"

#include <gtest/gtest.h>

#include <vector>

#include "ferry/core/error.h"

namespace ferry {
namespace {

TEST(Placement, IdentityLeavesSlotsEmptyWhereExpertsDoNotDivide) {
  const Placement p = Placement::identity(/*experts=*/7, /*ranks=*/3);
  EXPECT_EQ(p.slots_per_rank(), 3);
  EXPECT_EQ(p.slots(), 9);
  for (SlotId s = 0; s < 7; ++s) EXPECT_EQ(p.expert_of(s), s);
  EXPECT_EQ(p.expert_of(7), -1);
  EXPECT_EQ(p.expert_of(8), -1);
  EXPECT_EQ(p.rank_of(5), 1);
}

TEST(Placement, EveryCombinationOfExpertsRanksAndReplicasIsLegal) {
  for (int experts = 1; experts < 9; ++experts) {
    for (int ranks = 1; ranks < 12; ++ranks) {
      for (const int redundant : {0, 1, 5, 20}) {
        const Placement p = Placement::identity(experts, ranks, redundant);
        EXPECT_EQ(p.slots() % ranks, 0);
        std::size_t replicas = 0;
        for (ExpertId e = 0; e < experts; ++e) {
          for (const SlotId s : p.replicas(e)) EXPECT_EQ(p.expert_of(s), e);
          replicas += p.replicas(e).size();
        }
        EXPECT_EQ(replicas, static_cast<std::size_t>(experts + redundant));
      }
    }
  }
}

TEST(Placement, SpreadsAStreamOverReplicasEvenlyAlsoWhereTheirCountDividesK) {
  const Placement p = Placement::identity(/*experts=*/1, /*ranks=*/4, /*redundant=*/3);
  constexpr int kTokens = 4000;
  constexpr int kTopk = 4;
  std::vector<SlotId> slots(kTokens * kTopk);
  p.place(std::vector<ExpertId>(slots.size(), 0), kTopk, slots);
  for (int k = 0; k < kTopk; ++k) {
    std::vector<int> taken(4);
    for (int t = 0; t < kTokens; ++t)
      ++taken[static_cast<std::size_t>(slots[static_cast<std::size_t>(t * kTopk + k)])];
    for (const int n : taken) EXPECT_NEAR(n, kTokens / 4, kTokens / 20);
  }
}

TEST(Placement, KeepsMaskedIds) {
  const Placement p = Placement::identity(3, 2);
  std::vector<SlotId> slots(2);
  p.place(std::vector<ExpertId>{-1, 2}, 2, slots);
  EXPECT_EQ(slots, (std::vector<SlotId>{-1, 2}));
}

TEST(Placement, RefusesMapsThatLoseAnExpertOrDoNotDivide) {
  EXPECT_THROW(Placement({0, 1, -1, 1}, 3, 2), ConfigError);
  EXPECT_THROW(Placement({0, 1, 2}, 3, 2), ConfigError);
  EXPECT_THROW(Placement({0, 5}, 2, 2), ConfigError);
}

}  // namespace
}  // namespace ferry
