#include "ferry/exchange/home_sums.h"

#include <algorithm>

namespace ferry {

namespace {

constexpr std::int64_t kSumGrain = 8;  // tokens

}  // namespace

HomeSums::HomeSums(LaneState& lane,
                   PeerLink& link,
                   const CombineMessages& combined,
                   DataPlane& plane)
    : lane_(lane),
      link_(link),
      combined_(combined),
      plane_(plane),
      lost_(static_cast<std::size_t>(lane.options.max_tokens)) {
  lost_tokens_.reserve(lost_.size());
  const auto grain = static_cast<std::size_t>(kSumGrain);
  plane.reserve(
      {.sums = grain,
       .terms = grain * static_cast<std::size_t>(std::max(lane.options.topk, lane.ranks))});
}

void HomeSums::write(const CombineTarget& target) {
  const auto list = [&](std::int64_t begin, std::int64_t end, SumList& sums) {
    for (auto t = static_cast<std::size_t>(begin); t < static_cast<std::size_t>(end); ++t) {
      sums.begin(target.rows.row(static_cast<std::int64_t>(t)));
      const Rank source = lane_.base_of(lane_.rank) + static_cast<Rank>(lane_.share_of(t));
      lost_[t] = link_.is_masked(source) ? 1 : 0;  // nobody may have computed it
      if (lost_[t]) continue;
      if (lane_.sums_per_rank()) {
        list_rank_sums(t, sums);
      } else {
        list_results(target.weights, t, sums);
      }
    }
  };
  plane_.reduce({.items = lane_.tokens,
                 .grain = kSumGrain,
                 .terms = list,
                 .in_type = lane_.options.combine_wire,
                 .columns = lane_.layout.result_columns,
                 .out_type = target.type,
                 .accumulate = target.accumulate});
}

/// The rank whose message brings the sum in which `rank` has its part, for this rank's tokens.
Rank HomeSums::summing_rank(Rank rank) const {
  return rank >= 0 && lane_.host_sums && !lane_.relays.is_near(rank)
             ? lane_.relays.taker(lane_.rank, rank)
             : rank;
}

/// The ranks' sums for a token, or their hosts', in order of rank. One that is lost is noted.
void HomeSums::list_rank_sums(std::size_t token, SumList& list) {
  const std::size_t share = lane_.share_of(token);
  const std::size_t source = static_cast<std::size_t>(lane_.base_of(lane_.rank)) + share;
  const SendPlan& plan = lane_.send_plans()[share];
  for (Rank peer = 0; peer < lane_.ranks; ++peer) {
    bool has_part = false;
    for (int k = 0; k < lane_.options.topk; ++k)
      has_part |= summing_rank(plan.place(static_cast<int>(token), k).rank) == peer;
    if (!has_part) continue;
    if (!combined_.has_results(peer, share)) {
      lost_[token] = 1;
      continue;
    }
    const std::size_t row = link_.reads(peer)
                                ? source * static_cast<std::size_t>(lane_.options.max_tokens)
                                : share * lane_.layout.combine_slab_rows;
    list.add(link_.results_of(peer) + (row + token) * lane_.layout.combine_row_bytes, 1.0F);
  }
}

/// A token's results in top-k order. One that is lost is noted.
void HomeSums::list_results(std::span<const float> weights, std::size_t token, SumList& list) {
  const ExchangeLayout& layout = lane_.layout;
  const std::size_t share = lane_.share_of(token);
  const std::size_t own_column =
      lane_.options.exchange.hidden_partition
          ? static_cast<std::size_t>(lane_.rank) * layout.combine_slice_bytes
          : 0;
  const SendPlan& plan = lane_.send_plans()[share];
  const auto topk = static_cast<std::size_t>(lane_.options.topk);
  for (std::size_t k = 0; k < topk; ++k) {
    const RecordPlace place = plan.place(static_cast<int>(token), static_cast<int>(k));
    if (place.rank < 0) continue;
    if (!combined_.has_results(place.rank, share)) {
      lost_[token] = 1;
      continue;
    }
    const bool read = link_.reads(place.rank);
    const std::size_t row = read ? static_cast<std::size_t>(combined_.result_rows(
                                       place.rank, share)[static_cast<std::size_t>(place.slot)]) +
                                       place.in_slot
                                 : share * layout.combine_slab_rows + place.result;
    const std::size_t stride = read ? layout.combine_row_bytes : layout.combine_slice_bytes;
    list.add(link_.results_of(place.rank) + row * stride + (read ? own_column : 0),
             weights[token * topk + k]);
  }
}

void HomeSums::collect_lost_tokens() {
  lost_tokens_.clear();
  if (!lane_.masks()) return;
  for (int t = 0; t < lane_.tokens; ++t)
    if (lost_[static_cast<std::size_t>(t)]) lost_tokens_.push_back(t);
}

}  // namespace ferry
