#include "ferry/exchange/result_sender.h"

#include <algorithm>

namespace ferry {

/// Experts write straight into the results, which peers read or which are pushed; unless what
/// leaves is a sum of theirs, or quantised.
std::size_t ResultSender::memory_bytes(const DispatcherOptions& options,
                                       const ExchangeLayout& layout) {
  const bool leaves_as_written = options.exchange.reduce_at == ExchangeOptions::ReduceAt::home &&
                                 !is_quantized(options.combine_wire);
  return leaves_as_written ? 0
                           : static_cast<std::size_t>(layout.expert_rows) * layout.output_row_bytes;
}

ResultSender::ResultSender(LaneState& lane,
                           PeerLink& link,
                           const DispatchMessages& messages,
                           CombineMessages& combined,
                           DataPlane& plane)
    : lane_(lane),
      link_(link),
      messages_(messages),
      combined_(combined),
      plane_(plane),
      output_(plane.allocate(memory_bytes(lane.options, lane.layout), /*sparse=*/true)),
      sums_(lane, link, messages, plane, output_->data()),
      puts_(static_cast<std::size_t>(lane.ranks)) {}

MutableRowsView ResultSender::output() const {
  return {output_->data() != nullptr ? output_->seen() : link_.at<std::byte>(lane_.layout.results),
          static_cast<std::ptrdiff_t>(lane_.layout.output_row_bytes)};
}

void ResultSender::begin() {
  finished_slots_ = 0;
  std::fill(puts_.begin(), puts_.end(), 0U);
}

void ResultSender::finish(std::size_t end_slot) {
  const std::size_t first_slot = finished_slots_;
  finished_slots_ = end_slot;
  if (lane_.sums_per_rank()) return;  // sums leave, not rows
  if (is_quantized(lane_.options.combine_wire)) encode(first_slot, end_slot);
  for (const Rank home : lane_.relays.send_order())
    if (!link_.is_masked(home) && !link_.reads(home)) push(home, first_slot, end_slot);
}

void ResultSender::send() {
  finish(static_cast<std::size_t>(lane_.options.slots_per_rank));
  if (lane_.sums_per_rank()) sums_.send(puts_);
  for (const Rank home : lane_.relays.send_order())
    if (!link_.is_masked(home)) combined_.send(home, puts_[static_cast<std::size_t>(home)]);
}

void ResultSender::encode(std::size_t first_slot, std::size_t end_slot) {
  const ReceivePlan& plan = lane_.receive_plan();
  plane_.encode({.from = output_->data(),
                 .from_bytes = lane_.layout.output_row_bytes,
                 .type = lane_.options.output_type(),
                 .to = link_.at<std::byte>(lane_.layout.results),
                 .to_bytes = lane_.layout.combine_row_bytes,
                 .wire = lane_.options.combine_wire,
                 .columns = lane_.options.columns_of_results(),
                 .counts = plan.counts().subspan(first_slot, end_slot - first_slot),
                 .offsets = plan.offsets().subspan(first_slot, end_slot - first_slot)});
}

/// The results of `home`'s group, of each member's tokens: all members get all of them.
void ResultSender::push(Rank home, std::size_t first_slot, std::size_t end_slot) {
  const auto h = static_cast<std::size_t>(home);
  const auto me = static_cast<std::size_t>(lane_.rank);
  const auto tp = static_cast<std::size_t>(lane_.options.tp);
  const ExchangeLayout& layout = lane_.layout;
  const std::size_t slice = layout.combine_slice_bytes;
  const bool columns = lane_.options.exchange.hidden_partition;
  RowPushes pushes(link_, home, slice, ExchangeSignal::combine_rows);
  for (std::size_t share = 0; share < tp; ++share) {
    const Rank source = lane_.source_of(lane_.base_of(home) + static_cast<Rank>(share));
    const std::span<const std::uint32_t> counts = messages_.of(source).counts;
    const std::span<const std::int64_t> first_rows = lane_.receive_plan().first_rows(source);
    std::size_t result = 0;
    for (std::size_t slot = 0; slot < first_slot; ++slot) result += counts[slot];
    const std::size_t slab =
        layout.combine_slab + (me * tp + share) * layout.combine_slab_rows * slice;
    for (std::size_t slot = first_slot; slot < end_slot; ++slot) {
      const std::size_t rows = counts[slot];
      const std::size_t to = slab + result * slice;
      const std::size_t from =
          layout.results + static_cast<std::size_t>(first_rows[slot]) * layout.combine_row_bytes;
      if (!columns) pushes.add(to, from, rows);
      for (std::size_t i = 0; columns && i < rows; ++i)
        pushes.add(to + i * slice, from + i * layout.combine_row_bytes + h * slice, 1);
      result += rows;
    }
  }
  puts_[h] += pushes.finish();
}

}  // namespace ferry
