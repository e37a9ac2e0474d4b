#include "ferry/exchange/relay_plan.h"

#include <algorithm>

namespace ferry {

RelayPlan::RelayPlan(std::span<const int> hosts, Rank own, bool once_per_host)
    : hosts_(hosts.begin(), hosts.end()), own_(own), once_per_host_(once_per_host) {
  std::vector<std::vector<Rank>> ranks_of_host;
  std::vector<std::size_t> place;  // of each rank on its host
  for (Rank r = 0; r < ranks(); ++r) {
    const auto host = static_cast<std::size_t>(hosts_[static_cast<std::size_t>(r)]);
    ranks_of_host.resize(std::max(ranks_of_host.size(), host + 1));
    place.push_back(ranks_of_host[host].size());
    ranks_of_host[host].push_back(r);
  }
  // A host's ranks share what they take: the n-th of one sends to the n-th of another.
  for (Rank home = 0; home < ranks(); ++home) {
    for (Rank to = 0; to < ranks(); ++to) {
      const int host = hosts_[static_cast<std::size_t>(to)];
      const bool relayed = once_per_host && host != hosts_[static_cast<std::size_t>(home)];
      const auto& there = ranks_of_host[static_cast<std::size_t>(host)];
      takers_.push_back(relayed ? there[place[static_cast<std::size_t>(home)] % there.size()] : to);
    }
  }
  for (int i = 1; i <= ranks(); ++i) {  // each begins behind itself, so that not all ask one first
    const Rank r = (own + i) % ranks();
    send_order_.push_back(r);
    if (r != own && is_near(r)) neighbours_.push_back(r);
  }
  const auto distance = [&](Rank r) {
    if (r == own_) return 0;
    if (is_near(r)) return 1;
    return relays(r) ? 2 : 3;
  };
  receive_order_ = send_order_;
  std::stable_sort(receive_order_.begin(), receive_order_.end(), [&](Rank a, Rank b) {
    return distance(a) < distance(b);
  });
  const auto nearness = [&](Rank r) { return r == own_ ? 2 : is_near(r) ? 1 : 0; };
  std::stable_sort(send_order_.begin(), send_order_.end(), [&](Rank a, Rank b) {
    return nearness(a) < nearness(b);
  });
}

}  // namespace ferry
