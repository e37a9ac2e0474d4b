// Dispatch: tokens out to the ranks that hold their experts.
//
// Send: the tokens go once, in wire type, into this rank's stage. Each peer gets a message that
// says which of them it computes; the rows themselves are pulled by the receiver where it can read
// our memory, and pushed into its slab (a mirror of our stage) where it cannot; to another host
// once for all its ranks, of which one passes them on (relay.cpp). Receive: messages first, because
// a row's place depends on what all ranks send; then the rows.
#include <algorithm>
#include <cstring>

#include "ferry/core/error.h"
#include "ferry/exchange/dispatcher.h"
#include "ferry/kernels/kernels.h"

namespace ferry {

namespace {

constexpr std::size_t kCopyGrainBytes = std::size_t{128}
                                        << 10;  // less is not worth a second thread

constexpr std::size_t kStreamedBytes = std::size_t{4} << 20;  // twice an L2

std::int64_t copy_grain(std::size_t row_bytes) {
  return static_cast<std::int64_t>(std::max<std::size_t>(1, kCopyGrainBytes / row_bytes));
}

}  // namespace

void Dispatcher::dispatch_send(const RoutedTokens& tokens) {
  timeout_ = tokens.timeout.value_or(options_.timeout);
  enter(Phase::idle, Phase::dispatch_sent, "dispatch_send");
  layer_ = tokens.layer;
  tokens_ = tokens.tokens;
  cached_ = tokens.cached;
  ++epoch_;
  if (!cached_) {
    for (int member = 0; member < options_.dp_size; ++member) {
      send_plans_[static_cast<std::size_t>(member)].build(
          tokens.slots, tokens.tokens, {.member = member, .of = options_.dp_size});
    }
  }
  FERRY_CHECK(own_plan().tokens() == tokens.tokens,
              "{} tokens with the kept routing of {}",
              tokens.tokens,
              own_plan().tokens());
  stage_rows(tokens);
  for (const Rank peer : relays_.send_order()) {
    if (is_masked(peer)) continue;
    const auto p = static_cast<std::size_t>(peer);
    const std::size_t bytes = write_dispatch_message(peer, tokens, num_row_puts(peer));
    const auto* message =
        at<const std::byte>(layout_.dispatch_outbox + p * layout_.dispatch_message_bytes);
    const auto me = static_cast<std::size_t>(transport_.rank());
    put(peer,
        layout_.dispatch_inbox + me * layout_.dispatch_message_bytes,
        {message, bytes},
        ExchangeSignal::dispatch_message);
    push_rows(peer);  // behind it: who has read the message plans while they travel
    const std::size_t records = own_plan().records(peer).size();
    stats_.bytes_logical += records * (layout_.dispatch_row_bytes + layout_.combine_slice_bytes);
  }
  ++stats_.exchanges;
}

void Dispatcher::stage_rows(const RoutedTokens& tokens) {
  const MutableRowsView stage = registered_input();
  if (tokens.rows.base == stage.base && !tokens.rows.pointers) {
    FERRY_CHECK((tokens.encoded || wire_type(tokens.type) == options_.dispatch_wire) &&
                    tokens.rows.stride == stage.stride,
                "rows in the registered input must have its type and stride");
    return;
  }
  const std::optional<DType> plain = element_type(options_.dispatch_wire);
  if (!tokens.encoded && !plain && tokens.type == DType::f16)
    fail<ConfigError>("{} wires take f32 or bf16 rows, not f16",
                      wire_type_name(options_.dispatch_wire));
  const auto stage_row = [&](std::int64_t t) {
    if (tokens.encoded) {
      std::memcpy(stage.row(t), tokens.rows.row(t), layout_.dispatch_row_bytes);
    } else if (plain) {
      kernels().convert(tokens.rows.row(t), tokens.type, stage.row(t), *plain, layout_.columns);
    } else {
      kernels().encode(
          tokens.rows.row(t), tokens.type, stage.row(t), options_.dispatch_wire, layout_.columns);
    }
  };
  const int me = transport_.rank();
  pool_.parallel_for(tokens.tokens,
                     copy_grain(layout_.dispatch_row_bytes),
                     [&](std::int64_t begin, std::int64_t end, int) {
                       for (std::int64_t t = begin; t < end; ++t) {
                         if (share_of(static_cast<std::size_t>(t)) == me - base_of(me))
                           stage_row(t);
                       }
                     });
}

template <class Push>
void Dispatcher::for_pushed_rows(Rank peer, Push push) const {
  if (reads(peer) || relays_.taker(transport_.rank(), peer) != peer) return;
  const SendPlan& plan = own_plan();
  switch (options_.exchange.send_per) {
    case ExchangeOptions::SendPer::rank:
      if (options_.dp_size == 1) {
        push(0, 0, static_cast<std::size_t>(tokens_));
        break;
      }
      for (int t = transport_.rank() - base_of(transport_.rank()); t < tokens_;
           t += options_.dp_size)
        push(static_cast<std::size_t>(t), static_cast<std::size_t>(t), 1);
      break;
    case ExchangeOptions::SendPer::token_rank:
      for (const TokenRun& run : plan.runs(peer)) push(run.first, run.first, run.count);
      break;
    case ExchangeOptions::SendPer::token_expert: {
      const std::span<const Record> records = plan.records(peer);
      for (std::size_t i = 0; i < records.size(); ++i) push(i, records[i].token, 1);
      break;
    }
  }
}

std::uint32_t Dispatcher::num_row_puts(Rank peer) const {
  if (!reads(peer) && relays_.taker(transport_.rank(), peer) != peer) return 1;  // the taker's word
  const std::size_t most = rows_per_put(layout_.dispatch_row_bytes);
  std::size_t puts = 0;
  for_pushed_rows(
      peer, [&](std::size_t, std::size_t, std::size_t rows) { puts += (rows + most - 1) / most; });
  return static_cast<std::uint32_t>(puts);
}

void Dispatcher::push_rows(Rank peer) {
  const std::size_t row_bytes = layout_.dispatch_row_bytes;
  const auto me = static_cast<std::size_t>(transport_.rank());
  const std::size_t slab = layout_.dispatch_slab + me * layout_.dispatch_slab_rows * row_bytes;
  for_pushed_rows(peer, [&](std::size_t to_row, std::size_t token, std::size_t rows) {
    put_rows(peer,
             slab + to_row * row_bytes,
             layout_.stage + token * row_bytes,
             rows,
             row_bytes,
             ExchangeSignal::dispatch_rows);
  });
}

ExpertRows Dispatcher::dispatch_recv() {
  receive_messages();
  for (const Rank home : relays_.receive_order()) take_rows(home);
  return rows_of_slots(receive_plan().counts(), receive_plan().offsets());
}

ExpertRows Dispatcher::rows_of_slots(std::span<const std::int32_t> counts,
                                     std::span<const std::int64_t> offsets) const {
  return {.format = options_.exchange.format,
          .counts = counts,
          .offsets = offsets,
          .in = {expert_input_.data(),
                 static_cast<std::ptrdiff_t>(layout_.expert_row_bytes),
                 row_pointers_.empty() ? nullptr : row_pointers_.data()},
          .in_type = options_.expert_type,
          .weights = row_weights_,
          .out = {output(), static_cast<std::ptrdiff_t>(layout_.output_row_bytes)},
          .out_type = options_.output_type(),
          .hidden = options_.hidden};
}

/// Everything but the rows: what all ranks send, and where it will stand.
void Dispatcher::receive_messages() {
  enter(Phase::dispatch_sent, Phase::dispatched, "dispatch_recv");
  chunks_of_all_ = 0;
  finished_slots_ = 0;
  std::fill(result_puts_.begin(), result_puts_.end(), 0U);
  // This rank's own rows first: where their places depend on nobody else, they fill the wait.
  const Rank me = transport_.rank();
  read_dispatch_message(me);
  own_rows_taken_ = false;
  // Until the messages say, as much may arrive as leaves.
  arriving_bytes_ = static_cast<std::size_t>(tokens_) * static_cast<std::size_t>(options_.topk) *
                    layout_.expert_row_bytes;
  const bool columns = options_.exchange.hidden_partition;
  const DispatchMessage& own = messages_[static_cast<std::size_t>(me)];
  if (!columns && (cached_ || receive_plan_.places_first_home_alone())) {
    if (!cached_ && !receive_plan_.place_first_home(own.records, own.counts))
      throw contradiction(me);
    copy_rows(me);
    own_rows_taken_ = true;
  }
  for (const Rank home : relays_.receive_order())
    if (home != me) read_dispatch_message(home);
  check_groups();
  arriving_bytes_ = 0;
  for (const DispatchMessage& message : messages_)
    arriving_bytes_ += message.records.size() * layout_.expert_row_bytes;
  if (!cached_) {
    receive_plan_.build(
        [this](Rank home) { return messages_[static_cast<std::size_t>(home)].counts; });
    // Columns of a row come from all ranks to one place.
    if (columns && !receive_plan_.place(0, messages_[0].records)) throw contradiction(0);
  }
}

void Dispatcher::take_rows(Rank home) {
  if (home == transport_.rank() && own_rows_taken_) return;
  if (!cached_ && !options_.exchange.hidden_partition &&
      !receive_plan_.place(home, messages_[static_cast<std::size_t>(home)].records))
    throw contradiction(home);
  copy_rows(home);
}

/// Brings the rows of `home` to their places, or points at them.
void Dispatcher::copy_rows(Rank home) {
  const auto h = static_cast<std::size_t>(home);
  const DispatchMessage& message = messages_[h];
  const bool columns = options_.exchange.hidden_partition;
  const std::span<const std::int64_t> places = receive_plan().places(source_of(home));
  rows_expected_[h] += message.payload_puts;
  if (message.payload_puts && !await(home, ExchangeSignal::dispatch_rows, rows_expected_[h])) {
    // The results of what stands in these places will go nowhere; but it must be memory.
    if (!row_pointers_.empty()) {
      for (std::size_t i = 0; i < message.records.size(); ++i)
        row_pointers_[static_cast<std::size_t>(places[i])] = no_row_.data();
    }
    return;
  }
  pass_on(home);
  const std::byte* rows = rows_of(home);
  const std::size_t row_bytes = layout_.dispatch_row_bytes;
  const Rank read_from = reads(home) ? home : relays_.taker(home, transport_.rank());
  if (read_from != transport_.rank()) stats_.bytes_wire += message.records.size() * row_bytes;

  for (std::size_t i = 0; i < message.row_weights.size(); ++i)
    row_weights_[static_cast<std::size_t>(places[i])] = message.row_weights[i];
  const bool point = !row_pointers_.empty();
  // Only rows pushed for each expert lie record by record; all others lie where the token lay.
  const bool by_record =
      !reads(home) && options_.exchange.send_per == ExchangeOptions::SendPer::token_expert;
  // Ranks that send columns fill each row together.
  const std::size_t first_column = columns ? h * static_cast<std::size_t>(layout_.columns) : 0;
  const bool as_delivered = options_.expert_type == options_.dispatch_wire;
  const std::size_t element = as_delivered && is_quantized(options_.expert_type)
                                  ? 0
                                  : dtype_bytes(element_type(options_.expert_type).value());
  // What one exchange brings is read once, by the experts; beyond the caches it is not found there.
  const bool streams = arriving_bytes_ >= kStreamedBytes;
  const auto take = [&](std::int64_t begin, std::int64_t end, int) {
    const std::byte* decoded = nullptr;  // where the record before went
    for (auto i = static_cast<std::size_t>(begin); i < static_cast<std::size_t>(end); ++i) {
      const std::byte* row = rows + (by_record ? i : message.records[i].token) * row_bytes;
      const auto place = static_cast<std::size_t>(places[i]);
      if (point) {
        row_pointers_[place] = row;
        continue;
      }
      std::byte* to =
          expert_input_.data() + place * layout_.expert_row_bytes + first_column * element;
      if (as_delivered && streams) {
        kernels().stream_copy(to, row, row_bytes);
      } else if (as_delivered) {
        std::memcpy(to, row, row_bytes);
      } else if (decoded && message.records[i].token == message.records[i - 1].token) {
        std::memcpy(to, decoded, static_cast<std::size_t>(layout_.columns) * element);
      } else {
        kernels().decode(row,
                         options_.dispatch_wire,
                         to,
                         element_type(options_.expert_type).value(),
                         layout_.columns);
      }
      decoded = to;
    }
    if (streams) kernels().stream_fence();
  };
  const auto records = static_cast<std::int64_t>(message.records.size());
  if (point) {
    take(0, records, 0);
  } else {
    pool_.parallel_for(records, copy_grain(row_bytes), take);
  }
}

std::unique_ptr<CachedRouting> Dispatcher::keep_routing() const {
  FERRY_CHECK(phase_ == Phase::dispatched, "keep_routing() called after {}", phase_name_);
  auto kept = std::unique_ptr<CachedRouting>(new CachedRouting(send_plans(), receive_plan()));
  for (const DispatchMessage& m : messages_) {
    kept->messages_.push_back({{m.counts.begin(), m.counts.end()},
                               {m.records.begin(), m.records.end()},
                               {m.entries.begin(), m.entries.end()},
                               {m.row_weights.begin(), m.row_weights.end()}});
  }
  return kept;
}

}  // namespace ferry
