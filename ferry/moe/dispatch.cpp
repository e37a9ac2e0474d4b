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
    const std::size_t records = send_plan_.records(peer).size();
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
      const std::span<const Record> records = send_plan_.records(peer);
      for (std::size_t i = 0; i < records.size(); ++i) push(i, records[i].token, 1);
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
                        .records = static_cast<std::uint32_t>(send_plan_.records(peer).size()),
                        .payload_puts = puts};
  out += sizeof header;  // written last: it counts the reduce entries
  append(send_plan_.counts(peer).data(), send_plan_.counts(peer).size_bytes());
  append(send_plan_.records(peer).data(), send_plan_.records(peer).size_bytes());
  if (options_.exchange.reduce_at == ExchangeOptions::ReduceAt::rank_then_home) {
    header.reduce_entries = append_reduce_entries(peer, tokens, out);
  }
  std::memcpy(const_cast<std::byte*>(begin), &header, sizeof header);
  return static_cast<std::size_t>(out - begin);
}

/// The tokens' weights for the sums that `peer` will make. Returns how many entries it wrote at
/// `out` and moves it behind them.
std::uint32_t Dispatcher::append_reduce_entries(Rank peer,
                                                const RoutedTokens& tokens,
                                                std::byte*& out) const {
  const std::span<const Record> records = send_plan_.records(peer);
  std::uint32_t entries = 0;
  std::uint32_t first = 0;  // record of the token in hand
  for (int t = 0; t < tokens.tokens; ++t) {
    const auto token = static_cast<std::uint32_t>(t);
    while (first < records.size() && records[first].token < token) ++first;
    for (int k = 0; k < options_.topk; ++k) {
      const RecordPlace place = send_plan_.place(t, k);
      if (place.rank != peer) continue;
      std::uint32_t record = first;
      while (records[record].slot != static_cast<std::uint32_t>(place.slot)) ++record;
      const std::size_t entry =
          static_cast<std::size_t>(t) * static_cast<std::size_t>(options_.topk) +
          static_cast<std::size_t>(k);
      const ReduceEntry reduce{token, record, tokens.weights[entry]};
      std::memcpy(out, &reduce, sizeof reduce);
      out += sizeof reduce;
      ++entries;
    }
  }
  return entries;
}

ExpertRows Dispatcher::dispatch_recv() {
  enter(Phase::dispatch_sent, Phase::dispatched, "dispatch_recv");
  chunks_of_all_ = 0;
  for (Rank home = 0; home < ranks_; ++home) read_dispatch_message(home);
  receive_plan_.build([this](Rank home) { return message_of(home).counts; });
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

DispatchMessage Dispatcher::message_of(Rank home) const {
  const auto h = static_cast<std::size_t>(home);
  const auto* header =
      at<const DispatchHeader>(layout_.dispatch_inbox + h * layout_.dispatch_message_bytes);
  const auto* counts = reinterpret_cast<const std::uint32_t*>(header + 1);
  const auto* records = reinterpret_cast<const Record*>(counts + options_.slots_per_rank);
  const auto* entries = reinterpret_cast<const ReduceEntry*>(records + header->records);
  return {*header,
          {counts, static_cast<std::size_t>(options_.slots_per_rank)},
          {records, header->records},
          {entries, header->reduce_entries}};
}

/// Waits for the message of `home` and checks that nothing in it leads outside our buffers.
void Dispatcher::read_dispatch_message(Rank home) {
  await(home, ExchangeSignal::dispatch_message, epoch_);
  const auto [header, counts, records, entries] = message_of(home);
  bool sane = header.epoch == epoch_ &&
              header.tokens <= static_cast<std::uint32_t>(options_.max_tokens) &&
              header.records <= layout_.max_records &&
              header.reduce_entries <= header.tokens * static_cast<std::uint32_t>(options_.topk);
  std::uint64_t announced = 0;
  for (std::size_t slot = 0; sane && slot < counts.size(); ++slot) {
    sane = counts[slot] <= header.tokens;
    announced += counts[slot];
  }
  sane = sane && announced == header.records;
  for (std::size_t i = 0; sane && i < records.size(); ++i) sane = records[i].token < header.tokens;
  for (std::size_t i = 0; sane && i < entries.size(); ++i)
    sane = entries[i].token < header.tokens && entries[i].record < header.records;
  if (!sane) throw contradiction(home);
  chunks_of_all_ = std::max(chunks_of_all_, static_cast<int>(header.chunks));
}

TransportError Dispatcher::contradiction(Rank home) const {
  const DispatchHeader& header = message_of(home).header;
  return {TransportError::Kind::io,
          home,
          fmt::format("{}: the message of rank {} contradicts itself (exchange {}, {} tokens, {} "
                      "records); the ranks run different options or versions",
                      where(),
                      home,
                      header.epoch,
                      header.tokens,
                      header.records)};
}

/// Brings the rows of `home` to their places, or points at them.
void Dispatcher::take_rows(Rank home) {
  const auto h = static_cast<std::size_t>(home);
  const DispatchMessage message = message_of(home);
  if (!receive_plan_.place(home, message.records)) throw contradiction(home);
  rows_expected_[h] += message.header.payload_puts;
  if (message.header.payload_puts) await(home, ExchangeSignal::dispatch_rows, rows_expected_[h]);

  const std::byte* rows = rows_of(home);
  const std::size_t row_bytes = layout_.dispatch_row_bytes;
  const std::span<const std::int64_t> places = receive_plan_.places(home);
  if (pull_ && home != transport_.rank()) stats_.bytes_wire += message.header.records * row_bytes;

  const bool point = !row_pointers_.empty();
  // Only rows pushed for each expert lie record by record; all others lie where the token lay.
  const bool by_record =
      !pull_ && options_.exchange.send_per == ExchangeOptions::SendPer::token_expert;
  const auto take = [&](std::int64_t begin, std::int64_t end, int) {
    for (auto i = static_cast<std::size_t>(begin); i < static_cast<std::size_t>(end); ++i) {
      const std::byte* row = rows + (by_record ? i : message.records[i].token) * row_bytes;
      const auto place = static_cast<std::size_t>(places[i]);
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
  const auto records = static_cast<std::int64_t>(message.records.size());
  if (point) {
    take(0, records, 0);
  } else {
    pool_.parallel_for(records, copy_grain(row_bytes), take);
  }
}

}  // namespace ferry
