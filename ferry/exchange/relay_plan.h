// Who takes rows for whom between hosts, so that a token crosses the network once per host: on each
// other host one rank takes a home rank's rows, and its neighbours read them from its memory.
#pragma once

#include <span>
#include <vector>

#include "ferry/core/types.h"

namespace ferry {

class RelayPlan {
 public:
  /// hosts: [ranks] the host of each rank. `once_per_host` false: every rank takes its own rows.
  RelayPlan(std::span<const int> hosts, Rank own, bool once_per_host);

  /// The rank that takes what `home` sends to `to`: `to` itself, or one of its host.
  Rank taker(Rank home, Rank to) const {
    return takers_[static_cast<std::size_t>(home) * static_cast<std::size_t>(ranks()) +
                   static_cast<std::size_t>(to)];
  }

  /// [ranks] takers of what `home` sends, by the rank it is for.
  std::span<const Rank> takers(Rank home) const {
    const auto n = static_cast<std::size_t>(ranks());
    return std::span(takers_).subspan(static_cast<std::size_t>(home) * n, n);
  }

  bool is_near(Rank rank) const {
    return hosts_[static_cast<std::size_t>(rank)] == hosts_[static_cast<std::size_t>(own_)];
  }

  /// Whether this rank takes the rows of `home` for its neighbours as well.
  bool relays(Rank home) const {
    return once_per_host_ && !is_near(home) && taker(home, own_) == own_;
  }

  /// The other ranks of this one's host.
  std::span<const Rank> neighbours() const { return neighbours_; }

  /// All ranks in the order in which to send to them: the slowest link first, this rank last.
  std::span<const Rank> send_order() const { return send_order_; }

  /// And in which to take from them: this rank, its neighbours, those whose rows it relays, the
  /// rest. Ranks that all keep it never wait for each other's relaying in a circle.
  std::span<const Rank> receive_order() const { return receive_order_; }

 private:
  int ranks() const { return static_cast<int>(hosts_.size()); }

  std::vector<int> hosts_;
  Rank own_;
  bool once_per_host_;
  std::vector<Rank> takers_;  // [home][to]
  std::vector<Rank> neighbours_;
  std::vector<Rank> send_order_;
  std::vector<Rank> receive_order_;
};

}  // namespace ferry
