#include "ferry/moe/dispatcher.h"

#include <algorithm>
#include <string>

#include "ferry/core/error.h"
#include "ferry/kernels/kernels.h"

namespace ferry {

namespace {

using SendPer = ExchangeOptions::SendPer;
using ReduceAt = ExchangeOptions::ReduceAt;

constexpr std::int64_t kRaggedAlignment = 16;  // rows of an AMX tile
constexpr std::size_t kPage = 4096;
constexpr std::size_t kLine = 64;

std::size_t aligned(std::size_t bytes, std::size_t unit) {
  return (bytes + unit - 1) / unit * unit;
}

DispatcherOptions checked(const DispatcherOptions& o) {
  FERRY_CHECK(o.slots_per_rank >= 1 && o.hidden >= 1 && o.topk >= 1 && o.max_tokens >= 1,
              "dispatcher for {} slots per rank, H {}, top-{}, {} tokens",
              o.slots_per_rank,
              o.hidden,
              o.topk,
              o.max_tokens);
  const auto travels = [](DType t) { return t == DType::f32 || t == DType::bf16; };
  if (!travels(o.dispatch_wire) || !travels(o.combine_wire)) {
    fail<ConfigError>("wire type {} is not supported; use bf16 or f32",
                      dtype_name(travels(o.dispatch_wire) ? o.combine_wire : o.dispatch_wire));
  }
  if (o.exchange.format == DispatchFormat::row_pointers && o.expert_type != o.dispatch_wire) {
    fail<ConfigError>(
        "experts that read {} rows in place cannot take a {} wire; use the same type "
        "or a backend that copies rows",
        dtype_name(o.expert_type),
        dtype_name(o.dispatch_wire));
  }
  return o;
}

}  // namespace

ExchangeLayout::ExchangeLayout(const DispatcherOptions& o, int ranks, bool load_store) {
  const auto num_ranks = static_cast<std::size_t>(ranks);
  const auto slots = static_cast<std::size_t>(o.slots_per_rank);
  const auto tokens = static_cast<std::size_t>(o.max_tokens);
  // A token has at most one record for a slot.
  max_records = tokens * static_cast<std::size_t>(std::min(o.topk, o.slots_per_rank));
  const std::size_t entries = tokens * static_cast<std::size_t>(o.topk);
  const bool sums = o.exchange.reduce_at == ReduceAt::rank_then_home;

  dispatch_row_bytes = static_cast<std::size_t>(o.hidden) * dtype_bytes(o.dispatch_wire);
  expert_row_bytes = static_cast<std::size_t>(o.hidden) * dtype_bytes(o.expert_type);
  combine_row_bytes = static_cast<std::size_t>(o.hidden) * dtype_bytes(o.combine_wire);
  dispatch_message_bytes =
      aligned(sizeof(DispatchHeader) + slots * sizeof(std::uint32_t) +
                  max_records * sizeof(Record) + (sums ? entries * sizeof(ReduceEntry) : 0),
              kLine);
  combine_message_bytes = aligned(sizeof(CombineHeader) + slots * sizeof(std::uint64_t), kLine);
  slot_capacity = static_cast<std::int64_t>(num_ranks * tokens);
  expert_rows = o.exchange.format == DispatchFormat::padded
                    ? slot_capacity * o.slots_per_rank
                    : static_cast<std::int64_t>(num_ranks * max_records) +
                          kRaggedAlignment * o.slots_per_rank;

  dispatch_slab_rows = o.exchange.send_per == SendPer::token_expert ? max_records : tokens;
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
    combine_slab = take(num_ranks * combine_slab_rows * combine_row_bytes, kPage);
  }
  bytes = aligned(bytes, kPage);
}

std::size_t Dispatcher::mem_size(const DispatcherOptions& options, int ranks, bool load_store) {
  const ExchangeLayout layout(checked(options), ranks, load_store);
  const auto rows = static_cast<std::size_t>(layout.expert_rows);
  const std::size_t input = options.exchange.format == DispatchFormat::row_pointers
                                ? rows * sizeof(const std::byte*)
                                : rows * layout.expert_row_bytes;
  const std::size_t output =
      options.exchange.reduce_at == ReduceAt::rank_then_home ? rows * layout.combine_row_bytes : 0;
  return layout.bytes + input + output;
}

Dispatcher::Dispatcher(const DispatcherOptions& options, Transport& transport, ThreadPool& pool)
    : options_(checked(options)),
      transport_(transport),
      pool_(pool),
      ranks_(transport.size()),
      pull_(transport.capabilities().load_store),
      layout_(options_, ranks_, pull_),
      region_(transport.allocate_region(layout_.bytes, ranks_ * kExchangeSignals)),
      send_plan_(ranks_, options.slots_per_rank, options.topk, options.max_tokens),
      receive_plan_({.ranks = ranks_,
                     .slots_per_rank = options.slots_per_rank,
                     .format = options.exchange.format,
                     .slot_capacity = layout_.slot_capacity,
                     .alignment = kRaggedAlignment,
                     .max_records = layout_.max_records}) {
  const auto rows = static_cast<std::size_t>(layout_.expert_rows);
  if (options.exchange.format == DispatchFormat::row_pointers) {
    row_pointers_.resize(rows);
  } else {
    expert_input_ = Buffer(rows * layout_.expert_row_bytes, Buffer::Use::sparse);
  }
  if (options.exchange.reduce_at == ReduceAt::rank_then_home)
    expert_output_ = Buffer(rows * layout_.combine_row_bytes, Buffer::Use::sparse);
  const auto num_ranks = static_cast<std::size_t>(ranks_);
  rows_expected_.resize(num_ranks);
  results_expected_.resize(num_ranks);
  const std::size_t terms = std::max(num_ranks, static_cast<std::size_t>(options.topk));
  sum_rows_.assign(static_cast<std::size_t>(pool.size()), std::vector<const std::byte*>(terms));
  sum_weights_.assign(static_cast<std::size_t>(pool.size()), std::vector<float>(terms));
}

MutableRowsView Dispatcher::registered_input() const {
  return {at<std::byte>(layout_.stage), static_cast<std::ptrdiff_t>(layout_.dispatch_row_bytes)};
}

void Dispatcher::enter(Phase expected, Phase next, std::string_view name) {
  FERRY_CHECK(phase_ == expected, "{} called out of turn, after {}", name, phase_name_);
  phase_ = next;
  phase_name_ = name;
  deadline_ = deadline_in(options_.timeout);
}

int Dispatcher::signal_index(Rank source, ExchangeSignal signal) const {
  return source * kExchangeSignals + static_cast<int>(signal);
}

/// Runs a call of the transport; what it throws says what this rank was doing.
template <class Call>
auto Dispatcher::in_context(Call call) {
  try {
    return call();
  } catch (const TransportError& e) {
    throw TransportError(e.kind(), e.peer(), fmt::format("{}: {}", where(), e.what()));
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

std::uint32_t Dispatcher::put_rows(Rank peer,
                                   std::size_t to,
                                   std::size_t from,
                                   std::size_t rows,
                                   std::size_t row_bytes,
                                   ExchangeSignal signal) {
  const std::size_t rows_per_put =
      std::max<std::size_t>(1, transport_.capabilities().max_put_bytes / row_bytes);
  std::uint32_t puts = 0;
  for (std::size_t done = 0; done < rows; done += rows_per_put, ++puts) {
    const std::size_t bytes = std::min(rows_per_put, rows - done) * row_bytes;
    put(peer, to + done * row_bytes, {at<const std::byte>(from + done * row_bytes), bytes}, signal);
  }
  if (peer != transport_.rank()) stats_.bytes_wire += rows * row_bytes;
  return puts;
}

std::string Dispatcher::where() const {
  return fmt::format(
      "{} of rank {} (layer {}, exchange {})", phase_name_, transport_.rank(), layer_, epoch_);
}

void Dispatcher::await(Rank peer, ExchangeSignal signal, std::uint64_t count) {
  const int index = signal_index(peer, signal);
  const WaitResult result =
      in_context([&] { return transport_.wait(*region_, index, count, deadline_); });
  if (result == WaitResult::reached) return;
  throw TransportError(
      TransportError::Kind::timeout,
      peer,
      fmt::format("{} waited {} s for rank {}: expected {} messages, saw {}; that rank hangs or is "
                  "slow (raise --timeout)",
                  where(),
                  std::chrono::duration<double>(options_.timeout).count(),
                  peer,
                  count,
                  transport_.signal_value(*region_, index)));
}

const std::byte* Dispatcher::rows_of(Rank home) {
  if (pull_) return transport_.peer_window(*region_, home).data() + layout_.stage;
  return at<std::byte>(layout_.dispatch_slab) +
         static_cast<std::size_t>(home) * layout_.dispatch_slab_rows * layout_.dispatch_row_bytes;
}

const std::byte* Dispatcher::results_of(Rank peer) {
  if (pull_) return transport_.peer_window(*region_, peer).data() + layout_.results;
  return at<std::byte>(layout_.combine_slab) +
         static_cast<std::size_t>(peer) * layout_.combine_slab_rows * layout_.combine_row_bytes;
}

bool Dispatcher::poll() {
  const bool dispatching = phase_ == Phase::dispatch_sent;
  FERRY_CHECK(dispatching || phase_ == Phase::combine_sent, "poll() called after {}", phase_name_);
  const auto arrived = [&](Rank peer, ExchangeSignal signal, std::uint64_t count) {
    if (transport_.signal_value(*region_, signal_index(peer, signal)) >= count) return true;
    // Who polls for ever hears of the deadline like who waits.
    if (std::chrono::steady_clock::now() >= deadline_) await(peer, signal, count);
    return false;
  };
  in_context([&] { transport_.progress(); });
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

}  // namespace ferry
