// What ranks tell each other before rows are taken: which tokens go to which slots, and the weights
// that the other side needs. What is received is checked before it is believed.
#include <algorithm>
#include <cstring>
#include <limits>

#include "ferry/core/error.h"
#include "ferry/exchange/dispatcher.h"

namespace ferry {

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
  const SendPlan& plan = own_plan();
  DispatchHeader header{.epoch = epoch_,
                        .tokens = static_cast<std::uint32_t>(tokens.tokens),
                        .chunks = static_cast<std::uint32_t>(tokens.chunks),
                        .records = static_cast<std::uint32_t>(plan.records(peer).size()),
                        .payload_puts = puts,
                        .repeats = cached_ ? 1U : 0U};
  out += sizeof header;  // written last: it counts the reduce entries
  if (!cached_) {
    append(plan.records(peer).data(), plan.records(peer).size_bytes());
    if (sums_per_rank()) header.reduce_entries = append_reduce_entries(peer, tokens, out);
    if (options_.row_weights) {
      header.row_weights = header.records;
      append_row_weights(peer, tokens, out);
    }
  }
  std::memcpy(const_cast<std::byte*>(begin), &header, sizeof header);
  return static_cast<std::size_t>(out - begin);
}

/// The tokens' weights for the sums that `peer` will make. Returns how many entries it wrote at
/// `out` and moves it behind them.
std::uint32_t Dispatcher::append_reduce_entries(Rank peer,
                                                const RoutedTokens& tokens,
                                                std::byte*& out) const {
  const SendPlan& plan = own_plan();
  const std::span<const Record> records = plan.records(peer);
  std::uint32_t entries = 0;
  std::uint32_t first = 0;  // record of the token in hand
  for (int t = 0; t < tokens.tokens; ++t) {
    const auto token = static_cast<std::uint32_t>(t);
    while (first < records.size() && records[first].token < token) ++first;
    for (int k = 0; k < options_.topk; ++k) {
      const RecordPlace place = plan.place(t, k);
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

/// The number that goes with each record for `peer`; moves `out` behind them.
void Dispatcher::append_row_weights(Rank peer, const RoutedTokens& tokens, std::byte*& out) const {
  const auto topk = static_cast<std::size_t>(options_.topk);
  FERRY_CHECK(tokens.row_weights.size() == tokens.slots.size(),
              "{} row weights for {} (token, k)",
              tokens.row_weights.size(),
              tokens.slots.size());
  for (const Record& record : own_plan().records(peer)) {
    const auto slot =
        static_cast<SlotId>(peer * options_.slots_per_rank) + static_cast<SlotId>(record.slot);
    const std::size_t first = record.token * topk;
    const auto of_token = tokens.slots.subspan(first, topk);
    const auto found = std::ranges::find(of_token, slot);
    FERRY_CHECK(std::find(found + 1, of_token.end(), slot) == of_token.end(),
                "token {} names slot {} twice, and a row has one weight",
                record.token,
                slot);
    const float weight =
        tokens.row_weights[first + static_cast<std::size_t>(found - of_token.begin())];
    std::memcpy(out, &weight, sizeof weight);
    out += sizeof weight;
  }
}

/// Waits for the message of `home` and checks that nothing in it leads outside our buffers.
void Dispatcher::read_dispatch_message(Rank home) {
  const auto h = static_cast<std::size_t>(home);
  const std::span<std::uint32_t> counts = counts_of(home);
  std::fill(counts.begin(), counts.end(), 0U);
  messages_[h] = {.counts = counts};
  tokens_of_[h] = 0;
  if (!await(home, ExchangeSignal::dispatch_message, epoch_)) return;
  const auto* header =
      at<const DispatchHeader>(layout_.dispatch_inbox + h * layout_.dispatch_message_bytes);
  if (!sane(*header)) throw contradiction(home);
  chunks_of_all_ = std::max(chunks_of_all_, static_cast<int>(header->chunks));
  tokens_of_[h] = header->tokens;
  if (cached_) {
    const CachedRouting::Message& kept = cached_->messages_[h];
    if (kept.records.size() != header->records) throw contradiction(home);
    messages_[h] = {
        header->payload_puts, kept.counts, kept.records, kept.entries, kept.row_weights};
    return;
  }
  const auto* records = reinterpret_cast<const Record*>(header + 1);
  const auto* entries = reinterpret_cast<const ReduceEntry*>(records + header->records);
  const auto* row_weights = reinterpret_cast<const float*>(entries + header->reduce_entries);
  const DispatchMessage message{header->payload_puts,
                                counts,
                                {records, header->records},
                                {entries, header->reduce_entries},
                                {row_weights, header->row_weights}};
  if (!count_records(home, header->tokens, message.records) || !sane(message))
    throw contradiction(home);
  messages_[h] = message;
}

/// Whether what follows the header fits into a message, and is of this exchange.
bool Dispatcher::sane(const DispatchHeader& header) const {
  const auto topk = static_cast<std::uint32_t>(options_.topk);
  const std::uint32_t most_entries = sums_per_rank() && !cached_ ? header.tokens * topk : 0;
  const std::uint32_t row_weights = options_.row_weights && !cached_ ? header.records : 0;
  return header.epoch == epoch_ &&
         header.tokens <= static_cast<std::uint32_t>(options_.max_tokens) &&
         header.records <= layout_.max_records && header.reduce_entries <= most_entries &&
         header.row_weights == row_weights && header.repeats == (cached_ ? 1U : 0U) &&
         header.chunks >= 1 && header.chunks <= std::uint32_t{std::numeric_limits<int>::max()};
}

/// Counts the records of each slot. False: not those of tokens that `home` sends to slots here.
bool Dispatcher::count_records(Rank home, std::uint32_t tokens, std::span<const Record> records) {
  const std::span<std::uint32_t> counts = counts_of(home);
  // Of the tokens that its group holds it sends a share; a slot has room for each of them once.
  const auto members = static_cast<std::uint32_t>(options_.dp_size);
  const auto member = static_cast<std::uint32_t>(home - base_of(home));
  const std::uint32_t share = (tokens + members - 1 - member) / members;
  for (const Record& record : records) {
    if (record.token >= tokens || record.token % members != member ||
        record.slot >= counts.size() || ++counts[record.slot] > share)
      return false;
  }
  return true;
}

/// Whether the entries are of the message's records, token by token and top-k at most of each:
/// there is room for so many terms of a sum.
bool Dispatcher::sane(const DispatchMessage& message) const {
  std::int64_t token = -1;
  int terms = 0;
  for (const ReduceEntry& entry : message.entries) {
    if (entry.token < token || entry.record >= message.records.size() ||
        message.records[entry.record].token != entry.token)
      return false;
    terms = entry.token == token ? terms + 1 : 1;
    if (terms > options_.topk) return false;
    token = entry.token;
  }
  return true;
}

std::span<std::uint32_t> Dispatcher::counts_of(Rank home) {
  const auto slots = static_cast<std::size_t>(options_.slots_per_rank);
  return std::span(counts_).subspan(static_cast<std::size_t>(home) * slots, slots);
}

/// Ranks that hold the same tokens must say so.
void Dispatcher::check_groups() const {
  const bool columns = options_.exchange.hidden_partition;
  for (Rank home = 0; home < ranks_; ++home) {
    const Rank base = columns ? 0 : base_of(home);
    if (home == base || is_masked(home) || is_masked(base)) continue;
    const DispatchMessage& one = messages_[static_cast<std::size_t>(home)];
    const DispatchMessage& other = messages_[static_cast<std::size_t>(base)];
    const auto same = [](const Record& a, const Record& b) {
      return a.token == b.token && a.slot == b.slot;
    };
    if (tokens_of_[static_cast<std::size_t>(home)] != tokens_of_[static_cast<std::size_t>(base)] ||
        (columns && !std::equal(one.records.begin(),
                                one.records.end(),
                                other.records.begin(),
                                other.records.end(),
                                same)))
      throw contradiction(home);
  }
}

TransportError Dispatcher::contradiction(Rank home) const {
  const auto* header = at<const DispatchHeader>(
      layout_.dispatch_inbox + static_cast<std::size_t>(home) * layout_.dispatch_message_bytes);
  return {
      TransportError::Kind::io,
      home,
      fmt::format("{}: the message of rank {} contradicts itself or this rank (exchange {}, {} "
                  "tokens, {} records{}); the ranks run different options, routings or versions",
                  where(),
                  home,
                  header->epoch,
                  header->tokens,
                  header->records,
                  header->repeats ? ", kept routing" : "")};
}

}  // namespace ferry
