#include <algorithm>
#include <limits>
#include <numeric>
#include <queue>
#include <tuple>

#include "ferry/balance/policies.h"
#include "ferry/core/error.h"

namespace ferry {

namespace {

using Index = std::size_t;

struct Replica {
  double load;
  ExpertId expert;
};

/// Ranks that share a set of experts (all of them, or those of a node) while they are filled.
class Packer {
 public:
  Packer(const LayerProblem& p, int ranks)
      : experts_(p.load.size()),
        per_rank_(static_cast<Index>(p.slots_per_rank)),
        load_(static_cast<Index>(ranks), 0.0),
        items_(load_.size()),
        holds_(load_.size() * experts_, 0) {
    for (auto& items : items_) items.reserve(per_rank_);
  }

  /// Heaviest first, to the lightest rank with room that does not hold the expert yet.
  void fill(std::vector<Replica> replicas) {
    std::sort(replicas.begin(), replicas.end(), [](const Replica& a, const Replica& b) {
      return std::tuple(-a.load, a.expert) < std::tuple(-b.load, b.expert);
    });
    for (const Replica& replica : replicas) {
      Index best = load_.size();
      for (Index r = 0; r < load_.size(); ++r) {
        if (items_[r].size() == per_rank_ || held(r, replica.expert)) continue;
        if (best == load_.size() ||
            std::tuple(load_[r], items_[r].size()) < std::tuple(load_[best], items_[best].size()))
          best = r;
      }
      if (best < load_.size())
        put(best, replica);
      else
        make_room(replica);
    }
  }

  /// Exchanges between the most loaded rank and any other, as long as one lowers the larger of the
  /// two loads; each time the one that lowers it most.
  void refine() {
    const double mean =
        std::accumulate(load_.begin(), load_.end(), 0.0) / static_cast<double>(load_.size());
    for (int step = 0; step < kMaxExchanges; ++step) {
      const auto hot =
          static_cast<Index>(std::max_element(load_.begin(), load_.end()) - load_.begin());
      if (load_[hot] <= mean * kEven || !exchange_with(hot)) return;
    }
  }

  const std::vector<Replica>& items(Index rank) const { return items_[rank]; }

 private:
  static constexpr int kMaxExchanges = 64;
  static constexpr double kEven = 1.001;

  bool held(Index rank, ExpertId e) const {
    return holds_[rank * experts_ + static_cast<Index>(e)] != 0;
  }

  void put(Index rank, const Replica& replica) {
    items_[rank].push_back(replica);
    load_[rank] += replica.load;
    holds_[rank * experts_ + static_cast<Index>(replica.expert)] = 1;
  }

  Replica take(Index rank, Index item) {
    const Replica taken = items_[rank][item];
    items_[rank].erase(items_[rank].begin() + static_cast<std::ptrdiff_t>(item));
    load_[rank] -= taken.load;
    holds_[rank * experts_ + static_cast<Index>(taken.expert)] = 0;
    return taken;
  }

  /// All ranks with room hold the expert already: one of them takes something else from a full rank
  /// that does not hold it. Such a pair exists, for an expert has no more replicas than ranks, and
  /// the full rank holds more experts than the other.
  void make_room(const Replica& replica) {
    Index from = load_.size();
    Index to = 0;
    Index item = 0;
    double lowest = std::numeric_limits<double>::infinity();
    for (Index full = 0; full < load_.size(); ++full) {
      if (held(full, replica.expert)) continue;
      for (Index open = 0; open < load_.size(); ++open) {
        if (items_[open].size() == per_rank_) continue;
        for (Index i = 0; i < items_[full].size(); ++i) {
          const Replica& other = items_[full][i];
          if (held(open, other.expert)) continue;
          const double larger =
              std::max(load_[full] - other.load + replica.load, load_[open] + other.load);
          if (larger >= lowest) continue;
          lowest = larger;
          from = full;
          to = open;
          item = i;
        }
      }
    }
    FERRY_CHECK(from < load_.size(), "no rank can take expert {}", replica.expert);
    put(to, take(from, item));
    put(from, replica);
  }

  bool exchange_with(Index hot) {
    double lowest = load_[hot] * (1 - 1e-9);
    Index other = load_.size();
    Index give = 0;
    Index get = 0;  // items_[other].size(): nothing, the replica goes into a free slot
    for (Index r = 0; r < load_.size(); ++r) {
      if (r == hot || load_[r] >= lowest) continue;
      const Index choices = items_[r].size() + (items_[r].size() < per_rank_ ? 1 : 0);
      for (Index i = 0; i < items_[hot].size(); ++i) {
        if (held(r, items_[hot][i].expert)) continue;
        for (Index j = 0; j < choices; ++j) {
          const double back = j < items_[r].size() ? items_[r][j].load : 0;
          const double difference = items_[hot][i].load - back;
          const double larger = std::max(load_[hot] - difference, load_[r] + difference);
          if (larger >= lowest || (j < items_[r].size() && held(hot, items_[r][j].expert)))
            continue;
          lowest = larger;
          other = r;
          give = i;
          get = j;
        }
      }
    }
    if (other == load_.size()) return false;
    const bool both = get < items_[other].size();
    const Replica given = take(hot, give);
    if (both) put(hot, take(other, get));
    put(other, given);
    return true;
  }

  Index experts_;
  Index per_rank_;
  std::vector<double> load_;
  std::vector<std::vector<Replica>> items_;
  std::vector<char> holds_;  // [rank][expert]
};

/// replica_counts, where the slots of each node limit what its experts can have.
std::vector<int> counts_within_nodes(const LayerProblem& p, const std::vector<int>& node_of) {
  const Topology& t = p.topology;
  std::vector<int> room(static_cast<Index>(t.nodes),
                        t.ranks_per_node() * p.slots_per_rank - p.experts() / t.nodes);
  std::vector<int> counts(p.load.size(), 1);
  using Share = std::tuple<double, int, int>;  // load/count, -count, -expert: the largest is next
  std::priority_queue<Share> next;
  for (int e = 0; e < p.experts(); ++e) next.push({p.load[static_cast<Index>(e)], -1, -e});
  for (int left = p.replicas - p.experts(); left > 0 && !next.empty();) {
    const int e = -std::get<2>(next.top());
    next.pop();
    int& count = counts[static_cast<Index>(e)];
    int& space = room[static_cast<Index>(node_of[static_cast<Index>(e)])];
    if (space == 0 || count == t.ranks_per_node()) continue;
    ++count;
    --space;
    --left;
    next.push({p.load[static_cast<Index>(e)] / count, -count, -e});
  }
  return counts;
}

}  // namespace

std::vector<ExpertId> greedy_layer(const LayerProblem& p) {
  const Topology& t = p.topology;
  const int domains = t.hierarchical() ? t.nodes : 1;
  const int ranks = t.ranks / domains;
  std::vector<int> domain_of(p.load.size(), 0);
  if (domains > 1) {
    const GroupPacking packing = pack_groups(p);
    const Index group_size = p.load.size() / static_cast<Index>(t.groups);
    for (Index e = 0; e < p.load.size(); ++e) domain_of[e] = packing.node_of_group[e / group_size];
  }
  const std::vector<int> counts =
      domains > 1 ? counts_within_nodes(p, domain_of) : replica_counts(p.load, p.replicas, t.ranks);
  std::vector<std::vector<Replica>> replicas(static_cast<Index>(domains));
  for (Index e = 0; e < p.load.size(); ++e) {
    const Replica replica{p.load[e] / counts[e], static_cast<ExpertId>(e)};
    std::vector<Replica>& mine = replicas[static_cast<Index>(domain_of[e])];
    mine.insert(mine.end(), static_cast<Index>(counts[e]), replica);
  }
  std::vector<ExpertId> map(static_cast<Index>(p.slots()), -1);
  for (Index domain = 0; domain < replicas.size(); ++domain) {
    Packer packer(p, ranks);
    packer.fill(std::move(replicas[domain]));
    packer.refine();
    for (Index r = 0; r < static_cast<Index>(ranks); ++r) {
      Index slot = (domain * static_cast<Index>(ranks) + r) * static_cast<Index>(p.slots_per_rank);
      for (const Replica& replica : packer.items(r)) map[slot++] = replica.expert;
    }
  }
  return map;
}

}  // namespace ferry
