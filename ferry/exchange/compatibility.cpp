#include "ferry/exchange/compatibility.h"

#include "ferry/core/error.h"

namespace ferry {

namespace {

using ReduceAt = ExchangeOptions::ReduceAt;
using OnDeadRank = ExchangeOptions::OnDeadRank;
using Pipeline = ExchangeOptions::Pipeline;

bool takes(const ExpertsContract& experts, DispatchFormat format) {
  switch (format) {
    case DispatchFormat::padded:
      return experts.padded;
    case DispatchFormat::ragged:
      return experts.ragged;
    case DispatchFormat::row_pointers:
      return experts.row_pointers;
  }
  return false;
}

void check_wires(const DispatcherOptions& o) {
  if (o.expert_type != o.dispatch_wire && is_quantized(o.expert_type)) {
    fail<ConfigError>(
        "experts take {} rows but {} travels; quantised rows are delivered only as they travelled",
        wire_type_name(o.expert_type),
        wire_type_name(o.dispatch_wire));
  }
  if (o.exchange.format == DispatchFormat::row_pointers && o.expert_type != o.dispatch_wire) {
    fail<ConfigError>(
        "experts that read {} rows in place cannot take a {} wire; use the same type "
        "or a backend that copies rows",
        wire_type_name(o.expert_type),
        wire_type_name(o.dispatch_wire));
  }
}

void check_hidden_partition(const DispatcherOptions& o, int ranks) {
  const ExchangeOptions& e = o.exchange;
  if (o.hidden % ranks != 0)
    fail<ConfigError>("hidden_partition: H {} does not divide by {} ranks", o.hidden, ranks);
  if (o.columns_of_results() != o.hidden)
    fail<ConfigError>("hidden_partition returns whole rows; result_columns must be 0");
  if (o.tp != 1)
    fail<ConfigError>("hidden_partition is for tokens that all ranks hold; tp must be 1");
  if (e.format == DispatchFormat::row_pointers)
    fail<ConfigError>(
        "hidden_partition puts rows together from all ranks; they cannot be read in place "
        "(use padded or ragged)");
  if (e.reduce_at != ReduceAt::home)
    fail<ConfigError>("hidden_partition combines per expert; use alltoallv or pplx");
  if (e.on_dead_rank == OnDeadRank::mask)
    fail<ConfigError>(
        "hidden_partition: every rank holds a part of every token, so no rank can be masked");
  if (is_quantized(o.expert_type) || is_quantized(o.combine_wire))
    fail<ConfigError>(
        "hidden_partition cuts rows into columns, but a quantised row keeps its scales in one "
        "place; let experts take and results travel as f32 or bf16");
}

}  // namespace

std::optional<std::string> why_not(const ExchangeOptions& exchange,
                                   const ExpertsContract& experts) {
  if (!takes(experts, exchange.format)) {
    return fmt::format("{} cannot read {} rows; use a backend or --layout that hands them another",
                       experts.name,
                       format_name(exchange.format));
  }
  if (exchange.pipeline == Pipeline::tiles && !experts.in_tiles) {
    return fmt::format(
        "{} must see all rows of an exchange at once, and this backend hands them over tile by "
        "tile",
        experts.name);
  }
  return std::nullopt;
}

void check_experts(const ExchangeOptions& exchange, const ExpertsContract& experts) {
  if (const auto reason = why_not(exchange, experts)) fail<ConfigError>("{}", *reason);
}

void check_options(const DispatcherOptions& o, int ranks) {
  FERRY_CHECK(
      o.slots_per_rank >= 1 && o.hidden >= 1 && o.topk >= 1 && o.max_tokens >= 1 &&
          o.row_alignment >= 1 && o.tp >= 1 && o.result_columns >= 0 &&
          o.result_columns <= o.hidden,
      "dispatcher for {} slots per rank, H {} ({} of results), top-{}, {} tokens, alignment "
      "{}, tp {}",
      o.slots_per_rank,
      o.hidden,
      o.result_columns,
      o.topk,
      o.max_tokens,
      o.row_alignment,
      o.tp);
  if (ranks % o.tp != 0) fail<ConfigError>("{} ranks do not make groups of tp {}", ranks, o.tp);
  check_wires(o);
  if (o.exchange.hidden_partition) check_hidden_partition(o, ranks);
  if (o.exchange.pipeline == Pipeline::tiles && o.exchange.reduce_at != ReduceAt::home)
    fail<ConfigError>("results can leave tile by tile only where they combine per expert");
}

void check_placement(const DispatcherOptions& o, const Placement& placement) {
  const bool alike = o.exchange.hidden_partition ? placement.same_on_all_ranks()
                                                 : placement.same_in_groups_of(o.tp);
  if (!alike) {
    fail<ConfigError>(
        "ranks that hold the same tokens must choose the same replicas: in the replica choice no "
        "source rank with hidden_partition, none or groups of members with tp {}",
        o.tp);
  }
}

void check_survives_deaths(const DispatcherOptions& options, const Transport& transport) {
  if (options.exchange.on_dead_rank != OnDeadRank::mask || transport.size() == 1 ||
      transport.capabilities().survives_peer_death)
    return;
  fail<ConfigError>(
      "transport {} ends all ranks when one dies, so none can be masked; use a backend that does "
      "not mask, or another transport",
      transport.name());
}

}  // namespace ferry
