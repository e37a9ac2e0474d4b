#include "ferry/exchange/dispatcher.h"

#include <algorithm>
#include <string>

#include "ferry/core/error.h"
#include "ferry/exchange/compatibility.h"

namespace ferry {

namespace {

std::size_t input_bytes(const DispatcherOptions& options, const ExchangeLayout& layout) {
  return options.exchange.format == DispatchFormat::row_pointers
             ? 0
             : static_cast<std::size_t>(layout.expert_rows) * layout.expert_row_bytes;
}

/// Experts write straight into the results, which peers read or which are pushed; unless what
/// leaves is a sum of theirs, or quantised.
std::size_t output_bytes(const DispatcherOptions& options, const ExchangeLayout& layout) {
  const bool leaves_as_written = options.exchange.reduce_at == ExchangeOptions::ReduceAt::home &&
                                 !is_quantized(options.combine_wire);
  return leaves_as_written ? 0
                           : static_cast<std::size_t>(layout.expert_rows) * layout.output_row_bytes;
}

/// A rank that dies would take along what it relays, so where ranks are masked each gets its own
/// rows; and who sends a row for each expert does not send one for each host.
bool sends_once_per_host(const ExchangeOptions& exchange) {
  return exchange.on_dead_rank == ExchangeOptions::OnDeadRank::fail &&
         exchange.send_per != ExchangeOptions::SendPer::token_expert;
}

RelayPlan plan_relays(const ExchangeOptions& exchange, const Transport& transport) {
  std::vector<int> hosts;
  for (Rank r = 0; r < transport.size(); ++r) hosts.push_back(transport.host_of(r));
  return {hosts, transport.rank(), sends_once_per_host(exchange)};
}

}  // namespace

std::size_t Dispatcher::mem_size(const DispatcherOptions& options, int ranks, bool load_store) {
  check_options(options, ranks);
  const ExchangeLayout layout(options, ranks, load_store);
  const std::size_t pointers = options.exchange.format == DispatchFormat::row_pointers
                                   ? static_cast<std::size_t>(layout.expert_rows) * sizeof(void*)
                                   : 0;
  const std::size_t row_weights =
      options.row_weights ? static_cast<std::size_t>(layout.expert_rows) * sizeof(float) : 0;
  return layout.bytes + pointers + row_weights + input_bytes(options, layout) +
         output_bytes(options, layout);
}

Dispatcher::Dispatcher(const DispatcherOptions& options, Transport& transport, ThreadPool& pool)
    : options_((check_options(options, transport.size()), options)),
      transport_(transport),
      pool_(pool),
      ranks_(transport.size()),
      pull_(transport.capabilities().load_store),
      relays_(plan_relays(options.exchange, transport)),
      // Members of a group that spans hosts would want other sums.
      sums_per_host_(sums_per_rank() && sends_once_per_host(options.exchange) &&
                     options.dp_size == 1),
      layout_(options_, ranks_, pull_),
      receive_plan_({.ranks = options.exchange.hidden_partition ? 1 : ranks_,
                     .slots_per_rank = options.slots_per_rank,
                     .format = options.exchange.format,
                     .slot_capacity = layout_.slot_capacity,
                     .alignment = options.row_alignment,
                     .max_records = layout_.max_records,
                     .first_home = source_of(transport.rank())}),
      timeout_(options.timeout) {
  if (masks() && ranks_ > 1 && !transport.capabilities().survives_peer_death) {
    fail<ConfigError>(
        "transport {} ends all ranks when one dies, so none can be masked; use a backend that does "
        "not mask, or another transport",
        transport.name());
  }
  region_ = transport.allocate_region(layout_.bytes, ranks_ * kExchangeSignals);
  const auto num_ranks = static_cast<std::size_t>(ranks_);
  const auto slots = static_cast<std::size_t>(options.slots_per_rank);
  const auto tokens = static_cast<std::size_t>(options.max_tokens);
  for (Rank r = 0; r < ranks_; ++r)
    reads_.push_back(transport.peer_window(*region_, r).empty() ? 0 : 1);
  passed_.resize(num_ranks);
  send_plans_.assign(static_cast<std::size_t>(options.dp_size),
                     SendPlan(ranks_,
                              options.slots_per_rank,
                              options.topk,
                              options.max_tokens,
                              relays_.takers(transport.rank())));
  messages_.resize(num_ranks);
  counts_.resize(num_ranks * slots);
  result_rows_.resize(num_ranks * static_cast<std::size_t>(options.dp_size) * slots);
  tokens_of_.resize(num_ranks);
  if (options.exchange.format == DispatchFormat::row_pointers)
    row_pointers_.resize(static_cast<std::size_t>(layout_.expert_rows));
  if (options.row_weights) row_weights_.resize(static_cast<std::size_t>(layout_.expert_rows));
  if (masks()) no_row_ = Buffer(layout_.expert_row_bytes, Buffer::Use::sparse);
  expert_input_ = Buffer(input_bytes(options, layout_), Buffer::Use::sparse);
  expert_output_ = Buffer(output_bytes(options, layout_), Buffer::Use::sparse);
  tile_counts_.resize(slots);
  counts_of_tile_.resize(slots);
  tile_offsets_.resize(slots);
  result_puts_.resize(num_ranks);
  rows_expected_.resize(num_ranks);
  results_expected_.resize(num_ranks);
  const auto threads = static_cast<std::size_t>(pool.size());
  const std::size_t terms = std::max(num_ranks, static_cast<std::size_t>(options.topk));
  sum_rows_.assign(threads, std::vector<const std::byte*>(terms));
  sum_weights_.assign(threads, std::vector<float>(terms));
  if (sums_per_rank() && is_quantized(options.combine_wire))
    sum_row_.assign(threads, std::vector<float>(static_cast<std::size_t>(options.hidden)));
  masked_.resize(num_ranks);
  has_results_.resize(num_ranks);
  lost_.resize(tokens);
  lost_tokens_.reserve(tokens);
}

MutableRowsView Dispatcher::registered_input() const {
  return {at<std::byte>(layout_.stage), static_cast<std::ptrdiff_t>(layout_.dispatch_row_bytes)};
}

std::byte* Dispatcher::output() const {
  return expert_output_.data() ? expert_output_.data() : at<std::byte>(layout_.results);
}

void Dispatcher::enter(Phase expected, Phase next, std::string_view name) {
  FERRY_CHECK(phase_ == expected, "{} called out of turn, after {}", name, phase_name_);
  phase_ = next;
  phase_name_ = name;
  deadline_ = deadline_in(timeout_);
  if (masks()) throw_if_masked_by_others();
}

int Dispatcher::signal_index(Rank source, ExchangeSignal signal) const {
  return source * kExchangeSignals + static_cast<int>(signal);
}

/// Runs a call of the transport; what it throws says what this rank was doing. Where dead ranks are
/// masked, the call is made again without them.
template <class Call>
auto Dispatcher::in_context(Call call) {
  for (;;) {
    try {
      return call();
    } catch (const TransportError& e) {
      if (!mask_after(e))
        throw TransportError(e.kind(), e.peer(), fmt::format("{}: {}", where(), e.what()));
    }
  }
}

void Dispatcher::put(Rank peer,
                     std::size_t offset,
                     std::span<const std::byte> source,
                     ExchangeSignal signal) {
  in_context([&] {
    transport_.put({.region = region_.get(),
                    .peer = peer,
                    .offset = offset,
                    .source = source,
                    .signal = signal_index(transport_.rank(), signal)});
  });
}

void Dispatcher::raise(Rank peer, Rank source, ExchangeSignal signal) {
  in_context([&] {
    transport_.put({.region = region_.get(), .peer = peer, .signal = signal_index(source, signal)});
  });
}

std::size_t Dispatcher::rows_per_put(std::size_t row_bytes) const {
  return std::max<std::size_t>(1, transport_.capabilities().max_put_bytes / row_bytes);
}

std::uint32_t Dispatcher::put_rows(Rank peer,
                                   std::size_t to,
                                   std::size_t from,
                                   std::size_t rows,
                                   std::size_t row_bytes,
                                   ExchangeSignal signal) {
  const std::size_t most = rows_per_put(row_bytes);
  std::uint32_t puts = 0;
  for (std::size_t done = 0; done < rows; done += most, ++puts) {
    const std::size_t bytes = std::min(most, rows - done) * row_bytes;
    put(peer, to + done * row_bytes, {at<const std::byte>(from + done * row_bytes), bytes}, signal);
  }
  if (peer != transport_.rank()) stats_.bytes_wire += rows * row_bytes;
  if (!relays_.is_near(peer)) stats_.bytes_network += rows * row_bytes;
  return puts;
}

std::string Dispatcher::where() const {
  return fmt::format(
      "{} of rank {} (layer {}, exchange {})", phase_name_, transport_.rank(), layer_, epoch_);
}

bool Dispatcher::await(Rank peer, ExchangeSignal signal, std::uint64_t count) {
  const int index = signal_index(peer, signal);
  const WaitResult result = in_context([&] {
    return is_masked(peer) ? WaitResult::timed_out
                           : transport_.wait(*region_, index, count, deadline_);
  });
  if (result == WaitResult::reached) return true;
  if (is_masked(peer)) return false;
  if (masks() && peer != transport_.rank()) {
    mask_late(peer);
    return false;
  }
  throw TransportError(
      TransportError::Kind::timeout,
      peer,
      fmt::format("{} waited {} s for rank {}: expected {} messages, saw {}; that rank hangs or is "
                  "slow (raise --timeout)",
                  where(),
                  std::chrono::duration<double>(timeout_).count(),
                  peer,
                  count,
                  transport_.signal_value(*region_, index)));
}

const std::byte* Dispatcher::part_of(Rank rank) const {
  return transport_.peer_window(*region_, rank).data();
}

const std::byte* Dispatcher::rows_of(Rank home) {
  if (reads(home)) return part_of(home) + layout_.stage;
  return part_of(relays_.taker(home, transport_.rank())) + layout_.dispatch_slab +
         static_cast<std::size_t>(home) * layout_.dispatch_slab_rows * layout_.dispatch_row_bytes;
}

const std::byte* Dispatcher::results_of(Rank peer) {
  if (reads(peer)) return part_of(peer) + layout_.results;
  return at<std::byte>(layout_.combine_slab) +
         static_cast<std::size_t>(peer) * static_cast<std::size_t>(options_.dp_size) *
             layout_.combine_slab_rows * layout_.combine_slice_bytes;
}

bool Dispatcher::arrived(Rank peer, ExchangeSignal signal, std::uint64_t count) {
  if (is_masked(peer)) return true;
  if (transport_.signal_value(*region_, signal_index(peer, signal)) >= count) return true;
  // Who polls for ever hears of the deadline like who waits.
  return std::chrono::steady_clock::now() >= deadline_ && !await(peer, signal, count);
}

bool Dispatcher::poll() {
  const bool dispatching = phase_ == Phase::dispatch_sent;
  FERRY_CHECK(dispatching || phase_ == Phase::combine_sent, "poll() called after {}", phase_name_);
  in_context([&] { transport_.progress(); });
  if (dispatching) pass_on_what_arrived();
  for (Rank peer = 0; peer < ranks_; ++peer) {
    const auto p = static_cast<std::size_t>(peer);
    if (dispatching) {
      if (!arrived(peer, ExchangeSignal::dispatch_message, epoch_)) return false;
      const auto* header =
          at<const DispatchHeader>(layout_.dispatch_inbox + p * layout_.dispatch_message_bytes);
      const std::uint64_t rows = rows_expected_[p] + header->payload_puts;
      if (!arrived(peer, ExchangeSignal::dispatch_rows, rows)) return false;
    } else {
      if (!arrived(peer, ExchangeSignal::combine_message, epoch_)) return false;
      const auto* header =
          at<const CombineHeader>(layout_.combine_inbox + p * layout_.combine_message_bytes);
      const std::uint64_t rows = results_expected_[p] + header->payload_puts;
      if (!arrived(peer, ExchangeSignal::combine_rows, rows)) return false;
    }
  }
  return true;
}

// --- Ranks that are gone ------------------------------------------------------------------------

void Dispatcher::mask(Rank peer) {
  FERRY_CHECK(masks(), "mask() of a dispatcher that fails when a rank dies");
  if (is_masked(peer)) return;
  masked_[static_cast<std::size_t>(peer)] = 1;
  transport_.mask(peer);
}

/// Whether the error was the end of a peer that can be masked, and now is.
bool Dispatcher::mask_after(const TransportError& error) {
  const bool ended = error.kind() == TransportError::Kind::peer_died ||
                     error.kind() == TransportError::Kind::aborted;
  const Rank peer = error.peer();
  if (!masks() || !ended || peer < 0 || peer == transport_.rank() || is_masked(peer)) return false;
  mask(peer);
  return true;
}

/// A rank that may still live must learn that the others have gone on.
void Dispatcher::mask_late(Rank peer) {
  throw_if_masked_by_others();
  put(peer, 0, {}, ExchangeSignal::masked);
  mask(peer);
}

void Dispatcher::throw_if_masked_by_others() {
  for (Rank peer = 0; peer < ranks_; ++peer) {
    const int index = signal_index(peer, ExchangeSignal::masked);
    if (is_masked(peer) || transport_.signal_value(*region_, index) == 0) continue;
    throw TransportError(TransportError::Kind::aborted,
                         peer,
                         fmt::format("{}: rank {} waited too long for this rank and went on "
                                     "without it; start it again with the next group",
                                     where(),
                                     peer));
  }
}

}  // namespace ferry
