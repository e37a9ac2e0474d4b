// Dispatch: tokens out to the ranks that hold their experts.
//
// Send: the tokens go once, in wire type, into this rank's stage. Each peer gets a message that
// says which of them it computes; the rows themselves are pulled by the receiver where it can read
// our memory, and pushed into its slab (a mirror of our stage) where it cannot. Receive: messages
// first, because a row's place depends on what all ranks send; then the rows.
#include <algorithm>
#include <cstring>

#include "ferry/core/error.h"
#include "ferry/kernels/kernels.h"
#include "ferry/moe/dispatcher.h"

namespace ferry {

namespace {

constexpr std::size_t kCopyGrainBytes = std::size_t{128}
                                        << 10;  // less is not worth a second thread

std::int64_t copy_grain(std::size_t row_bytes) {
  return static_cast<std::int64_t>(std::max<std::size_t>(1, kCopyGrainBytes / row_bytes));
}

}  // namespace

void Dispatcher::dispatch_send(const RoutedTokens& tokens) {
  enter(Phase::idle, Phase::dispatch_sent, "dispatch_send");
  layer_ = tokens.layer;
  ++epoch_;
  send_plan_.build(tokens.slots, tokens.tokens);
  stage_rows(tokens);
  for (int i = 1; i <= ranks_; ++i) {  // this rank's own message last: peers wait longer for theirs
    const Rank peer = (transport_.rank() + i) % ranks_;
    const auto p = static_cast<std::size_t>(peer);
    const std::uint32_t puts = pull_ ? 0 : push_rows(peer);
    const std::size_t bytes = write_dispatch_message(peer, tokens, puts);
    const auto* message =
        at<const std::byte>(layout_.dispatch_outbox + p * layout_.dispatch_message_bytes);
    const auto me = static_cast<std::size_t>(transport_.rank());
    put(peer,
        layout_.dispatch_inbox + me * layout_.dispatch_message_bytes,
        {message, bytes},
        ExchangeSignal::dispatch_message);
    const std::size_t records = send_plan_.records(peer);
    stats_.bytes_logical += records * (layout_.dispatch_row_bytes + layout_.combine_row_bytes);
  }
  ++stats_.exchanges;
}

void Dispatcher::stage_rows(const RoutedTokens& tokens) {
  const MutableRowsView stage = registered_input();
  if (tokens.rows.base == stage.base && !tokens.rows.pointers) {
    FERRY_CHECK(tokens.type == options_.dispatch_wire && tokens.rows.stride == stage.stride,
                "rows in the registered input must have its type and stride");
    return;
  }
  pool_.parallel_for(tokens.tokens,
                     copy_grain(layout_.dispatch_row_bytes),
                     [&](std::int64_t begin, std::int64_t end, int) {
                       for (std::int64_t t = begin; t < end; ++t) {
                         kernels().convert(tokens.rows.row(t),
                                           tokens.type,
                                           stage.row(t),
                                           options_.dispatch_wire,
                                           options_.hidden);
                       }
                     });
}

std::uint32_t Dispatcher::push_rows(Rank peer) {
  const std::size_t row_bytes = layout_.dispatch_row_bytes;
  const auto me = static_cast<std::size_t>(transport_.rank());
  const std::size_t slab = layout_.dispatch_slab + me * layout_.dispatch_slab_rows * row_bytes;
  std::uint32_t puts = 0;
  const auto push = [&](std::size_t to_row, std::size_t token, std::size_t rows) {
    puts += put_rows(peer,
                     slab + to_row * row_bytes,
                     layout_.stage + token * row_bytes,
                     rows,
                     row_bytes,
                     ExchangeSignal::dispatch_rows);
  };
  switch (options_.exchange.send_per) {
    case ExchangeOptions::SendPer::rank:
      push(0, 0, static_cast<std::size_t>(send_plan_.tokens()));
      break;
    case ExchangeOptions::SendPer::token_rank:
      for (const TokenRun& run : send_plan_.runs(peer)) push(run.first, run.first, run.count);
      break;
    case ExchangeOptions::SendPer::token_expert: {
      const std::span<const std::uint32_t> tokens = send_plan_.record_tokens(peer);
      for (std::size_t record = 0; record < tokens.size(); ++record)
        push(record, tokens[record], 1);
      break;
    }
  }
  return puts;
}

std::size_t Dispatcher::write_dispatch_message(Rank peer,
                                               const RoutedTokens& tokens,
                                               std::uint32_t puts) {
  const auto p = static_cast<std::size_t>(peer);
  std::byte* out = at<std::byte>(layout_.dispatch_outbox + p * layout_.dispatch_message_bytes);
  const std::byte* begin = out;
  const auto append = [&out](const void* data, std::size_t bytes) {
    if (bytes) std::memcpy(out, data, bytes);
    out += bytes;
  };
  DispatchHeader header{.epoch = epoch_,
                        .tokens = static_cast<std::uint32_t>(tokens.tokens),
                        .chunks = static_cast<std::uint32_t>(tokens.chunks),
                        .records = send_plan_.records(peer),
                        .payload_puts = puts};
  out += sizeof header;  // written last: it counts the reduce entries
  append(send_plan_.counts(peer).data(), send_plan_.counts(peer).size_bytes());
  append(send_plan_.record_tokens(peer).data(), send_plan_.record_tokens(peer).size_bytes());
  if (options_.exchange.reduce_at == ExchangeOptions::ReduceAt::rank_then_home) {
    for (int t = 0; t < tokens.tokens; ++t) {
      for (int k = 0; k < options_.topk; ++k) {
        const RecordPlace place = send_plan_.place(t, k);
        if (place.rank != peer) continue;
        const auto entry = static_cast<std::size_t>(t * options_.topk + k);
        const ReduceEntry reduce{
            static_cast<std::uint32_t>(t), place.record, tokens.weights[entry]};
        append(&reduce, sizeof reduce);
        ++header.reduce_entries;
      }
    }
  }
  std::memcpy(const_cast<std::byte*>(begin), &header, sizeof header);
  return static_cast<std::size_t>(out - begin);
}

ExpertRows Dispatcher::dispatch_recv() {
  enter(Phase::dispatch_sent, Phase::dispatched, "dispatch_recv");
  chunks_of_all_ = 0;
  for (Rank home = 0; home < ranks_; ++home) read_dispatch_message(home);
  receive_plan_.build([this](Rank home) {
    const auto h = static_cast<std::size_t>(home);
    const auto* counts = at<const std::uint32_t>(
        layout_.dispatch_inbox + h * layout_.dispatch_message_bytes + sizeof(DispatchHeader));
    return std::span(counts, static_cast<std::size_t>(options_.slots_per_rank));
  });
  for (int i = 0; i < ranks_; ++i)  // own rows first: they are there
    take_rows((transport_.rank() + i) % ranks_);

  const auto stride = static_cast<std::ptrdiff_t>(layout_.expert_row_bytes);
  const auto out_stride = static_cast<std::ptrdiff_t>(layout_.combine_row_bytes);
  std::byte* out = expert_output_.data() ? expert_output_.data() : at<std::byte>(layout_.results);
  return {
      .format = options_.exchange.format,
      .counts = receive_plan_.counts(),
      .offsets = receive_plan_.offsets(),
      .in = {expert_input_.data(), stride, row_pointers_.empty() ? nullptr : row_pointers_.data()},
      .in_type = options_.expert_type,
      .out = {out, out_stride},
      .out_type = options_.combine_wire,
      .hidden = options_.hidden};
}

/// Waits for the message of `home` and checks that nothing in it leads outside our buffers.
void Dispatcher::read_dispatch_message(Rank home) {
  await(home, ExchangeSignal::dispatch_message, epoch_);
  const auto h = static_cast<std::size_t>(home);
  const auto* message =
      at<const std::byte>(layout_.dispatch_inbox + h * layout_.dispatch_message_bytes);
  const auto* header = reinterpret_cast<const DispatchHeader*>(message);
  const auto* counts = reinterpret_cast<const std::uint32_t*>(header + 1);
  const auto slots = static_cast<std::size_t>(options_.slots_per_rank);
  std::uint64_t records = 0;
  bool sane =
      header->epoch == epoch_ && header->tokens <= static_cast<std::uint32_t>(options_.max_tokens);
  for (std::size_t slot = 0; sane && slot < slots; ++slot) {
    sane = counts[slot] <= header->tokens;
    records += counts[slot];
  }
  sane = sane && records == header->records &&
         header->reduce_entries <= header->tokens * static_cast<std::uint32_t>(options_.topk);
  const std::uint32_t* tokens = counts + slots;
  for (std::uint64_t i = 0; sane && i < records; ++i) sane = tokens[i] < header->tokens;
  const auto* entries = reinterpret_cast<const ReduceEntry*>(tokens + records);
  for (std::uint32_t i = 0; sane && i < header->reduce_entries; ++i)
    sane = entries[i].token < header->tokens && entries[i].record < records;
  if (!sane) {
    throw TransportError(
        TransportError::Kind::io,
        home,
        fmt::format("dispatch_recv (layer {}, exchange {}): the message of rank {} "
                    "contradicts itself (exchange {}, {} tokens, {} records); the "
                    "ranks run different options or versions",
                    layer_,
                    epoch_,
                    home,
                    header->epoch,
                    header->tokens,
                    header->records));
  }
  chunks_of_all_ = std::max(chunks_of_all_, static_cast<int>(header->chunks));
}

/// Brings the rows of `home` to their places, or points at them.
void Dispatcher::take_rows(Rank home) {
  const auto h = static_cast<std::size_t>(home);
  const auto* header =
      at<const DispatchHeader>(layout_.dispatch_inbox + h * layout_.dispatch_message_bytes);
  rows_expected_[h] += header->payload_puts;
  if (header->payload_puts) await(home, ExchangeSignal::dispatch_rows, rows_expected_[h]);

  const auto* counts = reinterpret_cast<const std::uint32_t*>(header + 1);
  const std::uint32_t* tokens = counts + options_.slots_per_rank;
  const std::byte* rows = rows_of(home);
  const std::size_t row_bytes = layout_.dispatch_row_bytes;
  const std::span<const std::int64_t> first_rows = receive_plan_.first_rows(home);
  if (pull_ && home != transport_.rank()) stats_.bytes_wire += header->records * row_bytes;

  const bool point = !row_pointers_.empty();
  // Only rows pushed for each expert lie record by record; all others lie where the token lay.
  const bool by_record =
      !pull_ && options_.exchange.send_per == ExchangeOptions::SendPer::token_expert;
  const auto take = [&](std::int64_t begin, std::int64_t end, int) {
    std::size_t slot = 0;
    std::int64_t slot_begin = 0;  // first record of `slot`
    for (std::int64_t i = begin; i < end; ++i) {
      while (i >= slot_begin + counts[slot]) slot_begin += counts[slot++];
      const std::byte* row =
          rows + (by_record ? static_cast<std::size_t>(i) : tokens[i]) * row_bytes;
      const auto place = static_cast<std::size_t>(first_rows[slot] + i - slot_begin);
      if (point) {
        row_pointers_[place] = row;
      } else {
        kernels().convert(row,
                          options_.dispatch_wire,
                          expert_input_.data() + place * layout_.expert_row_bytes,
                          options_.expert_type,
                          options_.hidden);
      }
    }
  };
  if (point) {
    take(0, header->records, 0);
  } else {
    pool_.parallel_for(header->records, copy_grain(row_bytes), take);
  }
}

}  // namespace ferry
