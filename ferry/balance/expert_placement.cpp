#include "ferry/expert_placement.h"

#include <algorithm>
#include <bit>
#include <tuple>

#include "ferry/core/error.h"
#include "ferry/core/hash.h"
#include "ferry/core/types.h"

namespace ferry {

namespace {

std::vector<std::vector<ExpertId>> maps_of(std::span<const Placement> layers) {
  std::vector<std::vector<ExpertId>> maps;
  maps.reserve(layers.size());
  for (const Placement& layer : layers)
    maps.emplace_back(layer.expert_of_slots().begin(), layer.expert_of_slots().end());
  return maps;
}

/// The replica for `source`, as logical_to_rank_dispatch_physical says. `taken`: ranks that each
/// replica serves so far.
std::size_t choose_replica(std::span<const SlotId> replicas,
                           const std::vector<int>& taken,
                           const Placement& layer,
                           Rank source,
                           int ranks_per_node) {
  const int fair_share =
      static_cast<int>(ceil_div(layer.ranks(), static_cast<std::int64_t>(replicas.size())));
  std::size_t best = 0;
  auto best_key = std::tuple<int, int>(3, 0);
  for (std::size_t i = 0; i < replicas.size(); ++i) {
    const Rank rank = layer.rank_of(replicas[i]);
    const bool near = rank / ranks_per_node == source / ranks_per_node && taken[i] < fair_share;
    const std::tuple<int, int> key(near ? 0 : 1, taken[i]);
    if (key < best_key) {
      best = i;
      best_key = key;
    }
  }
  return best;
}

}  // namespace

void check_topology(const Topology& t, int experts) {
  if (t.ranks < 1 || t.nodes < 1 || t.groups < 1) {
    fail<ConfigError>(
        "{} ranks, {} nodes, {} groups: each must be at least 1", t.ranks, t.nodes, t.groups);
  }
  if (t.ranks % t.nodes != 0)
    fail<ConfigError>("{} ranks do not divide by {} nodes", t.ranks, t.nodes);
  if (experts % t.groups != 0)
    fail<ConfigError>("{} experts do not divide by {} groups", experts, t.groups);
}

int settle_redundant(int experts, int ranks, int redundant, UnevenSlots uneven) {
  if (redundant < 0) fail<ConfigError>("{} redundant experts: must be at least 0", redundant);
  const std::int64_t most = static_cast<std::int64_t>(experts) * (ranks - 1);
  if (redundant > most) {
    fail<ConfigError>(
        "{} redundant experts are too many: {} ranks hold each of {} experts once at most, so {}",
        redundant,
        ranks,
        experts,
        most);
  }
  const int over = (experts + redundant) % ranks;
  if (over == 0 || uneven == UnevenSlots::allow_empty) return redundant;
  if (uneven == UnevenSlots::strict) {
    fail<ConfigError>(
        "{} experts + {} redundant do not divide by {} ranks: {} slots stay empty; {} redundant "
        "fill them",
        experts,
        redundant,
        ranks,
        ranks - over,
        redundant + ranks - over);
  }
  if (redundant < over) {
    fail<ConfigError>(
        "{} experts + {} redundant do not divide by {} ranks, nor with fewer redundant ones",
        experts,
        redundant,
        ranks);
  }
  return redundant - over;
}

ExpertPlacement ExpertPlacement::identity(int layers, int experts, int ranks, int redundant) {
  if (layers < 1) fail<ConfigError>("placement: no layers");
  if (experts < 1 || ranks < 1)
    fail<ConfigError>("placement: {} experts on {} ranks", experts, ranks);
  settle_redundant(experts, ranks, redundant, UnevenSlots::allow_empty);
  const Placement layer = Placement::identity(experts, ranks, redundant);
  const auto slots = layer.expert_of_slots();
  return {std::vector<std::vector<ExpertId>>(static_cast<std::size_t>(layers),
                                             {slots.begin(), slots.end()}),
          experts,
          ranks};
}

ExpertPlacement::ExpertPlacement(const std::vector<std::vector<ExpertId>>& map,
                                 int experts,
                                 int ranks) {
  if (map.empty()) fail<ConfigError>("placement: no layers");
  if (experts < 1 || ranks < 1)
    fail<ConfigError>("placement: {} experts on {} ranks", experts, ranks);
  Fnv1a hash;
  for (const std::int64_t size : {static_cast<std::int64_t>(map.size()),
                                  static_cast<std::int64_t>(map.front().size()),
                                  static_cast<std::int64_t>(experts),
                                  static_cast<std::int64_t>(ranks)})
    hash.add_number(static_cast<std::uint64_t>(size));
  layers_.reserve(map.size());
  for (std::size_t l = 0; l < map.size(); ++l) {
    if (map[l].size() != map.front().size()) {
      fail<ConfigError>(
          "placement: layer {} has {} slots, layer 0 has {}", l, map[l].size(), map.front().size());
    }
    try {
      layers_.emplace_back(map[l], experts, ranks);
    } catch (const ConfigError& e) {
      fail<ConfigError>("layer {}: {}", l, e.what());
    }
    for (const ExpertId e : map[l]) hash.add_number(static_cast<std::uint64_t>(std::int64_t{e}));
  }
  hash_ = hash.value();
}

ExpertPlacement::ExpertPlacement(std::span<const Placement> layers)
    : ExpertPlacement(maps_of(layers), layers.front().experts(), layers.front().ranks()) {}

std::vector<std::vector<ExpertId>> ExpertPlacement::maps() const { return maps_of(layers_); }

ExpertPlacement ExpertPlacement::choosing(const std::vector<std::vector<float>>& shares) const {
  if (std::ssize(shares) != layers())
    fail<ConfigError>("shares of {} layers for a placement of {}", shares.size(), layers());
  ExpertPlacement result = *this;
  Fnv1a hash;
  hash.add_number(hash_);
  for (std::size_t l = 0; l < shares.size(); ++l) {
    try {
      result.layers_[l] = layers_[l].choosing({.shares = shares[l]});
    } catch (const ConfigError& e) {
      fail<ConfigError>("layer {}: {}", l, e.what());
    }
    for (const float share : shares[l])
      hash.add_number(static_cast<std::uint64_t>(std::int64_t{std::bit_cast<std::int32_t>(share)}));
  }
  result.hash_ = hash.value();
  return result;
}

std::vector<SlotId> ExpertPlacement::logical_to_rank_dispatch_physical(int l, int nodes) const {
  const Placement& placement = layer(l);
  if (nodes < 1 || ranks() % nodes != 0)
    fail<ConfigError>("{} ranks do not divide by {} nodes", ranks(), nodes);
  const auto num_ranks = static_cast<std::size_t>(ranks());
  std::vector<SlotId> table(static_cast<std::size_t>(experts()) * num_ranks, -1);
  for (ExpertId e = 0; e < experts(); ++e) {
    const std::span<const SlotId> replicas = placement.replicas(e);
    SlotId* const row = table.data() + static_cast<std::size_t>(e) * num_ranks;
    std::vector<int> taken(replicas.size(), 0);
    for (std::size_t i = 0; i < replicas.size(); ++i) {
      SlotId& own = row[placement.rank_of(replicas[i])];
      if (own >= 0) continue;  // a second copy on one rank serves nobody before the others do
      own = replicas[i];
      ++taken[i];
    }
    for (Rank source = 0; source < ranks(); ++source) {
      if (row[source] >= 0) continue;
      const std::size_t chosen =
          choose_replica(replicas, taken, placement, source, ranks() / nodes);
      row[source] = replicas[chosen];
      ++taken[chosen];
    }
  }
  return table;
}

bool operator==(const ExpertPlacement& a, const ExpertPlacement& b) {
  if (a.hash() != b.hash() || a.layers() != b.layers() || a.experts() != b.experts() ||
      a.ranks() != b.ranks()) {
    return false;
  }
  for (int l = 0; l < a.layers(); ++l) {
    const auto x = a.physical_to_logical(l);
    const auto y = b.physical_to_logical(l);
    if (!std::equal(x.begin(), x.end(), y.begin(), y.end())) return false;
  }
  return true;
}

}  // namespace ferry
