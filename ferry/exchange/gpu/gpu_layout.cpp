#include "ferry/exchange/gpu/gpu_layout.h"

#include <algorithm>

#include "ferry/dispatcher.h"

namespace ferry::gpu {

GpuLayout::GpuLayout(const DispatcherOptions& o, int num_ranks)
    : ranks(num_ranks),
      slots(o.slots_per_rank),
      topk(o.topk),
      max_tokens(o.max_tokens),
      tp(o.tp),
      list_tokens((o.max_tokens + o.tp - 1) / o.tp),
      hidden(o.hidden),
      column_ranks(o.exchange.hidden_partition ? num_ranks : 1),
      columns(o.hidden / column_ranks),
      result_columns(o.columns_of_results() / column_ranks),
      dispatch_wire(o.dispatch_wire),
      expert_type(o.expert_type),
      combine_wire(o.combine_wire),
      output_type(o.output_type()),
      padded(o.exchange.format == DispatchFormat::padded),
      pointers(o.exchange.format == DispatchFormat::row_pointers),
      row_weights(o.row_weights),
      masks(o.exchange.on_dead_rank == ExchangeOptions::OnDeadRank::mask),
      sums(o.exchange.reduce_at == ExchangeOptions::ReduceAt::rank_then_home),
      slot_capacity(std::int64_t{sources()} * list_tokens),
      alignment(o.row_alignment),
      dispatch_row_bytes(static_cast<std::int64_t>(wire_row_bytes(o.dispatch_wire, columns))),
      expert_row_bytes(static_cast<std::int64_t>(wire_row_bytes(o.expert_type, o.hidden))),
      input_row_bytes(pointers ? static_cast<std::int64_t>(sizeof(std::byte*)) : expert_row_bytes),
      output_row_bytes(o.columns_of_results() *
                       static_cast<std::int64_t>(dtype_bytes(o.output_type()))),
      combine_row_bytes(
          static_cast<std::int64_t>(wire_row_bytes(o.combine_wire, o.columns_of_results()))) {
  const auto lists = static_cast<std::size_t>(ranks) * static_cast<std::size_t>(slots);
  const auto tokens_of_list = static_cast<std::size_t>(list_tokens);
  share_results = std::int64_t{list_tokens} * std::min(topk, slots);
  const std::int64_t records = sources() * share_results;
  expert_rows = padded ? slot_capacity * slots : records + alignment * slots;
  GpuPlaces part;
  signals = part.take(kGpuSignals * static_cast<std::size_t>(ranks) * sizeof(std::uint64_t));
  counts = part.take(lists * sizeof(std::uint32_t));
  tokens = part.take(lists * tokens_of_list * sizeof(std::uint32_t));
  weights = part.take(row_weights ? lists * tokens_of_list * sizeof(float) : 0);
  result_rows = part.take(static_cast<std::size_t>(tp) * lists * sizeof(std::uint32_t));
  homes_tokens = part.take(sums ? static_cast<std::size_t>(ranks) * sizeof(std::uint32_t) : 0);
  const std::size_t routed = sums ? static_cast<std::size_t>(max_tokens * topk) : 0;
  routed_slots = part.take(routed * sizeof(SlotId));
  routed_places = part.take(routed * sizeof(std::uint32_t));
  routed_weights = part.take(routed * sizeof(float));
  stage = part.take(static_cast<std::size_t>(max_tokens * dispatch_row_bytes));
  results =
      part.take(static_cast<std::size_t>((sums ? slot_capacity : expert_rows) * combine_row_bytes));
  part_bytes = part.end();
}

GpuLink GpuLayout::link(std::byte* part, int source) const {
  // An array of all ranks', `each` elements a rank.
  const auto array = [&]<class T>(T*& to, std::size_t offset, std::int64_t each) {
    to = reinterpret_cast<T*>(part + offset) + source * each;
  };
  GpuLink link;
  array(link.signals, signals, kGpuSignals);
  array(link.counts, counts, slots);
  array(link.tokens, tokens, std::int64_t{slots} * list_tokens);
  array(link.weights, weights, row_weights ? std::int64_t{slots} * list_tokens : 0);
  array(link.result_rows, result_rows, std::int64_t{tp} * slots);
  array(link.num_tokens, homes_tokens, sums ? 1 : 0);
  return link;
}

GpuSource GpuLayout::source(std::byte* part, const GpuLink& told) const {
  return {.told = told,
          .stage = part + stage,
          .results = part + results,
          .num_results = static_cast<std::uint32_t>(sums ? slot_capacity : expert_rows),
          .slots = reinterpret_cast<const SlotId*>(part + routed_slots),
          .places = reinterpret_cast<const std::uint32_t*>(part + routed_places),
          .weights = reinterpret_cast<const float*>(part + routed_weights)};
}

}  // namespace ferry::gpu
