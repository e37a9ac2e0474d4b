#include "ferry/exchange/combine_message.h"

#include <algorithm>
#include <cstring>

namespace ferry {

CombineMessages::CombineMessages(LaneState& lane, PeerLink& link, const DispatchMessages& messages)
    : lane_(lane),
      link_(link),
      messages_(messages),
      result_rows_(static_cast<std::size_t>(lane.ranks) *
                   static_cast<std::size_t>(lane.options.tp) *
                   static_cast<std::size_t>(lane.options.slots_per_rank)),
      results_expected_(static_cast<std::size_t>(lane.ranks)),
      has_results_(static_cast<std::size_t>(lane.ranks) *
                   static_cast<std::size_t>(lane.options.tp)) {}

void CombineMessages::send(Rank home, std::uint32_t puts) {
  const ExchangeLayout& layout = lane_.layout;
  const std::size_t bytes = write(home, puts);
  const auto* message = link_.at<const std::byte>(
      layout.combine_outbox + static_cast<std::size_t>(home) * layout.combine_message_bytes);
  link_.put(
      home,
      layout.combine_inbox + static_cast<std::size_t>(lane_.rank) * layout.combine_message_bytes,
      {message, bytes},
      ExchangeSignal::combine_message);
}

std::size_t CombineMessages::write(Rank home, std::uint32_t puts) {
  auto* begin =
      link_.at<std::byte>(lane_.layout.combine_outbox +
                          static_cast<std::size_t>(home) * lane_.layout.combine_message_bytes);
  const CombineHeader header{.epoch = lane_.epoch,
                             .payload_puts = puts,
                             .chunks = static_cast<std::uint32_t>(lane_.chunks_of_all)};
  std::memcpy(begin, &header, sizeof header);
  std::byte* out = begin + sizeof header;
  for (int share = 0; share < lane_.options.tp; ++share) {
    const Rank source = lane_.source_of(lane_.base_of(home) + share);
    const std::span<const std::uint32_t> counts = messages_.of(source).counts;
    const std::span<const std::int64_t> first_rows = lane_.receive_plan().first_rows(source);
    auto* listed = reinterpret_cast<std::int64_t*>(out);
    std::int64_t* next = listed + 1;
    for (std::size_t slot = 0; slot < counts.size(); ++slot)
      if (counts[slot] > 0) *next++ = first_rows[slot];
    *listed = next - listed - 1;
    out = reinterpret_cast<std::byte*>(next);
  }
  return static_cast<std::size_t>(out - begin);
}

void CombineMessages::receive(Rank peer) {
  const auto p = static_cast<std::size_t>(peer);
  clear_results(peer);
  if (!link_.await(peer, ExchangeSignal::combine_message, lane_.epoch)) return;
  const auto* header = link_.at<const CombineHeader>(lane_.layout.combine_inbox +
                                                     p * lane_.layout.combine_message_bytes);
  if (!read_rows(peer, *header)) {
    throw TransportError(TransportError::Kind::io,
                         link_.known_as(peer),
                         fmt::format("{}: the message of rank {} leads outside its results "
                                     "(exchange {}); the ranks run different options or versions",
                                     lane_.where(),
                                     link_.known_as(peer),
                                     header->epoch));
  }
  // A rank that has ended since may have told only some of us how much it still had to send.
  lane_.chunks_of_all = std::max(lane_.chunks_of_all, static_cast<int>(header->chunks));
  results_expected_[p] += header->payload_puts;
  if (header->payload_puts &&
      !link_.await(peer, ExchangeSignal::combine_rows, results_expected_[p]))
    clear_results(peer);
}

void CombineMessages::clear_results(Rank peer) {
  const auto first = has_results_.begin() + static_cast<std::ptrdiff_t>(share_at(peer, 0));
  std::fill_n(first, lane_.options.tp, std::uint8_t{0});
}

/// False: not the rows of what was sent to `peer`.
bool CombineMessages::read_rows(Rank peer, const CombineHeader& header) {
  const auto slots = static_cast<std::size_t>(lane_.options.slots_per_rank);
  const std::vector<SendPlan>& plans = lane_.send_plans();
  bool sane = header.epoch == lane_.epoch;
  const auto* next = reinterpret_cast<const std::int64_t*>(&header + 1);
  for (std::size_t share = 0; share < plans.size(); ++share) {
    const std::span<const std::uint32_t> counts = plans[share].counts(peer);
    std::int64_t* first_rows = result_rows_.data() + share_at(peer, share) * slots;
    const std::int64_t listed = *next++;
    const auto sent = std::ranges::count_if(counts, [](auto n) { return n > 0; });
    // The peer may have masked another member, whose end this rank need not have noticed yet.
    if (listed == 0 && sent > 0 && lane_.masks() && share != lane_.member_of(lane_.rank)) {
      link_.mask_as_others(lane_.base_of(lane_.rank) + static_cast<Rank>(share));
      continue;
    }
    has_results_[share_at(peer, share)] = 1;
    sane &= listed == sent;
    for (std::size_t slot = 0; sane && slot < counts.size(); ++slot) {
      if (counts[slot] == 0) continue;
      first_rows[slot] = *next++;
      sane = first_rows[slot] >= 0 && first_rows[slot] + counts[slot] <= lane_.layout.expert_rows;
    }
    if (link_.reads(peer) && peer != lane_.rank) {
      lane_.stats.bytes_wire +=
          plans[share].records(peer).size() * lane_.layout.combine_slice_bytes;
    }
  }
  return sane;
}

bool CombineMessages::arrived(Rank peer) {
  const auto p = static_cast<std::size_t>(peer);
  if (!link_.arrived(peer, ExchangeSignal::combine_message, lane_.epoch)) return false;
  const auto* header = link_.at<const CombineHeader>(lane_.layout.combine_inbox +
                                                     p * lane_.layout.combine_message_bytes);
  const std::uint64_t rows = results_expected_[p] + header->payload_puts;
  return link_.arrived(peer, ExchangeSignal::combine_rows, rows);
}

std::span<const std::int64_t> CombineMessages::result_rows(Rank peer, std::size_t share) const {
  const auto slots = static_cast<std::size_t>(lane_.options.slots_per_rank);
  return std::span(result_rows_).subspan(share_at(peer, share) * slots, slots);
}

}  // namespace ferry
