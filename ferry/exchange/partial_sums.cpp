#include "ferry/exchange/partial_sums.h"

#include <algorithm>
#include <cstring>

namespace ferry {

namespace {

constexpr std::int64_t kSumGrain = 8;                             // tokens
constexpr std::size_t kPushedSumsBytes = std::size_t{128} << 10;  // of a thread, then they leave

std::optional<WireType> encoding(const DispatcherOptions& options) {
  return is_quantized(options.combine_wire) ? std::optional(options.combine_wire) : std::nullopt;
}

}  // namespace

PartialSums::PartialSums(LaneState& lane,
                         PeerLink& link,
                         const DispatchMessages& messages,
                         DataPlane& plane,
                         const std::byte* output)
    : lane_(lane), link_(link), messages_(messages), plane_(plane), output_(output) {
  if (!lane.sums_per_rank()) return;
  const auto grain = static_cast<std::size_t>(kSumGrain);
  const auto topk = static_cast<std::size_t>(lane.options.topk);
  const std::size_t most = std::max(topk, static_cast<std::size_t>(lane.ranks));
  plane.reserve({.sums = grain * topk,
                 .terms = (grain + 1) * most,
                 .columns = encoding(lane.options)
                                ? static_cast<std::size_t>(lane.options.columns_of_results())
                                : 0});
}

/// Of the sums for `home`, in results, host sums and their flags.
std::size_t PartialSums::first_row_of(Rank home) const {
  return static_cast<std::size_t>(home) * static_cast<std::size_t>(lane_.options.max_tokens);
}

void PartialSums::send(std::span<std::uint32_t> puts) {
  for (const Rank home : lane_.relays.send_order()) sum_per_rank(home, puts);
  relay_sums(puts);
}

/// Adds up this rank's results for each token of `home`, weighted, in top-k order. What is pushed
/// leaves in blocks, while the next are added up.
void PartialSums::sum_per_rank(Rank home, std::span<std::uint32_t> puts) {
  const std::span<const ReduceEntry> entries = messages_.of(home).entries;
  if (lane_.sums_per_host(home)) {
    std::memset(link_.at<std::byte>(lane_.layout.has_sum) + first_row_of(home),
                0,
                messages_.tokens_of(home));
  }
  const auto topk = static_cast<std::size_t>(lane_.options.topk);
  const std::size_t tokens =
      std::max<std::size_t>(kPushedSumsBytes / lane_.layout.combine_row_bytes, kSumGrain);
  const std::size_t block = link_.reads(home) ? entries.size() : tokens * topk * plane_.width();
  for (std::size_t first = 0, end = 0; first < entries.size(); first = end) {
    end = std::min(first + block, entries.size());
    while (end < entries.size() && entries[end].token == entries[end - 1].token) ++end;
    const auto list = [&](std::int64_t from, std::int64_t to, SumList& sums) {
      list_sums(
          home, first + static_cast<std::size_t>(from), first + static_cast<std::size_t>(to), sums);
    };
    plane_.reduce({.items = static_cast<std::int64_t>(end - first),
                   .grain = kSumGrain * lane_.options.topk,
                   .terms = list,
                   .in_type = wire_type(lane_.options.output_type()),
                   .columns = lane_.options.columns_of_results(),
                   .out_type = lane_.options.output_type(),
                   .encode_as = encoding(lane_.options)});
    push_sums(home, entries.subspan(first, end - first), puts);
  }
}

/// The sums of the tokens whose first entry is one of [first, end).
void PartialSums::list_sums(Rank home, std::size_t first, std::size_t end, SumList& list) const {
  const ExchangeLayout& layout = lane_.layout;
  const std::span<const ReduceEntry> entries = messages_.of(home).entries;
  const std::span<const std::int64_t> places = lane_.receive_plan().places(home);
  std::byte* sums =
      link_.at<std::byte>(layout.results) + first_row_of(home) * layout.combine_row_bytes;
  std::byte* has_sum = lane_.sums_per_host(home)
                           ? link_.at<std::byte>(layout.has_sum) + first_row_of(home)
                           : nullptr;
  std::size_t i = first;
  while (i > 0 && i < end && entries[i].token == entries[i - 1].token) ++i;
  while (i < end) {
    const std::uint32_t token = entries[i].token;
    list.begin(sums + token * layout.combine_row_bytes);
    for (; i < entries.size() && entries[i].token == token; ++i) {
      const auto place = static_cast<std::size_t>(places[entries[i].record]);
      list.add(output_ + place * layout.output_row_bytes, entries[i].weight);
    }
    if (has_sum != nullptr) has_sum[token] = std::byte{1};
  }
}

/// Of the entries' tokens; neighbouring ones together.
void PartialSums::push_sums(Rank home,
                            std::span<const ReduceEntry> entries,
                            std::span<std::uint32_t> puts) {
  const ExchangeLayout& layout = lane_.layout;
  const auto tp = static_cast<std::size_t>(lane_.options.tp);
  const std::size_t row_bytes = layout.combine_row_bytes;
  const Rank base = lane_.base_of(home);
  // All of its group get the sums of its tokens.
  for (Rank to = base; to < base + lane_.options.tp; ++to) {
    if (link_.is_masked(to) || link_.reads(to) || lane_.sums_per_host(home)) continue;
    const std::size_t slab =
        layout.combine_slab + (static_cast<std::size_t>(lane_.rank) * tp + lane_.member_of(home)) *
                                  layout.combine_slab_rows * row_bytes;
    RowPushes pushes(link_, to, row_bytes, ExchangeSignal::combine_rows);
    for (std::size_t i = 0; i < entries.size();) {
      const std::size_t first = entries[i].token;
      std::size_t end = first;
      for (; i < entries.size() && entries[i].token <= end; ++i) end = entries[i].token + 1;
      pushes.add(slab + first * row_bytes,
                 layout.results + (first_row_of(home) + first) * row_bytes,
                 end - first);
    }
    puts[static_cast<std::size_t>(to)] += pushes.finish();
  }
}

// --- Of a host
// ------------------------------------------------------------------------------------

void PartialSums::relay_sums(std::span<std::uint32_t> puts) {
  if (!lane_.host_sums || lane_.relays.neighbours().empty()) return;
  for (const Rank neighbour : lane_.relays.neighbours())
    link_.raise(neighbour, lane_.rank, ExchangeSignal::rank_sums);
  for (const Rank neighbour : lane_.relays.neighbours())
    static_cast<void>(link_.await(neighbour, ExchangeSignal::rank_sums, lane_.epoch));
  for (const Rank home : lane_.relays.send_order()) {
    if (!lane_.relays.relays(home)) continue;
    sum_per_host(home);
    push_host_sums(home, puts);
  }
}

/// Adds up, in order of rank, the sums that this host's ranks have for each token of `home`.
void PartialSums::sum_per_host(Rank home) {
  const ExchangeLayout& layout = lane_.layout;
  const std::size_t row_bytes = layout.combine_row_bytes;
  const auto list = [&](std::int64_t begin, std::int64_t end, SumList& sums) {
    for (std::size_t t = first_row_of(home) + static_cast<std::size_t>(begin);
         t < first_row_of(home) + static_cast<std::size_t>(end);
         ++t) {
      bool any = false;
      for (Rank r = 0; r < lane_.ranks; ++r) {
        if (!lane_.relays.is_near(r) || link_.part_of(r)[layout.has_sum + t] == std::byte{0})
          continue;
        if (!any) sums.begin(link_.at<std::byte>(layout.host_sums) + t * row_bytes);
        any = true;
        sums.add(link_.results_of(r) + t * row_bytes, 1.0F);
      }
      link_.at<std::byte>(layout.has_host_sum)[t] = static_cast<std::byte>(any);
    }
  };
  plane_.reduce({.items = messages_.tokens_of(home),
                 .grain = kSumGrain,
                 .terms = list,
                 .in_type = lane_.options.combine_wire,
                 .columns = lane_.options.columns_of_results(),
                 .out_type = lane_.options.output_type(),
                 .encode_as = encoding(lane_.options),
                 .single_bytes = row_bytes});
}

/// Runs of neighbouring tokens with a sum leave together.
void PartialSums::push_host_sums(Rank home, std::span<std::uint32_t> puts) {
  const ExchangeLayout& layout = lane_.layout;
  const std::size_t row_bytes = layout.combine_row_bytes;
  const std::size_t slab = layout.combine_slab + static_cast<std::size_t>(lane_.rank) *
                                                     layout.combine_slab_rows * row_bytes;
  const auto* has_sum = link_.at<const std::byte>(layout.has_host_sum + first_row_of(home));
  const std::size_t tokens = messages_.tokens_of(home);
  RowPushes pushes(link_, home, row_bytes, ExchangeSignal::combine_rows);
  for (std::size_t t = 0; t < tokens;) {
    std::size_t end = t;
    while (end < tokens && has_sum[end] != std::byte{0}) ++end;
    if (end > t) {
      pushes.add(
          slab + t * row_bytes, layout.host_sums + (first_row_of(home) + t) * row_bytes, end - t);
    }
    t = end + 1;
  }
  puts[static_cast<std::size_t>(home)] += pushes.finish();
}

}  // namespace ferry
