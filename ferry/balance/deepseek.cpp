// DeepSeek's algorithm, as published with its README: https://github.com/deepseek-ai/EPLB. Its
// weights are float32; so are ours here, or ties and near ties would fall differently. Where torch
// leaves ties open, the lowest id wins.
#include <algorithm>
#include <cstddef>
#include <numeric>

#include "ferry/balance/policies.h"

namespace ferry {

namespace {

using Index = std::size_t;

struct Packed {
  std::vector<Index> pack;  // of each item
  std::vector<Index> rank;  // place of each item within its pack
};

/// Items to packs of equal number: heaviest first, to the lightest pack with room.
Packed balanced_packing(const std::vector<float>& weight, Index num_packs) {
  const Index items = weight.size();
  const Index per_pack = items / num_packs;
  Packed packed{std::vector<Index>(items), std::vector<Index>(items, 0)};
  if (per_pack == 1) {
    std::iota(packed.pack.begin(), packed.pack.end(), 0);
    return packed;
  }
  std::vector<Index> order(items);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(
      order.begin(), order.end(), [&](Index a, Index b) { return weight[a] > weight[b]; });
  std::vector<float> pack_weight(num_packs, 0.0F);
  std::vector<Index> pack_items(num_packs, 0);
  for (const Index item : order) {
    Index best = num_packs;
    for (Index pack = 0; pack < num_packs; ++pack) {
      if (pack_items[pack] == per_pack) continue;
      if (best == num_packs || pack_weight[pack] < pack_weight[best]) best = pack;
    }
    packed.pack[item] = best;
    packed.rank[item] = pack_items[best]++;
    pack_weight[best] += weight[item];
  }
  return packed;
}

struct Replicated {
  std::vector<Index> logical;  // of each physical expert
  std::vector<Index> count;    // replicas of each logical expert
};

/// The next replica goes to the expert with the largest weight per replica.
Replicated replicate_experts(const std::vector<float>& weight, Index num_physical) {
  Replicated r{std::vector<Index>(weight.size()), std::vector<Index>(weight.size(), 1)};
  std::iota(r.logical.begin(), r.logical.end(), 0);
  std::vector<float> share = weight;
  while (r.logical.size() < num_physical) {
    const auto e = static_cast<Index>(std::max_element(share.begin(), share.end()) - share.begin());
    r.logical.push_back(e);
    share[e] = weight[e] / static_cast<float>(++r.count[e]);
  }
  return r;
}

}  // namespace

std::vector<ExpertId> deepseek_layer(const LayerProblem& p) {
  const bool grouped = p.topology.groups % p.topology.nodes == 0;
  const auto nodes = static_cast<Index>(grouped ? p.topology.nodes : 1);
  const auto groups = static_cast<Index>(grouped ? p.topology.groups : 1);
  const Index experts = p.load.size();
  const Index group_size = experts / groups;
  const Index experts_per_node = experts / nodes;
  const Index ranks_per_node = static_cast<Index>(p.topology.ranks) / nodes;
  const auto slots_per_rank = static_cast<Index>(p.slots_per_rank);
  const Index slots_per_node = ranks_per_node * slots_per_rank;

  // Groups to nodes; `regrouped` numbers experts in that order.
  std::vector<float> group_weight(groups, 0.0F);
  for (Index e = 0; e < experts; ++e) group_weight[e / group_size] += static_cast<float>(p.load[e]);
  const Packed group_packs = balanced_packing(group_weight, nodes);
  std::vector<Index> expert_of_regrouped(experts);
  for (Index e = 0; e < experts; ++e) {
    const Index group = e / group_size;
    const Index place = group_packs.pack[group] * (groups / nodes) + group_packs.rank[group];
    expert_of_regrouped[place * group_size + e % group_size] = e;
  }

  std::vector<ExpertId> map(slots_per_node * nodes, -1);
  for (Index node = 0; node < nodes; ++node) {
    std::vector<float> weight(experts_per_node);
    for (Index i = 0; i < experts_per_node; ++i)
      weight[i] = static_cast<float>(p.load[expert_of_regrouped[node * experts_per_node + i]]);
    const Replicated replicas = replicate_experts(weight, slots_per_node);
    std::vector<float> share(slots_per_node);
    for (Index i = 0; i < slots_per_node; ++i) {
      const Index logical = replicas.logical[i];
      share[i] = weight[logical] / static_cast<float>(replicas.count[logical]);
    }
    const Packed packs = balanced_packing(share, ranks_per_node);
    for (Index i = 0; i < slots_per_node; ++i) {
      const Index slot = node * slots_per_node + packs.pack[i] * slots_per_rank + packs.rank[i];
      map[slot] =
          static_cast<ExpertId>(expert_of_regrouped[node * experts_per_node + replicas.logical[i]]);
    }
  }
  return map;
}

}  // namespace ferry
