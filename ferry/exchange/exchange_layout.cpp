#include "ferry/exchange/exchange_layout.h"

#include <algorithm>

#include "ferry/dispatcher.h"

namespace ferry {

namespace {

constexpr std::size_t kPage = 4096;
constexpr std::size_t kLine = 64;

std::size_t aligned(std::size_t bytes, std::size_t unit) {
  return (bytes + unit - 1) / unit * unit;
}

}  // namespace

ExchangeLayout::ExchangeLayout(const DispatcherOptions& o, int ranks, bool load_store) {
  const auto num_ranks = static_cast<std::size_t>(ranks);
  const auto slots = static_cast<std::size_t>(o.slots_per_rank);
  const auto tokens = static_cast<std::size_t>(o.max_tokens);
  const auto tp = static_cast<std::size_t>(o.tp);
  const auto per_slot = static_cast<std::size_t>(std::min(o.topk, o.slots_per_rank));
  // A token has at most one record for a slot, and one member of its group sends it.
  max_records = (tokens + tp - 1) / tp * per_slot;
  const std::size_t entries = tokens * static_cast<std::size_t>(o.topk);
  const bool sums = o.exchange.reduce_at == ExchangeOptions::ReduceAt::rank_then_home;

  const int of_results = o.columns_of_results();
  columns = o.exchange.hidden_partition ? o.hidden / ranks : o.hidden;
  result_columns = o.exchange.hidden_partition ? columns : of_results;
  dispatch_row_bytes = wire_row_bytes(o.dispatch_wire, columns);
  expert_row_bytes = wire_row_bytes(o.expert_type, o.hidden);
  output_row_bytes = static_cast<std::size_t>(of_results) * dtype_bytes(o.output_type());
  combine_row_bytes = wire_row_bytes(o.combine_wire, of_results);
  combine_slice_bytes = wire_row_bytes(o.combine_wire, result_columns);
  dispatch_message_bytes = aligned(sizeof(DispatchHeader) + max_records * sizeof(Record) +
                                       (sums ? entries * sizeof(ReduceEntry) : 0) +
                                       (o.row_weights ? max_records * sizeof(float) : 0),
                                   kLine);
  combine_message_bytes =
      aligned(sizeof(CombineHeader) + tp * (slots + 1) * sizeof(std::int64_t), kLine);
  // Ranks that share their tokens, by rows or by columns, have one copy of each between them.
  const std::size_t holders = o.exchange.hidden_partition ? 1 : num_ranks / tp;
  slot_capacity = static_cast<std::int64_t>(holders * tokens);
  const std::size_t sources = o.exchange.hidden_partition ? 1 : num_ranks;
  expert_rows =
      o.exchange.format == DispatchFormat::padded
          ? slot_capacity * o.slots_per_rank
          : static_cast<std::int64_t>(sources * max_records) + o.row_alignment * o.slots_per_rank;

  dispatch_slab_rows =
      o.exchange.send_per == ExchangeOptions::SendPer::token_expert ? max_records : tokens;
  combine_slab_rows = sums ? tokens : max_records;

  const auto take = [this](std::size_t size, std::size_t unit) {
    const std::size_t offset = aligned(bytes, unit);
    bytes = offset + size;
    return offset;
  };
  dispatch_inbox = take(num_ranks * dispatch_message_bytes, kLine);
  dispatch_outbox = take(num_ranks * dispatch_message_bytes, kLine);
  combine_inbox = take(num_ranks * combine_message_bytes, kLine);
  combine_outbox = take(num_ranks * combine_message_bytes, kLine);
  stage = take(tokens * dispatch_row_bytes, kPage);
  results =
      take((sums ? num_ranks * tokens : static_cast<std::size_t>(expert_rows)) * combine_row_bytes,
           kPage);
  if (!load_store) {
    dispatch_slab = take(num_ranks * dispatch_slab_rows * dispatch_row_bytes, kPage);
    combine_slab = take(num_ranks * tp * combine_slab_rows * combine_slice_bytes, kPage);
    if (sums) {
      has_sum = take(num_ranks * tokens, kPage);
      has_host_sum = take(num_ranks * tokens, kPage);
      host_sums = take(num_ranks * tokens * combine_row_bytes, kPage);
    }
  }
  bytes = aligned(bytes, kPage);
}

}  // namespace ferry
