#include "ferry/placement.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <random>
#include <span>
#include <vector>

#include "ferry/core/error.h"
#include "support/allocation_count.h"

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
    for (const int n : taken) EXPECT_NEAR(n, kTokens / 4.0, kTokens / 20.0);
  }
}

TEST(Placement, ASlotWithoutAPartTakesNothing) {
  const Placement p = Placement::identity(/*experts=*/2, /*ranks=*/4, /*redundant=*/6);
  for (Rank gone = 0; gone < 4; ++gone) {
    std::vector<float> shares(8, 1.0F);
    for (SlotId slot = 0; slot < 8; ++slot)
      if (p.rank_of(slot) == gone) shares[static_cast<std::size_t>(slot)] = 0;
    const Placement rest = p.choosing({.shares = shares, .source = 1});
    std::vector<SlotId> slots(std::size_t{1} << 16);
    rest.place(std::vector<ExpertId>(slots.size(), 1), 1, slots);
    for (const SlotId slot : slots) ASSERT_NE(rest.rank_of(slot), gone);
  }
}

TEST(Placement, TheSameRowsChooseAnewInEveryTurn) {
  const Placement p = Placement::identity(/*experts=*/1, /*ranks=*/4, /*redundant=*/3);
  constexpr int kTurns = 4000;
  std::vector<int> taken(4);
  for (std::uint32_t turn = 0; turn < kTurns; ++turn) {
    std::vector<SlotId> slot(1);
    p.place(std::vector<ExpertId>{0}, 1, slot, turn);
    ++taken[static_cast<std::size_t>(slot[0])];
  }
  for (const int n : taken) EXPECT_NEAR(n, kTurns / 4.0, kTurns / 20.0);
}

/// How many of `tokens` tokens of expert 0 each slot gets from a rank.
std::vector<int> taken_of_expert_zero(const Placement& p, int tokens) {
  constexpr int kTopk = 8;
  std::vector<SlotId> placed(static_cast<std::size_t>(tokens));
  p.place(std::vector<ExpertId>(placed.size(), 0), kTopk, placed);
  std::vector<int> taken(static_cast<std::size_t>(p.slots()));
  for (const SlotId slot : placed) ++taken[static_cast<std::size_t>(slot)];
  return taken;
}

TEST(ReplicaChoice, WeightedGivesEachReplicaItsShare) {
  const Placement p({0, 1, 2, 0, 0, 3, 0, -1}, 4, 4);
  // Of expert 0's slots 0, 3, 4 and 6; slots of other experts do not count.
  const std::vector<float> shares{1, 9, 9, 0, 5, 9, 2, 9};
  const std::vector<int> taken = taken_of_expert_zero(p.choosing({.shares = shares}), 80000);
  EXPECT_NEAR(taken[0], 10000, 300);
  EXPECT_EQ(taken[3], 0);
  EXPECT_NEAR(taken[4], 50000, 500);
  EXPECT_NEAR(taken[6], 20000, 400);
  const std::vector<double> parts{0.125, 0, 0.625, 0.25};
  for (std::size_t i = 0; i < parts.size(); ++i)
    EXPECT_NEAR(p.choosing({.shares = shares}).part(0, i), parts[i], 1e-6);
  EXPECT_EQ(p.choosing({.shares = shares}).part(1, 0), 1);
}

TEST(ReplicaChoice, SharesThatAreAllZeroMeanEqualParts) {
  const Placement p({0, 1, 0, 1}, 2, 2);
  const std::vector<int> taken =
      taken_of_expert_zero(p.choosing({.shares = std::vector<float>(4, 0.0F)}), 10000);
  EXPECT_NEAR(taken[0], 5000, 200);
}

TEST(ReplicaChoice, WithoutASourceAllRanksChooseAlikeWithOneTheyDiffer) {
  const Placement p = Placement::identity(4, 4, 12);
  const std::vector<float> shares{1, 2, 3, 4, 4, 3, 2, 1, 1, 1, 1, 1, 2, 2, 2, 2};
  const std::vector<ExpertId> experts{0, 1, 2, 3, 3, 2, 1, 0, 0, 1, 0, 1, 2, 3, 2, 3};
  const auto placed = [&](const ReplicaChoice& choice) {
    const Placement chosen = p.choosing(choice);
    EXPECT_EQ(chosen.same_on_all_ranks(), choice.source < 0);
    std::vector<SlotId> slots(experts.size());
    chosen.place(experts, 2, slots);
    for (std::size_t i = 0; i < slots.size(); ++i) EXPECT_EQ(p.expert_of(slots[i]), experts[i]);
    return slots;
  };
  // Two ranks that make their own placement from the same maps and shares.
  EXPECT_EQ(placed({.shares = shares}), placed({.shares = shares}));
  EXPECT_NE(placed({.shares = shares, .source = 0}), placed({.shares = shares, .source = 1}));
}

TEST(ReplicaChoice, RanksWithOneTokenEachDoNotAllMeetAtOneReplica) {
  constexpr int kRanks = 64;
  const Placement p = Placement::identity(1, kRanks, 3);
  std::vector<int> taken(static_cast<std::size_t>(p.slots()));
  for (Rank r = 0; r < kRanks; ++r) {
    std::vector<SlotId> slot(1);
    p.choosing({.source = r}).place(std::vector<ExpertId>{0}, 1, slot);
    ++taken[static_cast<std::size_t>(slot[0])];
  }
  for (int replica = 0; replica < 4; ++replica)
    EXPECT_NEAR(taken[static_cast<std::size_t>(replica)], kRanks / 4.0, 10);
}

TEST(ReplicaChoice, NearestServesItsOwnRankThenItsNodeAndLeavesEveryReplicaItsPart) {
  constexpr int kRanks = 8;
  constexpr int kTokens = 8000;
  std::vector<ExpertId> map(kRanks, -1);
  map[0] = map[1] = map[6] = 0;  // two replicas in the first node, one in the second
  map[2] = 1;
  const Placement p(map, 2, kRanks);
  for (const std::vector<float>& shares :
       {std::vector<float>{}, std::vector<float>{4, 1, 0, 0, 0, 0, 3, 0}}) {
    std::vector<int> taken(kRanks);
    int own = 0;
    int node = 0;
    for (Rank r = 0; r < kRanks; ++r) {
      const Placement mine =
          p.choosing({.shares = shares, .source = r, .nearest = true, .nodes = 2});
      const std::vector<int> sent = taken_of_expert_zero(mine, kTokens);
      for (SlotId s = 0; s < kRanks; ++s) {
        taken[static_cast<std::size_t>(s)] += sent[static_cast<std::size_t>(s)];
        if (s == r) own += sent[static_cast<std::size_t>(s)];
        if (s / 4 == r / 4) node += sent[static_cast<std::size_t>(s)];
      }
    }
    const std::vector<double> part = shares.empty() ? std::vector<double>{8 / 3.0, 8 / 3.0, 8 / 3.0}
                                                    : std::vector<double>{4, 1, 3};
    EXPECT_NEAR(taken[0], part[0] * kTokens, 400);
    EXPECT_NEAR(taken[1], part[1] * kTokens, 400);
    EXPECT_NEAR(taken[6], part[2] * kTokens, 400);
    EXPECT_NEAR(own, 3 * kTokens, 400);  // each has at least one rank's part to give
    // The most that can stay in a node: all four ranks of the first, what the second has room for.
    EXPECT_NEAR(node, (4 + part[2]) * kTokens, 400);
  }
}

/// The definition: every rank in turn looks at every replica within each reach. [replica] parts.
std::vector<double> nearest_by_definition(
    const Placement& p, ExpertId expert, std::span<const float> shares, Rank source, int nodes) {
  const std::span<const SlotId> replicas = p.replicas(expert);
  std::vector<double> parts, mine(replicas.size(), 0.0);
  double sum = 0;
  for (const SlotId slot : replicas)
    sum += static_cast<double>(shares[static_cast<std::size_t>(slot)]);
  for (const SlotId slot : replicas)
    parts.push_back(sum > 0 ? static_cast<double>(shares[static_cast<std::size_t>(slot)]) / sum
                            : 1.0 / static_cast<double>(replicas.size()));
  std::vector<double> left(static_cast<std::size_t>(p.ranks()), 1.0 / p.ranks());
  for (const int reach : {1, p.ranks() / nodes, p.ranks()}) {
    for (Rank from = 0; from < p.ranks(); ++from) {
      for (std::size_t i = 0; i < parts.size(); ++i) {
        if (p.rank_of(replicas[i]) / reach != from / reach) continue;
        double& tokens = left[static_cast<std::size_t>(from)];
        const double flow = std::min(tokens, parts[i]);
        tokens -= flow;
        parts[i] -= flow;
        if (from == source) mine[i] += flow;
      }
    }
  }
  const double all = std::accumulate(mine.begin(), mine.end(), 0.0);
  for (double& part : mine) part /= all;
  return mine;
}

TEST(ReplicaChoice, NearestIsItsDefinitionOnAnyMap) {
  std::mt19937 engine(3);
  for (int round = 0; round < 60; ++round) {
    const int nodes = 1 + round % 4;
    const int ranks = nodes * (1 + round % 5);
    const int experts = 1 + round % 7;
    const int per_rank = 1 + experts / ranks + round % 3;
    std::vector<ExpertId> map;
    for (int slot = 0; slot < ranks * per_rank; ++slot)
      map.push_back(
          slot < experts ? slot : static_cast<ExpertId>(engine() % static_cast<unsigned>(experts)));
    std::ranges::shuffle(map, engine);
    std::vector<float> shares;
    for (std::size_t slot = 0; slot < map.size(); ++slot)
      shares.push_back(engine() % 3 == 0 ? 0.0F : static_cast<float>(engine() % 100));
    const Placement p(map, experts, ranks);
    for (Rank source = 0; source < ranks; ++source) {
      const Placement mine =
          p.choosing({.shares = shares, .source = source, .nearest = true, .nodes = nodes});
      for (ExpertId e = 0; e < experts; ++e) {
        const std::vector<double> expected = nearest_by_definition(p, e, shares, source, nodes);
        if (expected.size() == 1) continue;
        for (std::size_t i = 0; i < expected.size(); ++i)
          ASSERT_NEAR(mine.part(e, i), expected[i], 1e-9) << "expert " << e << " of " << ranks;
      }
    }
  }
}

TEST(ReplicaChoice, RefusesWhatCannotBe) {
  const Placement p = Placement::identity(2, 2);
  EXPECT_THROW(p.choosing({.shares = std::vector<float>{1}}), ConfigError);
  EXPECT_THROW(p.choosing({.shares = std::vector<float>{1, -1}}), ConfigError);
  EXPECT_THROW(
      p.choosing({.shares = std::vector<float>{1, std::numeric_limits<float>::infinity()}}),
      ConfigError);
  EXPECT_THROW(p.choosing({.source = 2}), ConfigError);
  EXPECT_THROW(p.choosing({.nearest = true}), ConfigError);
  EXPECT_THROW(p.choosing({.source = 0, .nodes = 3}), ConfigError);
}

TEST(Placement, PlacingAllocatesNothing) {
  const Placement p = Placement::identity(4, 4, 8).choosing({.source = 1, .nearest = true});
  const std::vector<ExpertId> experts{0, 1, 2, 3, -1, 0};
  std::vector<SlotId> slots(experts.size());
  const testing::AllocationCount allocations;
  p.place(experts, 2, slots);
  EXPECT_EQ(allocations.so_far(), 0);
}

TEST(Placement, AnotherChoiceIsMadeFromItsShares) {
  const Placement p = Placement::identity(4, 3, 5);
  const std::vector<float> given{1, 2, 3, 4, 5, 6, 0, 1, 9};
  const Placement weighted = p.choosing({.shares = given});
  const std::vector<float> shares = weighted.shares();
  const Placement again = p.choosing({.shares = shares, .source = 1});
  for (ExpertId e = 0; e < 4; ++e) {
    float sum = 0;
    for (std::size_t i = 0; i < p.replicas(e).size(); ++i) {
      EXPECT_NEAR(again.part(e, i), weighted.part(e, i), 1e-6);
      sum += shares[static_cast<std::size_t>(p.replicas(e)[i])];
    }
    EXPECT_NEAR(sum, 1, 1e-6);
  }
  EXPECT_EQ(Placement::identity(2, 2, 1).shares(), (std::vector<float>{0.5, 1, 0.5, 0}));
}

TEST(Placement, RulesHaveNames) {
  for (const ReplicaRule rule : {ReplicaRule::hash, ReplicaRule::nearest, ReplicaRule::weighted})
    EXPECT_EQ(parse_replica_rule(replica_rule_name(rule)), rule);
  EXPECT_THROW(parse_replica_rule("far"), ConfigError);
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
