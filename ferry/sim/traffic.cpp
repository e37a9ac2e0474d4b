#include "ferry/sim/traffic.h"

#include <algorithm>

#include "ferry/compute/tensor_group.h"
#include "ferry/core/error.h"
#include "ferry/exchange/compatibility.h"
#include "ferry/exchange/dispatch_plan.h"
#include "ferry/exchange/exchange_layout.h"
#include "ferry/exchange/relay_plan.h"

namespace ferry {

namespace {

using SendPer = ExchangeOptions::SendPer;

std::size_t index(Rank rank) { return static_cast<std::size_t>(rank); }

std::vector<int> hosts_of_ranks(const LinkLevels& levels) {
  std::vector<int> hosts;
  for (Rank r = 0; r < levels.ranks(); ++r) hosts.push_back(levels.host_of(r));
  return hosts;
}

/// Of LaneState: a rank that dies would take along what it relays, and who sends a row for each
/// expert does not send one for each host.
bool once_per_host(const ExchangeOptions& exchange) {
  return exchange.on_dead_rank == ExchangeOptions::OnDeadRank::fail &&
         exchange.send_per != SendPer::token_expert;
}

class ExchangeCounter {
 public:
  ExchangeCounter(const TrafficOptions& options, const LinkLevels& levels)
      : options_(options),
        d_(options.dispatcher),
        levels_(levels),
        ranks_(levels.ranks()),
        layout_(d_, ranks_, levels.ranks() == levels.ranks_per_host()),
        relays_(hosts_of_ranks(levels), 0, once_per_host(d_.exchange)),
        sums_(d_.exchange.reduce_at == ExchangeOptions::ReduceAt::rank_then_home),
        host_sums_(sums_ && once_per_host(d_.exchange) && d_.tp == 1),
        plan_(ranks_, d_.slots_per_rank, d_.topk, d_.max_tokens),
        slots_(index(d_.max_tokens) * index(d_.topk)),
        first_entry_(index(ranks_) + 1),
        entry_tokens_(slots_.size()),
        counts_(index(ranks_) * index(ranks_) * index(d_.slots_per_rank)),
        combine_puts_(index(ranks_) * index(d_.tp)),
        result_(index(ranks_)) {}

  std::vector<RankTraffic> run(const RoutingOf& routing) {
    for (Rank base = 0; base < ranks_; base += d_.tp) {
      const int tokens = options_.tokens[index(base)];
      const auto slots = std::span(slots_).first(index(tokens) * index(d_.topk));
      routing(base, slots);
      std::ranges::fill(combine_puts_, 0U);
      for (int member = 0; member < d_.tp; ++member) count_home(base, member, slots, tokens);
      for (int member = 0; member < d_.tp; ++member)
        for (Rank peer = 0; peer < ranks_; ++peer)
          note_connection(
              &RankTraffic::combine, peer, base + member, combine_puts_to(member, peer));
    }
    count_sum_signals();
    for (Rank rank = 0; rank < ranks_; ++rank) count_rows(rank);
    return std::move(result_);
  }

 private:
  /// What a member of a group sends, and what all of it get for that.
  void count_home(Rank base, int member, std::span<const SlotId> slots, int tokens) {
    const Rank home = base + member;
    own_.assign(slots.begin(), slots.end());
    for (std::size_t i = 0; i < own_.size(); ++i)
      if (i / index(d_.topk) % index(d_.tp) != index(member)) own_[i] = -1;
    plan_.set_takers(relays_.takers(home));
    plan_.build(slots, tokens, {.member = member, .tp = d_.tp});
    list_entries(own_);
    result_[index(home)].tokens = tokens;
    ++result_[index(home)].stats.exchanges;
    for (Rank peer = 0; peer < ranks_; ++peer) {
      count_dispatch(home, peer);
      count_results(home, peer);
      for (Rank to = base; to < base + d_.tp; ++to) count_combine(home, peer, to);
    }
    for (Rank to = base; to < base + d_.tp; ++to) count_home_sums(home, to);
    result_[index(home)].combine.written_after +=
        index(tokens) * index(d_.columns_of_results()) * dtype_bytes(DType::bf16);
  }

  /// Of the tokens of a rank's group those that it sends itself.
  std::uint64_t own_tokens(Rank rank) const {
    const auto tokens = static_cast<std::uint64_t>(options_.tokens[index(rank)]);
    const std::uint64_t tp = index(d_.tp);
    return (tokens + tp - 1 - index(rank) % tp) / tp;
  }

  std::uint32_t& combine_puts_to(int member, Rank peer) {
    return combine_puts_[index(member) * index(ranks_) + index(peer)];
  }

  /// The tokens of the entries of each rank, in order, one for each (token, k) there.
  void list_entries(std::span<const SlotId> slots) {
    std::fill(first_entry_.begin(), first_entry_.end(), std::size_t{0});
    const auto rank_of = [&](SlotId slot) { return index(slot / d_.slots_per_rank); };
    for (const SlotId slot : slots)
      if (slot >= 0) ++first_entry_[rank_of(slot) + 1];
    for (std::size_t r = 0; r + 1 < first_entry_.size(); ++r)
      first_entry_[r + 1] += first_entry_[r];
    std::vector<std::size_t>& next = next_entry_;
    next.assign(first_entry_.begin(), first_entry_.end() - 1);
    for (std::size_t i = 0; i < slots.size(); ++i) {
      if (slots[i] >= 0)
        entry_tokens_[next[rank_of(slots[i])]++] = static_cast<std::uint32_t>(i / index(d_.topk));
    }
  }

  std::span<const std::uint32_t> entries(Rank rank) const {
    return std::span(entry_tokens_)
        .subspan(first_entry_[index(rank)],
                 first_entry_[index(rank) + 1] - first_entry_[index(rank)]);
  }

  void add_puts(PhaseTraffic RankTraffic::*phase,
                Rank from,
                Rank to,
                std::uint64_t puts,
                std::uint64_t bytes) {
    const std::size_t level = levels_.between(from, to);
    LinkCount& out = (result_[index(from)].*phase).out[level];
    LinkCount& in = (result_[index(to)].*phase).in[level];
    out = {out.puts + puts, out.bytes + bytes};
    in = {in.puts + puts, in.bytes + bytes};
  }

  /// Rows pushed as RowPushes does: who sends them counts them.
  void add_rows(PhaseTraffic RankTraffic::*phase,
                Rank from,
                Rank to,
                std::uint64_t puts,
                std::uint64_t bytes) {
    add_puts(phase, from, to, puts, bytes);
    ExchangeStats& stats = result_[index(from)].stats;
    if (from != to) stats.bytes_wire += bytes;
    if (!levels_.near(from, to)) stats.bytes_network += bytes;
  }

  void note_connection(PhaseTraffic RankTraffic::*phase, Rank from, Rank to, std::uint64_t puts) {
    std::uint32_t& most = (result_[index(from)].*phase).to_one[levels_.between(from, to)];
    most = std::max(most, static_cast<std::uint32_t>(puts));
  }

  /// Puts that runs of rows take, as far as one put carries so many bytes.
  std::uint64_t puts_of(std::uint64_t rows, std::size_t row_bytes) const {
    const std::uint64_t most = std::max<std::uint64_t>(1, options_.max_put_bytes / row_bytes);
    return (rows + most - 1) / most;
  }

  LinkCount runs_to(Rank taker, std::size_t row_bytes) const {
    LinkCount count;
    for (const TokenRun& run : plan_.runs(taker)) {
      count.puts += puts_of(run.count, row_bytes);
      count.bytes += run.count * row_bytes;
    }
    return count;
  }

  LinkCount dispatched_rows(Rank home, Rank peer) const {
    const std::size_t bytes = layout_.dispatch_row_bytes;
    const std::uint64_t tokens = own_tokens(home);
    switch (d_.exchange.send_per) {
      case SendPer::rank:  // neighbouring rows of the stage are several members'
        return {d_.tp == 1 ? puts_of(tokens, bytes) : tokens * puts_of(1, bytes), tokens * bytes};
      case SendPer::token_rank:
        return runs_to(peer, bytes);
      case SendPer::token_expert:
        return {plan_.records(peer).size() * puts_of(1, bytes), plan_.records(peer).size() * bytes};
    }
    return {};
  }

  void count_dispatch(Rank home, Rank peer) {
    constexpr auto kPhase = &RankTraffic::dispatch;
    const std::span<const Record> records = plan_.records(peer);
    std::size_t message = sizeof(DispatchHeader) + records.size_bytes();
    if (sums_) message += entries(peer).size() * sizeof(ReduceEntry);
    if (d_.row_weights) message += records.size() * sizeof(float);
    add_puts(kPhase, home, peer, 1, message);
    std::uint64_t puts = 1;

    const bool near = levels_.near(home, peer);
    const Rank taker = relays_.taker(home, peer);
    if (!near && taker == peer) {
      const LinkCount rows = dispatched_rows(home, peer);
      add_rows(kPhase, home, peer, rows.puts, rows.bytes);
      puts += rows.puts;
      if (once_per_host(d_.exchange)) {
        for_neighbours(peer, [&](Rank neighbour) { add_puts(kPhase, peer, neighbour, 1, 0); });
      }
    }
    note_connection(kPhase, home, peer, puts);

    const std::uint64_t bytes = records.size() * layout_.dispatch_row_bytes;
    const Rank read_from = near ? home : taker;
    RankTraffic& receiver = result_[index(peer)];
    if (read_from != peer) receiver.stats.bytes_wire += bytes;
    if (d_.exchange.format != DispatchFormat::row_pointers) {
      receiver.dispatch.read_after[levels_.between(read_from, peer)] += bytes;
      receiver.dispatch.written_after += records.size() * layout_.expert_row_bytes;
    }
    result_[index(home)].stats.bytes_logical +=
        records.size() * (layout_.dispatch_row_bytes + layout_.combine_slice_bytes);
    const std::span<const std::uint32_t> counts = plan_.counts(peer);
    std::ranges::copy(counts, counts_of(peer, home).begin());
  }

  /// What `peer` makes of the rows of `home` before they leave.
  void count_results(Rank home, Rank peer) {
    if (sums_) {
      count_rank_sums(entries(peer), peer);
      if (host_sums_ && !levels_.near(home, peer) && levels_.ranks_per_host() > 1 &&
          relays_.taker(home, peer) == peer)
        count_host_sums(peer);
    } else if (is_quantized(d_.combine_wire)) {
      result_[index(peer)].combine.moved_before +=
          plan_.records(peer).size() * (layout_.output_row_bytes + layout_.combine_row_bytes);
    }
  }

  /// What `peer` returns to `to` for the tokens that `home` of the same group has sent. One message
  /// is for those of all.
  void count_combine(Rank home, Rank peer, Rank to) {
    constexpr auto kPhase = &RankTraffic::combine;
    const std::span<const std::uint32_t> counts = plan_.counts(peer);
    const auto used = static_cast<std::size_t>(
        std::ranges::count_if(counts, [](std::uint32_t n) { return n > 0; }));
    const bool first = home % d_.tp == 0;
    add_puts(kPhase,
             peer,
             to,
             first ? 1 : 0,
             (first ? sizeof(CombineHeader) : 0) + (used + 1) * sizeof(std::int64_t));
    LinkCount rows;
    if (levels_.near(to, peer)) {
      if (to != peer) {
        result_[index(to)].stats.bytes_wire +=
            plan_.records(peer).size() * layout_.combine_slice_bytes;
      }
    } else if (!sums_) {
      for (const std::uint32_t count : counts) {
        rows.puts += puts_of(count, layout_.combine_slice_bytes);
        rows.bytes += count * layout_.combine_slice_bytes;
      }
    } else if (!host_sums_ || levels_.ranks_per_host() == 1) {
      rows = pushed_sums(entries(peer), /*in_blocks=*/!levels_.near(home, peer));
    } else if (relays_.taker(to, peer) == peer) {
      rows = runs_to(peer, layout_.combine_row_bytes);
    }
    add_rows(kPhase, peer, to, rows.puts, rows.bytes);
    combine_puts_to(to % d_.tp, peer) += static_cast<std::uint32_t>((first ? 1 : 0) + rows.puts);
  }

  /// Of PartialSums: sums leave in blocks of whole tokens, in each of which neighbouring tokens'
  /// leave together.
  LinkCount pushed_sums(std::span<const std::uint32_t> tokens, bool in_blocks) const {
    constexpr std::size_t kPushedSumsBytes = std::size_t{128} << 10;
    constexpr std::size_t kSumGrain = 8;
    const std::size_t row_bytes = layout_.combine_row_bytes;
    const std::size_t block = in_blocks ? std::max(kPushedSumsBytes / row_bytes, kSumGrain) *
                                              index(d_.topk) * index(options_.threads)
                                        : tokens.size();
    LinkCount count;
    for (std::size_t first = 0, end = 0; first < tokens.size(); first = end) {
      end = std::min(first + block, tokens.size());
      while (end < tokens.size() && tokens[end] == tokens[end - 1]) ++end;
      for (std::size_t i = first; i < end;) {
        const std::uint64_t begin = tokens[i];
        std::uint64_t past = begin;
        for (; i < end && tokens[i] <= past; ++i) past = tokens[i] + 1;
        count.puts += puts_of(past - begin, row_bytes);
        count.bytes += (past - begin) * row_bytes;
      }
    }
    return count;
  }

  static std::uint64_t distinct(std::span<const std::uint32_t> rising) {
    std::uint64_t n = 0;
    for (std::size_t i = 0; i < rising.size(); ++i) n += i == 0 || rising[i] != rising[i - 1];
    return n;
  }

  void count_rank_sums(std::span<const std::uint32_t> tokens, Rank rank) {
    PhaseTraffic& combine = result_[index(rank)].combine;
    combine.summed_before += tokens.size() * layout_.output_row_bytes;
    combine.moved_before += distinct(tokens) * layout_.combine_row_bytes;
  }

  /// The relay reads its neighbours' sums and its own, and writes one for each token.
  void count_host_sums(Rank relay) {
    std::uint64_t rows = distinct(entries(relay));
    for_neighbours(relay, [&](Rank r) { rows += distinct(entries(r)); });
    std::uint64_t written = 0;
    for (const TokenRun& run : plan_.runs(relay)) written += run.count;
    PhaseTraffic& combine = result_[index(relay)].combine;
    combine.summed_before += rows * layout_.combine_row_bytes;
    combine.moved_before += written * layout_.combine_row_bytes;
  }

  /// What `to` reads for the sums of tokens that `home` of its group has sent.
  void count_home_sums(Rank home, Rank to) {
    PhaseTraffic& combine = result_[index(to)].combine;
    for (Rank peer = 0; peer < ranks_; ++peer) {
      const bool near = levels_.near(to, peer);
      std::uint64_t rows = entries(peer).size();
      if (sums_) rows = distinct(entries(peer));
      if (sums_ && !near && host_sums_ && levels_.ranks_per_host() > 1) {
        rows = 0;
        if (relays_.taker(home, peer) == peer)
          for (const TokenRun& run : plan_.runs(peer)) rows += run.count;
      }
      const std::size_t level = near ? levels_.between(to, peer) : kOwnLevel;
      combine.read_after[level] += rows * layout_.combine_slice_bytes;
    }
  }

  void count_sum_signals() {
    if (!host_sums_) return;
    for (Rank rank = 0; rank < ranks_; ++rank)
      for_neighbours(rank, [&](Rank other) { add_puts(&RankTraffic::combine, rank, other, 1, 0); });
  }

  template <class Call>
  void for_neighbours(Rank rank, Call call) {
    const Rank first = levels_.host_of(rank) * levels_.ranks_per_host();
    for (Rank r = first; r < first + levels_.ranks_per_host(); ++r)
      if (r != rank) call(r);
  }

  std::span<std::uint32_t> counts_of(Rank rank, Rank home) {
    const std::size_t slots = index(d_.slots_per_rank);
    return std::span(counts_).subspan((index(rank) * index(ranks_) + index(home)) * slots, slots);
  }

  void count_rows(Rank rank) {
    ReceivePlan plan({.ranks = ranks_,
                      .slots_per_rank = d_.slots_per_rank,
                      .format = d_.exchange.format,
                      .slot_capacity = layout_.slot_capacity,
                      .alignment = d_.row_alignment,
                      .first_home = rank});
    plan.build([&](Rank home) { return std::span<const std::uint32_t>(counts_of(rank, home)); });
    RankTraffic& traffic = result_[index(rank)];
    traffic.slot_rows.assign(plan.counts().begin(), plan.counts().end());
    for (const std::int32_t rows : traffic.slot_rows)
      traffic.rows += static_cast<std::uint64_t>(rows);
    // Rows of the wire's own type have been written where they leave from.
    if (d_.dispatch_wire != WireType::bf16) {
      traffic.dispatch.moved_before +=
          own_tokens(rank) *
          (layout_.dispatch_row_bytes + index(d_.hidden) * dtype_bytes(DType::bf16));
    }
  }

  const TrafficOptions& options_;
  const DispatcherOptions& d_;
  const LinkLevels& levels_;
  const int ranks_;
  const ExchangeLayout layout_;
  const RelayPlan relays_;  // of rank 0; who takes what for whom is the same in all
  const bool sums_;
  const bool host_sums_;
  SendPlan plan_;  // of the home in hand
  std::vector<SlotId> slots_;
  std::vector<SlotId> own_;               // of the home in hand, -1 where others of its group send
  std::vector<std::size_t> first_entry_;  // [R + 1] into entry_tokens_
  std::vector<std::size_t> next_entry_;   // [R] cursor
  std::vector<std::uint32_t> entry_tokens_;  // rank by rank
  std::vector<std::uint32_t> counts_;        // [R][home][L]
  std::vector<std::uint32_t> combine_puts_;  // [tp][R] to each member of the group in hand
  std::vector<RankTraffic> result_;
};

}  // namespace

std::vector<RankTraffic> count_exchange(const TrafficOptions& options,
                                        const LinkLevels& levels,
                                        const RoutingOf& routing) {
  const DispatcherOptions& d = options.dispatcher;
  check_options(d, levels.ranks());
  if (d.exchange.hidden_partition) fail<ConfigError>("exchanges of parts of rows are not forecast");
  FERRY_CHECK(options.tokens.size() == static_cast<std::size_t>(levels.ranks()),
              "tokens of {} ranks for {}",
              options.tokens.size(),
              levels.ranks());
  FERRY_CHECK(options.threads >= 1, "{} threads", options.threads);
  return ExchangeCounter(options, levels).run(routing);
}

std::vector<RankTraffic> count_tracks(const TrafficOptions& options,
                                      int slices,
                                      const LinkLevels& levels,
                                      const RoutingOf& routing) {
  if (slices == 1) return count_exchange(options, levels, routing);
  const LinkLevels track = levels.track(slices);
  std::vector<RankTraffic> all(index(levels.ranks()));
  TrafficOptions own = options;
  int counted = -1;
  std::vector<RankTraffic> of_track;
  for (int slice = 0; slice < slices; ++slice) {
    const int columns =
        static_cast<int>(GroupMember{slice, slices}.columns(options.dispatcher.hidden).size());
    if (columns == 0)
      fail<ConfigError>("{} slices of {} hidden columns", slices, options.dispatcher.hidden);
    own.dispatcher.result_columns = columns;
    // Tracks differ in the columns of results alone.
    if (columns != counted) of_track = count_exchange(own, track, routing);
    counted = columns;
    for (std::size_t holder = 0; holder < of_track.size(); ++holder)
      all[holder * index(slices) + index(slice)] = of_track[holder];
  }
  return all;
}

}  // namespace ferry
