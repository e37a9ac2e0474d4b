#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "balance/loads.h"
#include "ferry/expert_load.h"

namespace ferry {
namespace {

using Loads = std::vector<double>;

TEST(Measure, ReplicasShareALoadEvenly) {
  const std::vector<ExpertId> map{0, 1, 0, -1};
  EXPECT_EQ(rank_loads(Loads{10, 3}, map, 2), (Loads{8, 5}));
  EXPECT_DOUBLE_EQ(balancedness(Loads{8, 5}), 6.5 / 8);
}

TEST(Measure, NoLoadIsBalanced) { EXPECT_EQ(balancedness(Loads{0, 0}), 1.0); }

TEST(Measure, BoundIsTheLargestShareOrTheMean) {
  EXPECT_DOUBLE_EQ(best_balancedness({Loads{8, 1, 1, 2}, {2, 1, 1}, 2, 4}), 6.0 / 8);
  EXPECT_DOUBLE_EQ(best_balancedness({Loads{8, 1, 1, 2}, {2, 1, 1}, 3, 5}), 1.0);
}

TEST(Measure, BoundWithGroupsOnNodesIsThatOfTheHeaviestNode) {
  const Loads load{6, 0, 1, 0, 1, 0, 4, 0};  // groups 6, 1, 1, 4: nodes of 7 and 5 at best
  const LayerProblem p{load, {4, 2, 4}, 3, 12};
  EXPECT_DOUBLE_EQ(pack_groups(p).heaviest, 7);
  EXPECT_DOUBLE_EQ(best_balancedness(p), 3.0 / 3.5);
}

TEST(Measure, GroupPackingIsAsGoodAsTryingEveryPacking) {
  std::mt19937_64 random(1);
  for (int round = 0; round < 300; ++round) {
    const int nodes = 2 + test::below(random, 2);
    const int groups = nodes * (1 + test::below(random, 3));
    Loads load(static_cast<std::size_t>(groups));
    for (double& x : load) x = test::below(random, 50);
    const GroupPacking packing = pack_groups({load, {nodes, nodes, groups}, groups, groups});
    std::vector<int> all(load.size());
    for (std::size_t i = 0; i < all.size(); ++i) all[i] = static_cast<int>(i) % nodes;
    std::sort(all.begin(), all.end());
    const auto heaviest = [&](const std::vector<int>& node_of) {
      Loads on_node(static_cast<std::size_t>(nodes), 0.0);
      for (std::size_t g = 0; g < load.size(); ++g)
        on_node[static_cast<std::size_t>(node_of[g])] += load[g];
      return *std::max_element(on_node.begin(), on_node.end());
    };
    double best = heaviest(all);
    while (std::next_permutation(all.begin(), all.end())) best = std::min(best, heaviest(all));
    EXPECT_DOUBLE_EQ(packing.heaviest, best);
    EXPECT_DOUBLE_EQ(packing.heaviest_bound, best);
    EXPECT_DOUBLE_EQ(heaviest(packing.node_of_group), best);
  }
}

TEST(Measure, ReplicaCountsMinimiseTheLargestShare) {
  EXPECT_EQ(replica_counts(Loads{8, 1, 3}, 6, 4), (std::vector<int>{3, 1, 2}));
  EXPECT_EQ(replica_counts(Loads{8, 1, 3}, 6, 2), (std::vector<int>{2, 2, 2}));
  EXPECT_EQ(replica_counts(Loads{0, 0, 0}, 5, 4), (std::vector<int>{2, 2, 1}));
  EXPECT_EQ(replica_counts(Loads{5, 5}, 9, 3), (std::vector<int>{3, 3}));
}

TEST(Measure, FewestTransfersCountRanksThatMustReceiveAndReplicasOfLargeExperts) {
  const Loads load{6, 6, 1, 1, 1, 1};
  const LayerProblem p{load, {4, 1, 1}, 2, 8};
  const std::vector<ExpertId> current{0, 1, 2, 3, 4, 5, -1, -1};
  EXPECT_EQ(fewest_transfers(p, current, 12), 0);
  EXPECT_EQ(fewest_transfers(p, current, 8), 1);  // 8 + 2 + 2 + 4
  EXPECT_EQ(fewest_transfers(p, current, 6), 1);  // 6 + 2 + 2 + 6
  EXPECT_EQ(fewest_transfers(p, current, 4), 3);  // all but the first
  EXPECT_EQ(fewest_transfers(
                {Loads{9, 0}, {3, 1, 1}, 2, 6}, std::vector<ExpertId>{0, 1, -1, -1, 0, 1}, 3),
            1);
  EXPECT_EQ(fewest_transfers({Loads{0, 0}, {2, 1, 1}, 1, 2}, std::vector<ExpertId>{0, 1}, 0), 0);
}

TEST(Measure, CountsExpertsThatARankHoldsTwice) {
  EXPECT_EQ(count_duplicates(std::vector<ExpertId>{0, 0, 1, 0, -1, -1}, 2, 2), 1);
  EXPECT_EQ(count_duplicates(std::vector<ExpertId>{0, 1, 0, 1}, 2, 2), 0);
}

}  // namespace
}  // namespace ferry
