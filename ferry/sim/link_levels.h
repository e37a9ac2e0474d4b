// Which links join which ranks of a cluster.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "ferry/core/types.h"

namespace ferry {

/// Links by how far they reach: 0 is a rank's own memory, 1 its host, then networks.
inline constexpr std::size_t kMaxLinkLevels = 5;
inline constexpr std::size_t kOwnLevel = 0;
inline constexpr std::size_t kHostLevel = 1;

/// Which level joins two ranks: equal runs of consecutive ranks are joined, the first of hosts.
class LinkLevels {
 public:
  /// spans: ranks that each level from the host's on joins, rising; the last joins all. Throws
  /// ConfigError for spans that are not multiples of each other or do not divide the ranks.
  LinkLevels(int ranks, std::span<const int> spans);

  int ranks() const { return ranks_; }

  /// With the level of a rank's own memory.
  std::size_t levels() const { return spans_.size() + 1; }

  int ranks_per_host() const { return spans_.front(); }

  int host_of(Rank rank) const { return rank / ranks_per_host(); }

  bool near(Rank a, Rank b) const { return host_of(a) == host_of(b); }

  std::size_t between(Rank a, Rank b) const;

  /// Of every `stride`-th rank. Throws ConfigError where hosts have no whole runs of so many.
  LinkLevels track(int stride) const;

 private:
  int ranks_;
  std::vector<int> spans_;
};

}  // namespace ferry
