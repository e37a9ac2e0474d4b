// What all parts of a lane know: its options and layout, and the exchange in progress.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "ferry/dispatcher.h"
#include "ferry/exchange/dispatch_plan.h"
#include "ferry/exchange/exchange_layout.h"
#include "ferry/exchange/kept_routing.h"
#include "ferry/exchange/relay_plan.h"
#include "ferry/transport.h"

namespace ferry {

/// One lane's. Written by the steps of the exchange, which run one after the other.
struct LaneState {
  /// REQUIRES: options that have been checked.
  LaneState(const DispatcherOptions& options, const Transport& transport);

  // Ranks that hold the same tokens by rows: the first of this one's group.
  Rank base_of(Rank of) const { return of / options.tp * options.tp; }

  /// Of its group, counted from its base.
  std::size_t member_of(Rank of) const { return static_cast<std::size_t>(of - base_of(of)); }

  /// The member that sends a token.
  std::size_t share_of(std::size_t token) const {
    return token % static_cast<std::size_t>(options.tp);
  }

  /// The rank whose message says where the rows of `home` stand.
  Rank source_of(Rank home) const { return options.exchange.hidden_partition ? 0 : home; }

  bool sums_per_rank() const {
    return options.exchange.reduce_at == ExchangeOptions::ReduceAt::rank_then_home;
  }

  /// Whether this host's sums for `home` leave as one.
  bool sums_per_host(Rank home) const {
    return host_sums && !relays.is_near(home) && !relays.neighbours().empty();
  }

  bool masks() const { return options.exchange.on_dead_rank == ExchangeOptions::OnDeadRank::mask; }

  const std::vector<SendPlan>& send_plans() const {
    return kept != nullptr ? kept->send_plans : built_send_plans;
  }

  const SendPlan& own_plan() const { return send_plans()[member_of(rank)]; }

  const ReceivePlan& receive_plan() const {
    return kept != nullptr ? kept->receive_plan : built_receive_plan;
  }

  /// What this rank is doing, for messages.
  std::string where() const;

  const DispatcherOptions options;
  const Rank rank;
  const Rank known_rank;  // as errors name it
  const int ranks;
  const bool pull;  // all peers' memory can be read, so that nothing is pushed
  const RelayPlan relays;
  const bool host_sums;  // sums of a host's ranks are added up before they cross the network
  const ExchangeLayout layout;

  // The exchange in progress.
  std::vector<SendPlan> built_send_plans;  // [tp]: of each member's share of the tokens
  ReceivePlan built_receive_plan;
  const KeptRouting* kept = nullptr;  // instead of the plans, in this exchange
  std::uint64_t epoch = 0;
  int tokens = 0;  // of this rank's group
  int layer = -1;
  std::string_view phase = "idle";
  Deadline deadline = kNoDeadline;  // of the phase
  std::chrono::nanoseconds timeout;
  int chunks_of_all = 1;
  ExchangeStats stats;
  std::vector<SourceStats> sources;  // [R]
};

}  // namespace ferry
