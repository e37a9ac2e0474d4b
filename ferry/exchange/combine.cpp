// Combine: results back to the ranks their tokens came from, and summed there.
//
// Send: experts wrote their rows into this rank's results area. Each home rank gets a message with
// the row at which its results start in every slot; it reads them from there, or they are pushed
// into its slab record by record. Where ranks sum before home does, the sums travel instead of the
// rows; a quantised wire takes one more pass, from what experts wrote to the results. Receive: all
// messages, then each token's rows in top-k order.
#include <algorithm>
#include <cstring>

#include "ferry/core/error.h"
#include "ferry/exchange/dispatcher.h"
#include "ferry/kernels/kernels.h"

namespace ferry {

namespace {

constexpr std::int64_t kSumGrain = 8;                             // tokens
constexpr std::size_t kPushedSumsBytes = std::size_t{128} << 10;  // of a thread, then they leave

}  // namespace

void Dispatcher::combine_send() {
  enter(Phase::dispatched, Phase::combine_sent, "combine_send");
  const FlushDenormals flush;
  finish_results(static_cast<std::size_t>(options_.slots_per_rank));
  if (sums_per_rank()) {
    for (const Rank home : relays_.send_order()) sum_per_rank(home);
    relay_sums();
  }
  for (const Rank home : relays_.send_order()) {
    if (is_masked(home)) continue;
    const std::size_t bytes = write_combine_message(home);
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

/// The results of the slots up to `end_slot` that are written but have not left yet.
void Dispatcher::finish_results(std::size_t end_slot) {
  const std::size_t first_slot = finished_slots_;
  finished_slots_ = end_slot;
  if (sums_per_rank()) return;  // sums leave, not rows
  if (is_quantized(options_.combine_wire)) encode_results(first_slot, end_slot);
  for (const Rank home : relays_.send_order())
    if (!is_masked(home) && !reads(home)) push_results(home, first_slot, end_slot);
}

void Dispatcher::encode_results(std::size_t first_slot, std::size_t end_slot) {
  const std::span<const std::int32_t> counts = receive_plan().counts();
  const std::span<const std::int64_t> offsets = receive_plan().offsets();
  for (std::size_t slot = first_slot; slot < end_slot; ++slot) {
    pool_.parallel_for(counts[slot], kSumGrain, [&](std::int64_t begin, std::int64_t end, int) {
      for (std::int64_t i = begin; i < end; ++i) {
        const auto row = static_cast<std::size_t>(offsets[slot] + i);
        kernels().encode(output() + row * layout_.output_row_bytes,
                         options_.output_type(),
                         at<std::byte>(layout_.results) + row * layout_.combine_row_bytes,
                         options_.combine_wire,
                         options_.hidden);
      }
    });
  }
}

/// Adds up this rank's results for each token of `home`, weighted, in top-k order. What is pushed
/// leaves in blocks, while the next are added up.
void Dispatcher::sum_per_rank(Rank home) {
  const auto h = static_cast<std::size_t>(home);
  const std::span<const ReduceEntry> entries = messages_[h].entries;
  if (sums_per_host(home)) {
    std::memset(at<std::byte>(layout_.has_sum) + h * static_cast<std::size_t>(options_.max_tokens),
                0,
                tokens_of_[h]);
  }
  const std::size_t tokens =
      std::max<std::size_t>(kPushedSumsBytes / layout_.combine_row_bytes, kSumGrain);
  const std::size_t block = reads(home) ? entries.size()
                                        : tokens * static_cast<std::size_t>(options_.topk) *
                                              static_cast<std::size_t>(pool_.size());
  for (std::size_t first = 0, end = 0; first < entries.size(); first = end) {
    end = std::min(first + block, entries.size());
    while (end < entries.size() && entries[end].token == entries[end - 1].token) ++end;
    pool_.parallel_for(static_cast<std::int64_t>(end - first),
                       kSumGrain * options_.topk,
                       [&](std::int64_t from, std::int64_t to, int worker) {
                         sum_tokens(home,
                                    first + static_cast<std::size_t>(from),
                                    first + static_cast<std::size_t>(to),
                                    worker);
                       });
    push_sums(home, entries.subspan(first, end - first));
  }
}

/// The sums of the tokens whose first entry is one of [first, end).
void Dispatcher::sum_tokens(Rank home, std::size_t first, std::size_t end, int worker) {
  const auto h = static_cast<std::size_t>(home);
  const auto w = static_cast<std::size_t>(worker);
  const std::span<const ReduceEntry> entries = messages_[h].entries;
  const std::span<const std::int64_t> places = receive_plan().places(home);
  std::byte* sums = at<std::byte>(layout_.results) +
                    h * static_cast<std::size_t>(options_.max_tokens) * layout_.combine_row_bytes;
  std::byte* has_sum = nullptr;
  if (sums_per_host(home)) {
    has_sum = at<std::byte>(layout_.has_sum) + h * static_cast<std::size_t>(options_.max_tokens);
  }
  std::size_t i = first;
  while (i > 0 && i < end && entries[i].token == entries[i - 1].token) ++i;
  while (i < end) {
    const std::uint32_t token = entries[i].token;
    std::size_t terms = 0;
    for (; i < entries.size() && entries[i].token == token; ++i, ++terms) {
      const auto place = static_cast<std::size_t>(places[entries[i].record]);
      sum_rows_[w][terms] = expert_output_.data() + place * layout_.output_row_bytes;
      sum_weights_[w][terms] = entries[i].weight;
    }
    write_sum(
        sums + token * layout_.combine_row_bytes, terms, wire_type(options_.output_type()), w);
    if (has_sum != nullptr) has_sum[token] = std::byte{1};
  }
}

/// The sum of a thread's terms as a row of the results.
void Dispatcher::write_sum(std::byte* to, std::size_t terms, WireType type, std::size_t worker) {
  const bool quantized = is_quantized(options_.combine_wire);
  auto* sum = quantized ? reinterpret_cast<std::byte*>(sum_row_[worker].data()) : to;
  kernels().weighted_sum({.rows = sum_rows_[worker].data(),
                          .weights = sum_weights_[worker].data(),
                          .k = static_cast<std::int64_t>(terms),
                          .n = options_.hidden,
                          .in_type = type,
                          .out = sum,
                          .out_type = options_.output_type()});
  if (quantized)
    kernels().encode(sum, options_.output_type(), to, options_.combine_wire, options_.hidden);
}

/// Of the entries' tokens; neighbouring ones together.
void Dispatcher::push_sums(Rank home, std::span<const ReduceEntry> entries) {
  const auto h = static_cast<std::size_t>(home);
  const auto me = static_cast<std::size_t>(transport_.rank());
  const auto tokens = static_cast<std::size_t>(options_.max_tokens);
  const auto members = static_cast<std::size_t>(options_.dp_size);
  const std::size_t row_bytes = layout_.combine_row_bytes;
  // All of its group get the sums of its tokens.
  for (Rank to = base_of(home); to < base_of(home) + options_.dp_size; ++to) {
    if (is_masked(to) || reads(to) || sums_per_host(home)) continue;
    const auto share = static_cast<std::size_t>(home - base_of(home));
    const std::size_t slab =
        layout_.combine_slab + (me * members + share) * layout_.combine_slab_rows * row_bytes;
    for (std::size_t i = 0; i < entries.size();) {
      const std::size_t first = entries[i].token;
      std::size_t end = first;
      for (; i < entries.size() && entries[i].token <= end; ++i) end = entries[i].token + 1;
      result_puts_[static_cast<std::size_t>(to)] +=
          put_rows(to,
                   slab + first * row_bytes,
                   layout_.results + (h * tokens + first) * row_bytes,
                   end - first,
                   row_bytes,
                   ExchangeSignal::combine_rows);
    }
  }
}

/// The results of `home`'s group, of each member's tokens: all members get all of them.
void Dispatcher::push_results(Rank home, std::size_t first_slot, std::size_t end_slot) {
  const auto h = static_cast<std::size_t>(home);
  const auto me = static_cast<std::size_t>(transport_.rank());
  const auto members = static_cast<std::size_t>(options_.dp_size);
  const std::size_t slice = layout_.combine_slice_bytes;
  const bool columns = options_.exchange.hidden_partition;
  for (std::size_t share = 0; share < members; ++share) {
    const Rank source = source_of(base_of(home) + static_cast<Rank>(share));
    const std::span<const std::uint32_t> counts =
        messages_[static_cast<std::size_t>(source)].counts;
    const std::span<const std::int64_t> first_rows = receive_plan().first_rows(source);
    std::size_t result = 0;
    for (std::size_t slot = 0; slot < first_slot; ++slot) result += counts[slot];
    const std::size_t slab =
        layout_.combine_slab + (me * members + share) * layout_.combine_slab_rows * slice;
    for (std::size_t slot = first_slot; slot < end_slot; ++slot) {
      const auto row = static_cast<std::size_t>(first_rows[slot]);
      const std::size_t rows = counts[slot];
      const auto push = [&](std::size_t done, std::size_t count, std::size_t column) {
        result_puts_[h] +=
            put_rows(home,
                     slab + (result + done) * slice,
                     layout_.results + (row + done) * layout_.combine_row_bytes + column,
                     count,
                     slice,
                     ExchangeSignal::combine_rows);
      };
      if (!columns) push(0, rows, 0);
      for (std::size_t i = 0; columns && i < rows; ++i) push(i, 1, h * slice);
      result += rows;
    }
  }
}

std::size_t Dispatcher::write_combine_message(Rank home) {
  const auto h = static_cast<std::size_t>(home);
  std::byte* begin = at<std::byte>(layout_.combine_outbox + h * layout_.combine_message_bytes);
  const CombineHeader header{.epoch = epoch_,
                             .payload_puts = result_puts_[h],
                             .chunks = static_cast<std::uint32_t>(chunks_of_all_)};
  std::memcpy(begin, &header, sizeof header);
  std::byte* out = begin + sizeof header;
  for (int share = 0; share < options_.dp_size; ++share) {
    const Rank source = source_of(base_of(home) + share);
    const std::span<const std::uint32_t> counts =
        messages_[static_cast<std::size_t>(source)].counts;
    const std::span<const std::int64_t> first_rows = receive_plan().first_rows(source);
    auto* listed = reinterpret_cast<std::int64_t*>(out);
    std::int64_t* next = listed + 1;
    for (std::size_t slot = 0; slot < counts.size(); ++slot)
      if (counts[slot] > 0) *next++ = first_rows[slot];
    *listed = next - listed - 1;
    out = reinterpret_cast<std::byte*>(next);
  }
  return static_cast<std::size_t>(out - begin);
}

void Dispatcher::combine_recv(const CombineTarget& target) {
  enter(Phase::combine_sent, Phase::idle, "combine_recv");
  const auto entries = static_cast<std::size_t>(tokens_) * static_cast<std::size_t>(options_.topk);
  FERRY_CHECK(target.weights.size() == entries,
              "{} weights for {} (token, k)",
              target.weights.size(),
              entries);
  for (const Rank peer : relays_.receive_order()) read_combine_message(peer);
  pool_.parallel_for(tokens_, kSumGrain, [&](std::int64_t begin, std::int64_t end, int worker) {
    for (std::int64_t t = begin; t < end; ++t) sum_at_home(target, t, worker);
  });
  // Who goes on without this rank says so before it overwrites what this rank may still have read.
  if (masks()) throw_if_masked_by_others();
  collect_lost_tokens();
}

void Dispatcher::read_combine_message(Rank peer) {
  const auto p = static_cast<std::size_t>(peer);
  has_results_[p] = 0;
  if (!await(peer, ExchangeSignal::combine_message, epoch_)) return;
  const auto* header =
      at<const CombineHeader>(layout_.combine_inbox + p * layout_.combine_message_bytes);
  bool sane = header->epoch == epoch_;
  const auto* next = reinterpret_cast<const std::int64_t*>(header + 1);
  for (std::size_t share = 0; share < send_plans().size(); ++share) {
    const SendPlan& plan = send_plans()[share];
    const std::span<const std::uint32_t> counts = plan.counts(peer);
    const std::span<std::int64_t> first_rows = result_rows(peer, share);
    const std::int64_t listed = *next++;
    // Of a member that it masked, the peer may have computed nothing.
    if (listed == 0 && is_masked(base_of(transport_.rank()) + static_cast<Rank>(share))) continue;
    sane &= listed == std::count_if(counts.begin(), counts.end(), [](auto n) { return n > 0; });
    for (std::size_t slot = 0; sane && slot < counts.size(); ++slot) {
      if (counts[slot] == 0) continue;
      first_rows[slot] = *next++;
      sane = first_rows[slot] >= 0 && first_rows[slot] + counts[slot] <= layout_.expert_rows;
    }
    if (reads(peer) && peer != transport_.rank())
      stats_.bytes_wire += plan.records(peer).size() * layout_.combine_slice_bytes;
  }
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
  // A rank that has ended since may have told only some of us how much it still had to send.
  chunks_of_all_ = std::max(chunks_of_all_, static_cast<int>(header->chunks));
  results_expected_[p] += header->payload_puts;
  if (header->payload_puts && !await(peer, ExchangeSignal::combine_rows, results_expected_[p]))
    return;
  has_results_[p] = 1;
}

/// [L] first rows of a member's results in the slots of `peer`; only slots with records count.
std::span<std::int64_t> Dispatcher::result_rows(Rank peer, std::size_t share) {
  const auto slots = static_cast<std::size_t>(options_.slots_per_rank);
  const auto members = static_cast<std::size_t>(options_.dp_size);
  return std::span(result_rows_)
      .subspan((static_cast<std::size_t>(peer) * members + share) * slots, slots);
}

/// One token's sum: its results in top-k order, or the ranks' sums in order of rank.
void Dispatcher::sum_at_home(const CombineTarget& target, std::int64_t token, int worker) {
  const auto w = static_cast<std::size_t>(worker);
  const auto t = static_cast<std::size_t>(token);
  const Rank source = base_of(transport_.rank()) + share_of(t);
  lost_[t] = is_masked(source) ? 1 : 0;  // nobody may have computed it
  std::size_t terms = 0;
  if (!lost_[t]) terms = sums_per_rank() ? gather_rank_sums(t, w) : gather_results(target, t, w);
  kernels().weighted_sum({.rows = sum_rows_[w].data(),
                          .weights = sum_weights_[w].data(),
                          .k = static_cast<std::int64_t>(terms),
                          .n = layout_.columns,
                          .in_type = options_.combine_wire,
                          .out = target.rows.row(token),
                          .out_type = target.type,
                          .accumulate = target.accumulate});
}

/// The ranks' sums for a token, or their hosts', in order of rank; returns how many. One that is
/// lost is noted.
std::size_t Dispatcher::gather_rank_sums(std::size_t token, std::size_t worker) {
  const auto share = static_cast<std::size_t>(share_of(token));
  const auto source = static_cast<std::size_t>(base_of(transport_.rank())) + share;
  std::size_t terms = 0;
  for (Rank peer = 0; peer < ranks_; ++peer) {
    bool has_part = false;
    for (int k = 0; k < options_.topk; ++k)
      has_part |= summing_rank(send_plans()[share].place(static_cast<int>(token), k).rank) == peer;
    if (!has_part) continue;
    if (!has_results_[static_cast<std::size_t>(peer)]) {
      lost_[token] = 1;
      continue;
    }
    const std::size_t row = reads(peer) ? source * static_cast<std::size_t>(options_.max_tokens)
                                        : share * layout_.combine_slab_rows;
    sum_rows_[worker][terms] = results_of(peer) + (row + token) * layout_.combine_row_bytes;
    sum_weights_[worker][terms++] = 1.0F;
  }
  return terms;
}

/// A token's results in top-k order; returns how many. One that is lost is noted.
std::size_t Dispatcher::gather_results(const CombineTarget& target,
                                       std::size_t token,
                                       std::size_t worker) {
  const auto share = static_cast<std::size_t>(share_of(token));
  const std::size_t own_column =
      options_.exchange.hidden_partition
          ? static_cast<std::size_t>(transport_.rank()) * layout_.combine_slice_bytes
          : 0;
  std::size_t terms = 0;
  for (int k = 0; k < options_.topk; ++k) {
    const RecordPlace place = send_plans()[share].place(static_cast<int>(token), k);
    if (place.rank < 0) continue;
    const auto p = static_cast<std::size_t>(place.rank);
    if (!has_results_[p]) {
      lost_[token] = 1;
      continue;
    }
    const auto slot = static_cast<std::size_t>(place.slot);
    const bool read = reads(place.rank);
    const std::size_t row =
        read ? static_cast<std::size_t>(result_rows(place.rank, share)[slot]) + place.in_slot
             : share * layout_.combine_slab_rows + place.result;
    const std::size_t stride = read ? layout_.combine_row_bytes : layout_.combine_slice_bytes;
    const auto entry =
        token * static_cast<std::size_t>(options_.topk) + static_cast<std::size_t>(k);
    sum_rows_[worker][terms] = results_of(place.rank) + row * stride + (read ? own_column : 0);
    sum_weights_[worker][terms++] = target.weights[entry];
  }
  return terms;
}

void Dispatcher::collect_lost_tokens() {
  lost_tokens_.clear();
  if (!masks()) return;
  for (int t = 0; t < tokens_; ++t)
    if (lost_[static_cast<std::size_t>(t)]) lost_tokens_.push_back(t);
}

}  // namespace ferry
