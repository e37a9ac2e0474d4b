#include "ferry/placement.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "ferry/core/error.h"
#include "ferry/core/types.h"

namespace ferry {

namespace {

constexpr double kHashes = 4294967296.0;
/// One less than 32 bits could hold, so that an interval can end behind it.
constexpr std::uint32_t kLastHash = 0xFFFFFFFEU;

constexpr std::array kRules{ReplicaRule::hash, ReplicaRule::nearest, ReplicaRule::weighted};

std::uint32_t mix(std::uint32_t token, std::uint32_t k, std::uint32_t salt) {
  std::uint32_t h = token * 0x9E3779B1U + k * 0x85EBCA77U + salt * 0xC2B2AE3DU + 0x165667B1U;
  h ^= h >> 15;
  h *= 0x2C1B3C6DU;
  h ^= h >> 12;
  h *= 0x297A2D39U;
  h ^= h >> 15;
  return std::min(h, kLastHash);
}

/// What each replica takes of its expert's tokens, adding up to 1.
std::vector<double> parts_of(std::span<const SlotId> replicas, std::span<const float> shares) {
  std::vector<double> parts(replicas.size(), 1.0);
  double sum = 0;
  for (const SlotId slot : replicas)
    sum += shares.empty() ? 0 : static_cast<double>(shares[static_cast<std::size_t>(slot)]);
  for (std::size_t i = 0; i < parts.size(); ++i) {
    parts[i] = sum > 0 ? static_cast<double>(shares[static_cast<std::size_t>(replicas[i])]) / sum
                       : 1.0 / static_cast<double>(parts.size());
  }
  return parts;
}

/// Tokens that flow from ranks, each of which has equally many, to the replicas of one expert, each
/// as far as its part goes: own replicas first, then those of the node, then any; ranks and
/// replicas in order. Every rank works out the flow of all, so what they take fits together. Ranks
/// on nodes without a replica are all alike and only counted.
class NearestFlow {
 public:
  NearestFlow(std::vector<double> parts,
              std::span<const SlotId> replicas,
              const Placement& placement,
              const ReplicaChoice& choice)
      : parts_(std::move(parts)),
        replicas_(replicas),
        placement_(placement),
        source_(choice.source),
        // Where all share a node, its replicas are any.
        ranks_per_node_(choice.nodes == 1 ? 1 : placement.ranks() / choice.nodes),
        of_rank_(1.0 / placement.ranks()),
        own_left_(of_rank_),
        untouched_before_(choice.source),
        mine_(parts_.size(), 0.0) {}

  /// What each replica takes of the source's tokens.
  std::vector<double> run() {
    for (std::size_t i = 0; i < parts_.size();) i = flow_on_node(i);
    flow_anywhere();
    return std::move(mine_);
  }

 private:
  Rank rank_of(std::size_t replica) const { return placement_.rank_of(replicas_[replica]); }

  void flow(Rank from, double& tokens, std::size_t to) {
    const double flow = std::min(tokens, parts_[to]);
    tokens -= flow;
    parts_[to] -= flow;
    if (from == source_) mine_[to] += flow;
  }

  /// Replicas are in order of their ranks; returns the first behind those of this one's node.
  std::size_t flow_on_node(std::size_t first) {
    const Rank begin = rank_of(first) / ranks_per_node_ * ranks_per_node_;
    const Rank end = begin + ranks_per_node_;
    left_.assign(static_cast<std::size_t>(ranks_per_node_), of_rank_);
    const auto left = [&](Rank r) -> double& { return left_[static_cast<std::size_t>(r - begin)]; };
    std::size_t last = first;
    for (; last < parts_.size() && rank_of(last) < end; ++last)
      flow(rank_of(last), left(rank_of(last)), last);
    std::size_t open = first;
    for (Rank from = begin; from < end; ++from) {
      while (left(from) > 0 && open < last) {
        flow(from, left(from), open);
        if (left(from) > 0) ++open;
      }
      if (from == source_) own_left_ = left(from);
      if (from < source_) {
        --untouched_before_;
        left_before_ += left(from);
      }
    }
    return last;
  }

  /// What ranks before the source have left fills the parts that are left, one after the other; the
  /// source goes on where that ends.
  void flow_anywhere() {
    const double begin = left_before_ + untouched_before_ * of_rank_;
    const double end = begin + own_left_;
    double from = 0;
    for (std::size_t i = 0; i < parts_.size() && from < end; ++i) {
      const double to = from + parts_[i];
      mine_[i] += std::max(0.0, std::min(end, to) - std::max(begin, from));
      from = to;
    }
  }

  std::vector<double> parts_;  // that replicas have left
  std::span<const SlotId> replicas_;
  const Placement& placement_;
  const Rank source_;
  const int ranks_per_node_;
  const double of_rank_;      // tokens
  double own_left_;           // of the source's
  double left_before_ = 0;    // of those of ranks before it, on nodes with a replica
  int untouched_before_;      // ranks before it on other nodes
  std::vector<double> left_;  // of each rank of the node in hand
  std::vector<double> mine_;
};

}  // namespace

ReplicaRule parse_replica_rule(std::string_view name) {
  for (const ReplicaRule rule : kRules)
    if (replica_rule_name(rule) == name) return rule;
  fail<ConfigError>("unknown replica choice \"{}\": use one of {}", name, kReplicaRuleNames);
}

std::string_view replica_rule_name(ReplicaRule rule) {
  switch (rule) {
    case ReplicaRule::hash:
      return "hash";
    case ReplicaRule::nearest:
      return "nearest";
    case ReplicaRule::weighted:
      return "weighted";
  }
  return "";
}

Placement Placement::identity(int experts, int ranks, int redundant) {
  FERRY_CHECK(experts >= 1 && ranks >= 1 && redundant >= 0,
              "{} experts, {} ranks, {} redundant",
              experts,
              ranks,
              redundant);
  const int filled = experts + redundant;
  std::vector<ExpertId> map(static_cast<std::size_t>(round_up(filled, ranks)), -1);
  for (int slot = 0; slot < filled; ++slot) map[static_cast<std::size_t>(slot)] = slot % experts;
  return {std::move(map), experts, ranks};
}

Placement::Placement(std::vector<ExpertId> expert_of_slot, int experts, int ranks)
    : experts_(experts), ranks_(ranks), expert_of_slot_(std::move(expert_of_slot)) {
  if (slots() == 0 || slots() % ranks != 0)
    fail<ConfigError>("placement: {} slots do not divide by {} ranks", slots(), ranks);
  first_replica_.assign(static_cast<std::size_t>(experts) + 1, 0);
  for (const ExpertId e : expert_of_slot_) {
    if (e < -1 || e >= experts)
      fail<ConfigError>("placement: expert {} is outside 0..{}", e, experts - 1);
    if (e >= 0) ++first_replica_[static_cast<std::size_t>(e) + 1];
  }
  for (std::size_t e = 0; e < static_cast<std::size_t>(experts); ++e) {
    if (first_replica_[e + 1] == 0) fail<ConfigError>("placement: expert {} has no slot", e);
    first_replica_[e + 1] += first_replica_[e];
  }
  slots_of_expert_.resize(first_replica_.back());
  std::vector<std::size_t> next(first_replica_.begin(), first_replica_.end() - 1);
  for (SlotId slot = 0; slot < slots(); ++slot) {
    if (const ExpertId e = expert_of(slot); e >= 0)
      slots_of_expert_[next[static_cast<std::size_t>(e)]++] = slot;
  }
  divide({});
}

Placement Placement::choosing(const ReplicaChoice& choice) const {
  if (!choice.shares.empty() && choice.shares.size() != expert_of_slot_.size())
    fail<ConfigError>("{} shares for {} slots", choice.shares.size(), slots());
  for (const float share : choice.shares) {
    if (!std::isfinite(share) || share < 0)
      fail<ConfigError>("a slot's share is {}: must be finite and not negative", share);
  }
  if (choice.source < -1 || choice.source >= ranks_)
    fail<ConfigError>("source {} is not a rank of {}", choice.source, ranks_);
  if (choice.nearest && choice.source < 0)
    fail<ConfigError>("the nearest replica needs a source rank");
  if (choice.nodes < 1 || ranks_ % choice.nodes != 0)
    fail<ConfigError>("{} ranks do not divide by {} nodes", ranks_, choice.nodes);
  if (choice.tp < 1 || ranks_ % choice.tp != 0)
    fail<ConfigError>("{} ranks do not divide by groups of {}", ranks_, choice.tp);
  Placement result = *this;
  ReplicaChoice of_group = choice;
  if (choice.source >= 0) of_group.source = choice.source / choice.tp * choice.tp;
  result.divide(of_group);
  return result;
}

void Placement::divide(const ReplicaChoice& choice) {
  salt_ = static_cast<std::uint32_t>(choice.source + 1);
  tp_ = choice.tp;
  until_.assign(slots_of_expert_.size(), 0);
  for (ExpertId e = 0; e < experts_; ++e) {
    const std::span<const SlotId> choices = replicas(e);
    std::uint32_t* const until = until_.data() + first_replica_[static_cast<std::size_t>(e)];
    if (choices.size() == 1) continue;
    std::vector<double> parts = parts_of(choices, choice.shares);
    if (choice.nearest) parts = NearestFlow(std::move(parts), choices, *this, choice).run();
    double all = 0;
    for (const double part : parts) all += part;
    double before = 0;
    for (std::size_t i = 0; i < parts.size(); ++i) {
      before += parts[i];
      until[i] = static_cast<std::uint32_t>(std::min(before / all * kHashes, kHashes - 1));
    }
  }
}

double Placement::part(ExpertId expert, std::size_t replica) const {
  const std::size_t first = first_replica_[static_cast<std::size_t>(expert)];
  const std::size_t last = first_replica_[static_cast<std::size_t>(expert) + 1] - 1;
  const double from = replica == 0 ? 0 : until_[first + replica - 1];
  return ((first + replica == last ? kHashes : until_[first + replica]) - from) / kHashes;
}

std::vector<float> Placement::shares() const {
  std::vector<float> shares(expert_of_slot_.size(), 0.0F);
  for (ExpertId e = 0; e < experts_; ++e) {
    const std::span<const SlotId> slots = replicas(e);
    for (std::size_t i = 0; i < slots.size(); ++i)
      shares[static_cast<std::size_t>(slots[i])] = static_cast<float>(part(e, i));
  }
  return shares;
}

void Placement::place(std::span<const ExpertId> experts,
                      int topk,
                      std::span<SlotId> slots,
                      std::uint32_t turn) const {
  const std::uint32_t salt = salt_ + turn * 0x632BE5ABU;
  FERRY_CHECK(experts.size() == slots.size(), "{} ids, {} slots", experts.size(), slots.size());
  for (std::size_t i = 0; i < experts.size(); ++i) {
    if (experts[i] < 0) {
      slots[i] = -1;
      continue;
    }
    const std::span<const SlotId> choices = replicas(experts[i]);
    const std::uint32_t* const until =
        until_.data() + first_replica_[static_cast<std::size_t>(experts[i])];
    const auto token = static_cast<std::uint32_t>(i / static_cast<std::size_t>(topk));
    const auto k = static_cast<std::uint32_t>(i % static_cast<std::size_t>(topk));
    const std::uint32_t hash = choices.size() == 1 ? 0 : mix(token, k, salt);
    std::size_t chosen = 0;
    for (std::size_t r = 0; r + 1 < choices.size(); ++r) chosen += hash >= until[r] ? 1 : 0;
    slots[i] = choices[chosen];
  }
}

}  // namespace ferry
