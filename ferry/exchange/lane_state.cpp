#include "ferry/exchange/lane_state.h"

#include "ferry/core/error.h"

namespace ferry {

namespace {

/// A rank that dies would take along what it relays, so where ranks are masked each gets its own
/// rows; and who sends a row for each expert does not send one for each host.
bool sends_once_per_host(const ExchangeOptions& exchange) {
  return exchange.on_dead_rank == ExchangeOptions::OnDeadRank::fail &&
         exchange.send_per != ExchangeOptions::SendPer::token_expert;
}

RelayPlan plan_relays(const ExchangeOptions& exchange, const Transport& transport) {
  std::vector<int> hosts;
  for (Rank r = 0; r < transport.size(); ++r) hosts.push_back(transport.host_of(r));
  return {hosts, transport.rank(), sends_once_per_host(exchange)};
}

}  // namespace

LaneState::LaneState(const DispatcherOptions& o, const Transport& transport)
    : options(o),
      rank(transport.rank()),
      known_rank(transport.known_as(rank)),
      ranks(transport.size()),
      pull(transport.capabilities().load_store),
      relays(plan_relays(o.exchange, transport)),
      // Members of a group that spans hosts would want other sums.
      host_sums(sums_per_rank() && sends_once_per_host(o.exchange) && o.tp == 1),
      layout(options, ranks, pull),
      built_send_plans(
          static_cast<std::size_t>(o.tp),
          SendPlan(ranks, o.slots_per_rank, o.topk, o.max_tokens, relays.takers(rank))),
      built_receive_plan({.ranks = o.exchange.hidden_partition ? 1 : ranks,
                          .slots_per_rank = o.slots_per_rank,
                          .format = o.exchange.format,
                          .slot_capacity = layout.slot_capacity,
                          .alignment = o.row_alignment,
                          .max_records = layout.max_records,
                          .first_home = source_of(rank)}),
      timeout(o.timeout),
      sources(static_cast<std::size_t>(ranks)) {}

std::string LaneState::where() const {
  return fmt::format("{} of rank {} (layer {}, exchange {})", phase, known_rank, layer, epoch);
}

}  // namespace ferry
