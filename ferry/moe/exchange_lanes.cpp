#include "ferry/moe/exchange_lanes.h"

#include <algorithm>

#include "ferry/core/timed.h"
#include "ferry/core/types.h"
#include "ferry/exchange/chunks.h"

namespace ferry {

/// The four phases. With two lanes, half of the tokens are on their way while the experts compute
/// the other half.
void ExchangeLanes::exchange(
    const Call& call, const Work& work, int first, int tokens, int chunks) {
  deal_out(first, tokens);
  for (const auto& lane : lanes_) {
    const Part& part = lane->part;
    work.route(part);
    const Timed timed(time_);
    lane->dispatcher.dispatch_send({.place = call.place,
                                    .rows = call.rows.from(part.first),
                                    .type = call.type,
                                    .encoded = call.encoded,
                                    .tokens = part.count,
                                    .slots = part.slots,
                                    .weights = lane->result_weights(),
                                    .row_weights = part.weights,
                                    .chunks = chunks,
                                    .layer = call.layer,
                                    .timeout = call.timeout});
  }
  const bool accumulate = work.meanwhile(first, tokens);
  for (const auto& lane : lanes_) {
    share_masks();
    const Timed timed(time_);
    std::chrono::nanoseconds experts{};
    lane->dispatcher.dispatch_recv([&](const ExpertRows& rows) {
      const Timed timed_experts(experts);
      work.experts(rows);
    });
    lane->dispatcher.combine_send();
    time_ -= experts;
  }
  for (const auto& lane : lanes_) {
    share_masks();
    const Timed timed(time_);
    lane->dispatcher.combine_recv({.place = call.place,
                                   .weights = lane->result_weights(),
                                   .rows = call.out.from(lane->part.first),
                                   .type = call.out_type,
                                   .accumulate = accumulate});
    for (const int token : lane->dispatcher.lost_tokens())
      lost_tokens_.push_back(lane->part.first + token);
  }
}

void ExchangeLanes::run(const Call& call, const Work& work) {
  const FlushDenormals flush;
  lost_tokens_.clear();
  for_each_chunk(
      lanes_.front()->dispatcher,
      options_.max_tokens,
      call.tokens,
      [&](int first, int count, int chunks) { exchange(call, work, first, count, chunks); });
}

ExchangeLanes::ExchangeLanes(const DispatcherOptions& options,
                             int lanes,
                             Transport& transport,
                             ThreadPool& pool)
    : options_(options) {
  DispatcherOptions of_lane = options;
  of_lane.max_tokens = static_cast<int>(ceil_div(options.max_tokens, lanes));
  for (int i = 0; i < lanes; ++i)
    lanes_.push_back(std::make_unique<Lane>(of_lane, transport, pool));
}

ExchangeLanes::Lane::Lane(const DispatcherOptions& options, Transport& transport, ThreadPool& pool)
    : dispatcher(options, transport, pool) {
  const std::size_t entries =
      static_cast<std::size_t>(options.max_tokens) * static_cast<std::size_t>(options.topk);
  experts.resize(entries);
  slots.resize(entries);
  weights.resize(entries);
  if (options.row_weights) ones.assign(entries, 1.0F);
}

std::size_t ExchangeLanes::scratch_bytes(const DispatcherOptions& options) {
  const std::size_t entries =
      static_cast<std::size_t>(options.max_tokens) * static_cast<std::size_t>(options.topk);
  return entries *
         (sizeof(ExpertId) + sizeof(SlotId) + (options.row_weights ? 2 : 1) * sizeof(float));
}

std::span<const float> ExchangeLanes::Lane::result_weights() const {
  return ones.empty() ? part.weights : std::span(ones).first(part.weights.size());
}

/// Tokens [first, first + tokens) to the lanes.
void ExchangeLanes::deal_out(int first, int tokens) {
  const auto num_lanes = static_cast<int>(lanes_.size());
  for (int i = 0; i < num_lanes; ++i) {
    Lane& lane = *lanes_[static_cast<std::size_t>(i)];
    const int begin = tokens * i / num_lanes;
    const int count = tokens * (i + 1) / num_lanes - begin;
    const std::size_t entries =
        static_cast<std::size_t>(count) * static_cast<std::size_t>(options_.topk);
    lane.part = {.first = first + begin,
                 .count = count,
                 .in_chunk = begin,
                 .experts = {lane.experts.data(), entries},
                 .slots = {lane.slots.data(), entries},
                 .weights = {lane.weights.data(), entries}};
  }
}

std::optional<MutableRowsView> ExchangeLanes::registered_input(DType type, int tokens) const {
  const bool as_they_are = options_.dispatch_wire == wire_type(type) &&
                           !options_.exchange.hidden_partition && lanes_.size() == 1 &&
                           tokens <= options_.max_tokens;
  if (!as_they_are) return std::nullopt;
  return lanes_.front()->dispatcher.registered_input();
}

ExchangeStats ExchangeLanes::stats() const {
  ExchangeStats all;
  for (const auto& lane : lanes_) all += lane->dispatcher.stats();
  return all;
}

std::vector<SourceStats> ExchangeLanes::source_stats() const {
  std::vector<SourceStats> all(static_cast<std::size_t>(lanes_.front()->dispatcher.ranks()));
  for (const auto& lane : lanes_) {
    const std::span<const SourceStats> sources = lane->dispatcher.source_stats();
    for (std::size_t source = 0; source < all.size(); ++source) all[source] += sources[source];
  }
  return all;
}

// --- Ranks that are gone ------------------------------------------------------------------------

bool ExchangeLanes::masks() const {
  return options_.exchange.on_dead_rank == ExchangeOptions::OnDeadRank::mask;
}

void ExchangeLanes::mask(Rank rank) {
  for (const auto& lane : lanes_) lane->dispatcher.mask(rank);
}

bool ExchangeLanes::is_masked(Rank rank) const {
  return std::ranges::any_of(lanes_,
                             [&](const auto& lane) { return lane->dispatcher.is_masked(rank); });
}

/// What one lane has found out about ranks that are gone, the others need not wait for.
void ExchangeLanes::share_masks() {
  if (lanes_.size() == 1 || !masks()) return;
  for (Rank r = 0; r < first().ranks(); ++r)
    if (is_masked(r)) mask(r);
}

}  // namespace ferry
