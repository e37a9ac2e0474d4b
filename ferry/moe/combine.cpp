// Combine: results back to the ranks their tokens came from, and summed there.
//
// Send: experts wrote their rows into this rank's results area. Each home rank gets a message with
// the row at which its results start in every slot; it reads them from there, or they are pushed
// into its slab record by record. Where ranks sum before home does, the sums travel instead of the
// rows. Receive: all messages, then each token's rows in top-k order.
#include <algorithm>
#include <cstring>

#include "ferry/core/error.h"
#include "ferry/kernels/kernels.h"
#include "ferry/moe/dispatcher.h"

namespace ferry {

namespace {

constexpr std::int64_t kSumGrain = 8;  // tokens

}  // namespace

void Dispatcher::combine_send() {
  enter(Phase::dispatched, Phase::combine_sent, "combine_send");
  const FlushDenormals flush;
  for (int i = 1; i <= ranks_; ++i) {
    const Rank home = (transport_.rank() + i) % ranks_;
    if (options_.exchange.reduce_at == ExchangeOptions::ReduceAt::rank_then_home)
      sum_per_rank(home);
    const std::uint32_t puts = pull_ ? 0 : push_results(home);
    const std::size_t bytes = write_combine_message(home, puts);
    const auto h = static_cast<std::size_t>(home);
    const auto me = static_cast<std::size_t>(transport_.rank());
    const auto* message =
        at<const std::byte>(layout_.combine_outbox + h * layout_.combine_message_bytes);
    put(home,
        layout_.combine_inbox + me * layout_.combine_message_bytes,
        {message, bytes},
        ExchangeSignal::combine_message);
  }
}

/// Adds up this rank's results for each token of `home`, weighted, in top-k order.
void Dispatcher::sum_per_rank(Rank home) {
  const auto h = static_cast<std::size_t>(home);
  const std::span<const ReduceEntry> entries = message_of(home).entries;
  const std::span<const std::int64_t> places = receive_plan_.places(home);
  const std::size_t row_bytes = layout_.combine_row_bytes;
  std::byte* sums = at<std::byte>(layout_.results) +
                    h * static_cast<std::size_t>(options_.max_tokens) * row_bytes;
  for (std::size_t i = 0; i < entries.size();) {
    const std::uint32_t token = entries[i].token;
    std::size_t terms = 0;
    for (; i < entries.size() && entries[i].token == token; ++i, ++terms) {
      const auto place = static_cast<std::size_t>(places[entries[i].record]);
      sum_rows_[0][terms] = expert_output_.data() + place * row_bytes;
      sum_weights_[0][terms] = entries[i].weight;
    }
    kernels().weighted_sum({.rows = sum_rows_[0].data(),
                            .weights = sum_weights_[0].data(),
                            .k = static_cast<std::int64_t>(terms),
                            .n = options_.hidden,
                            .in_type = options_.combine_wire,
                            .out = sums + token * row_bytes,
                            .out_type = options_.combine_wire});
  }
}

std::uint32_t Dispatcher::push_results(Rank home) {
  const auto h = static_cast<std::size_t>(home);
  const auto me = static_cast<std::size_t>(transport_.rank());
  const DispatchMessage message = message_of(home);
  const std::size_t row_bytes = layout_.combine_row_bytes;
  const auto tokens = static_cast<std::size_t>(options_.max_tokens);
  std::uint32_t puts = 0;
  const std::size_t slab = layout_.combine_slab + me * layout_.combine_slab_rows * row_bytes;
  const auto push = [&](std::size_t to_row, std::size_t from_row, std::size_t rows) {
    puts += put_rows(home,
                     slab + to_row * row_bytes,
                     layout_.results + from_row * row_bytes,
                     rows,
                     row_bytes,
                     ExchangeSignal::combine_rows);
  };
  if (options_.exchange.reduce_at == ExchangeOptions::ReduceAt::rank_then_home) {
    std::uint32_t last = ~0U;
    for (const ReduceEntry& entry : message.entries) {
      if (entry.token != last) push(entry.token, h * tokens + entry.token, 1);
      last = entry.token;
    }
  } else {
    const std::span<const std::int64_t> first_rows = receive_plan_.first_rows(home);
    std::size_t result = 0;
    for (std::size_t slot = 0; slot < message.counts.size(); ++slot) {
      push(result, static_cast<std::size_t>(first_rows[slot]), message.counts[slot]);
      result += message.counts[slot];
    }
  }
  return puts;
}

std::size_t Dispatcher::write_combine_message(Rank home, std::uint32_t puts) {
  const auto h = static_cast<std::size_t>(home);
  std::byte* out = at<std::byte>(layout_.combine_outbox + h * layout_.combine_message_bytes);
  const CombineHeader header{.epoch = epoch_, .payload_puts = puts};
  std::memcpy(out, &header, sizeof header);
  const std::span<const std::int64_t> first_rows = receive_plan_.first_rows(home);
  std::memcpy(out + sizeof header, first_rows.data(), first_rows.size_bytes());
  return sizeof header + first_rows.size_bytes();
}

void Dispatcher::combine_recv(const CombineTarget& target) {
  enter(Phase::combine_sent, Phase::idle, "combine_recv");
  const auto entries =
      static_cast<std::size_t>(send_plan_.tokens()) * static_cast<std::size_t>(options_.topk);
  FERRY_CHECK(target.weights.size() == entries,
              "{} weights for {} (token, k)",
              target.weights.size(),
              entries);
  for (int i = 0; i < ranks_; ++i) read_combine_message((transport_.rank() + i) % ranks_);
  pool_.parallel_for(
      send_plan_.tokens(), kSumGrain, [&](std::int64_t begin, std::int64_t end, int worker) {
        for (std::int64_t t = begin; t < end; ++t) sum_at_home(target, t, worker);
      });
}

void Dispatcher::read_combine_message(Rank peer) {
  await(peer, ExchangeSignal::combine_message, epoch_);
  const auto p = static_cast<std::size_t>(peer);
  const auto* header =
      at<const CombineHeader>(layout_.combine_inbox + p * layout_.combine_message_bytes);
  const auto* first_rows = reinterpret_cast<const std::int64_t*>(header + 1);
  const std::span<const std::uint32_t> counts = send_plan_.counts(peer);
  bool sane = header->epoch == epoch_;
  for (std::size_t slot = 0; sane && slot < counts.size(); ++slot)
    sane = first_rows[slot] >= 0 && first_rows[slot] + counts[slot] <= layout_.expert_rows;
  if (!sane) {
    throw TransportError(TransportError::Kind::io,
                         peer,
                         fmt::format("combine_recv (layer {}, exchange {}): the message of rank {} "
                                     "leads outside its results (exchange {}); the ranks run "
                                     "different options or versions",
                                     layer_,
                                     epoch_,
                                     peer,
                                     header->epoch));
  }
  results_expected_[p] += header->payload_puts;
  if (header->payload_puts) await(peer, ExchangeSignal::combine_rows, results_expected_[p]);
  if (pull_ && peer != transport_.rank())
    stats_.bytes_wire += send_plan_.records(peer).size() * layout_.combine_row_bytes;
}

/// One token's sum: its results in top-k order, or the ranks' sums in order of rank.
void Dispatcher::sum_at_home(const CombineTarget& target, std::int64_t token, int worker) {
  const auto w = static_cast<std::size_t>(worker);
  const auto t = static_cast<std::size_t>(token);
  const auto tokens = static_cast<std::size_t>(options_.max_tokens);
  const auto me = static_cast<std::size_t>(transport_.rank());
  const std::size_t row_bytes = layout_.combine_row_bytes;
  const bool sums = options_.exchange.reduce_at == ExchangeOptions::ReduceAt::rank_then_home;
  std::size_t terms = 0;
  const auto add = [&](const std::byte* row, float weight) {
    sum_rows_[w][terms] = row;
    sum_weights_[w][terms++] = weight;
  };
  if (sums) {
    for (Rank peer = 0; peer < ranks_; ++peer) {
      bool has_part = false;
      for (int k = 0; k < options_.topk; ++k)
        has_part |= send_plan_.place(static_cast<int>(token), k).rank == peer;
      if (has_part) add(results_of(peer) + (pull_ ? me * tokens + t : t) * row_bytes, 1.0F);
    }
  } else {
    for (int k = 0; k < options_.topk; ++k) {
      const RecordPlace place = send_plan_.place(static_cast<int>(token), k);
      if (place.rank < 0) continue;
      const auto p = static_cast<std::size_t>(place.rank);
      const auto* first_rows = at<const std::int64_t>(
          layout_.combine_inbox + p * layout_.combine_message_bytes + sizeof(CombineHeader));
      const std::size_t row =
          pull_ ? static_cast<std::size_t>(first_rows[place.slot]) + place.in_slot : place.result;
      const auto entry = t * static_cast<std::size_t>(options_.topk) + static_cast<std::size_t>(k);
      add(results_of(place.rank) + row * row_bytes, target.weights[entry]);
    }
  }
  kernels().weighted_sum({.rows = sum_rows_[w].data(),
                          .weights = sum_weights_[w].data(),
                          .k = static_cast<std::int64_t>(terms),
                          .n = options_.hidden,
                          .in_type = options_.combine_wire,
                          .out = target.rows.row(token),
                          .out_type = target.type,
                          .accumulate = target.accumulate});
}

}  // namespace ferry
