#include "ferry/moe/placement.h"

#include <string>

#include "ferry/core/error.h"

namespace ferry {

namespace {

/// Spreads (token, k) over replicas. A plain `index % count` would send every token to the same
/// replica where the count divides K.
std::uint32_t mix(std::uint32_t token, std::uint32_t k) {
  std::uint32_t h = token * 0x9E3779B1U + k * 0x85EBCA77U + 0x165667B1U;
  h ^= h >> 15;
  h *= 0x2C1B3C6DU;
  h ^= h >> 12;
  h *= 0x297A2D39U;
  h ^= h >> 15;
  return h;
}

}  // namespace

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
}

void Placement::place(std::span<const ExpertId> experts, int topk, std::span<SlotId> slots) const {
  FERRY_CHECK(experts.size() == slots.size(), "{} ids, {} slots", experts.size(), slots.size());
  for (std::size_t i = 0; i < experts.size(); ++i) {
    if (experts[i] < 0) {
      slots[i] = -1;
      continue;
    }
    const std::span<const SlotId> choices = replicas(experts[i]);
    const auto token = static_cast<std::uint32_t>(i / static_cast<std::size_t>(topk));
    const auto k = static_cast<std::uint32_t>(i % static_cast<std::size_t>(topk));
    slots[i] = choices.size() == 1 ? choices[0] : choices[mix(token, k) % choices.size()];
  }
}

}  // namespace ferry
