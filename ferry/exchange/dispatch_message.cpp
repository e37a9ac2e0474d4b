#include "ferry/exchange/dispatch_message.h"

#include <algorithm>
#include <cstring>
#include <limits>

namespace ferry {

DispatchMessages::DispatchMessages(LaneState& lane, PeerLink& link)
    : lane_(lane),
      link_(link),
      messages_(static_cast<std::size_t>(lane.ranks)),
      counts_(static_cast<std::size_t>(lane.ranks) *
              static_cast<std::size_t>(lane.options.slots_per_rank)),
      tokens_of_(static_cast<std::size_t>(lane.ranks)) {}

const DispatchHeader& DispatchMessages::header_of(Rank home) const {
  return *link_.at<const DispatchHeader>(lane_.layout.dispatch_inbox +
                                         static_cast<std::size_t>(home) *
                                             lane_.layout.dispatch_message_bytes);
}

void DispatchMessages::send(Rank peer, const RoutedTokens& tokens, std::uint32_t puts) {
  const ExchangeLayout& layout = lane_.layout;
  const std::size_t bytes = write(peer, tokens, puts);
  const auto* message = link_.at<const std::byte>(
      layout.dispatch_outbox + static_cast<std::size_t>(peer) * layout.dispatch_message_bytes);
  link_.put(
      peer,
      layout.dispatch_inbox + static_cast<std::size_t>(lane_.rank) * layout.dispatch_message_bytes,
      {message, bytes},
      ExchangeSignal::dispatch_message);
}

std::size_t DispatchMessages::write(Rank peer, const RoutedTokens& tokens, std::uint32_t puts) {
  const auto p = static_cast<std::size_t>(peer);
  std::byte* out =
      link_.at<std::byte>(lane_.layout.dispatch_outbox + p * lane_.layout.dispatch_message_bytes);
  const std::byte* begin = out;
  const auto append = [&out](const void* data, std::size_t bytes) {
    if (bytes) std::memcpy(out, data, bytes);
    out += bytes;
  };
  const SendPlan& plan = lane_.own_plan();
  DispatchHeader header{.epoch = lane_.epoch,
                        .tokens = static_cast<std::uint32_t>(tokens.tokens),
                        .chunks = static_cast<std::uint32_t>(tokens.chunks),
                        .records = static_cast<std::uint32_t>(plan.records(peer).size()),
                        .payload_puts = puts,
                        .repeats = lane_.kept != nullptr ? 1U : 0U};
  out += sizeof header;  // written last: it counts the reduce entries
  if (lane_.kept == nullptr) {
    append(plan.records(peer).data(), plan.records(peer).size_bytes());
    if (lane_.sums_per_rank()) header.reduce_entries = append_reduce_entries(peer, tokens, out);
    if (lane_.options.row_weights) {
      header.row_weights = header.records;
      append_row_weights(peer, tokens, out);
    }
  }
  std::memcpy(const_cast<std::byte*>(begin), &header, sizeof header);
  return static_cast<std::size_t>(out - begin);
}

/// The tokens' weights for the sums that `peer` will make. Returns how many entries it wrote at
/// `out` and moves it behind them.
std::uint32_t DispatchMessages::append_reduce_entries(Rank peer,
                                                      const RoutedTokens& tokens,
                                                      std::byte*& out) const {
  const SendPlan& plan = lane_.own_plan();
  const std::span<const Record> records = plan.records(peer);
  std::uint32_t entries = 0;
  std::uint32_t first = 0;  // record of the token in hand
  for (int t = 0; t < tokens.tokens; ++t) {
    const auto token = static_cast<std::uint32_t>(t);
    while (first < records.size() && records[first].token < token) ++first;
    for (int k = 0; k < lane_.options.topk; ++k) {
      const RecordPlace place = plan.place(t, k);
      if (place.rank != peer) continue;
      std::uint32_t record = first;
      while (records[record].slot != static_cast<std::uint32_t>(place.slot)) ++record;
      const std::size_t entry =
          static_cast<std::size_t>(t) * static_cast<std::size_t>(lane_.options.topk) +
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
void DispatchMessages::append_row_weights(Rank peer,
                                          const RoutedTokens& tokens,
                                          std::byte*& out) const {
  const auto topk = static_cast<std::size_t>(lane_.options.topk);
  FERRY_CHECK(tokens.row_weights.size() == tokens.slots.size(),
              "{} row weights for {} (token, k)",
              tokens.row_weights.size(),
              tokens.slots.size());
  for (const Record& record : lane_.own_plan().records(peer)) {
    const auto slot =
        static_cast<SlotId>(peer * lane_.options.slots_per_rank) + static_cast<SlotId>(record.slot);
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

void DispatchMessages::receive(Rank home) {
  forget(home);
  const auto h = static_cast<std::size_t>(home);
  const std::span<std::uint32_t> counts = counts_of(home);
  if (!link_.await(home, ExchangeSignal::dispatch_message, lane_.epoch)) return;
  const DispatchHeader* header = &header_of(home);
  if (!sane(*header)) throw contradiction(home);
  lane_.chunks_of_all = std::max(lane_.chunks_of_all, static_cast<int>(header->chunks));
  tokens_of_[h] = header->tokens;
  if (lane_.kept != nullptr) {
    const KeptRouting::Message& kept = lane_.kept->messages[h];
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

void DispatchMessages::forget(Rank home) {
  const std::span<std::uint32_t> counts = counts_of(home);
  std::fill(counts.begin(), counts.end(), 0U);
  messages_[static_cast<std::size_t>(home)] = {.counts = counts};
  tokens_of_[static_cast<std::size_t>(home)] = 0;
}

/// Whether what follows the header fits into a message, and is of this exchange.
bool DispatchMessages::sane(const DispatchHeader& header) const {
  const auto topk = static_cast<std::uint32_t>(lane_.options.topk);
  const std::uint32_t most_entries =
      lane_.sums_per_rank() && lane_.kept == nullptr ? header.tokens * topk : 0;
  const std::uint32_t row_weights =
      lane_.options.row_weights && lane_.kept == nullptr ? header.records : 0;
  return header.epoch == lane_.epoch &&
         header.tokens <= static_cast<std::uint32_t>(lane_.options.max_tokens) &&
         header.records <= lane_.layout.max_records && header.reduce_entries <= most_entries &&
         header.row_weights == row_weights && header.repeats == (lane_.kept != nullptr ? 1U : 0U) &&
         header.chunks >= 1 && header.chunks <= std::uint32_t{std::numeric_limits<int>::max()};
}

/// Counts the records of each slot. False: not those of tokens that `home` sends to slots here.
bool DispatchMessages::count_records(Rank home,
                                     std::uint32_t tokens,
                                     std::span<const Record> records) {
  const std::span<std::uint32_t> counts = counts_of(home);
  // Of the tokens that its group holds it sends a share; a slot has room for each of them once.
  const auto tp = static_cast<std::uint32_t>(lane_.options.tp);
  const auto member = static_cast<std::uint32_t>(home - lane_.base_of(home));
  const std::uint32_t share = (tokens + tp - 1 - member) / tp;
  for (const Record& record : records) {
    if (record.token >= tokens || record.token % tp != member || record.slot >= counts.size() ||
        ++counts[record.slot] > share)
      return false;
  }
  return true;
}

/// Whether the entries are of the message's records, token by token and top-k at most of each:
/// there is room for so many terms of a sum.
bool DispatchMessages::sane(const DispatchMessage& message) const {
  std::int64_t token = -1;
  int terms = 0;
  for (const ReduceEntry& entry : message.entries) {
    if (entry.token < token || entry.record >= message.records.size() ||
        message.records[entry.record].token != entry.token)
      return false;
    terms = entry.token == token ? terms + 1 : 1;
    if (terms > lane_.options.topk) return false;
    token = entry.token;
  }
  return true;
}

std::span<std::uint32_t> DispatchMessages::counts_of(Rank home) {
  const auto slots = static_cast<std::size_t>(lane_.options.slots_per_rank);
  return std::span(counts_).subspan(static_cast<std::size_t>(home) * slots, slots);
}

void DispatchMessages::check_groups() const {
  const bool columns = lane_.options.exchange.hidden_partition;
  for (Rank home = 0; home < lane_.ranks; ++home) {
    const Rank base = columns ? 0 : lane_.base_of(home);
    if (home == base || link_.is_masked(home) || link_.is_masked(base)) continue;
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

TransportError DispatchMessages::contradiction(Rank home) const {
  const DispatchHeader* header = &header_of(home);
  return {
      TransportError::Kind::io,
      link_.known_as(home),
      fmt::format("{}: the message of rank {} contradicts itself or this rank (exchange {}, {} "
                  "tokens, {} records{}); the ranks run different options, routings or versions",
                  lane_.where(),
                  link_.known_as(home),
                  header->epoch,
                  header->tokens,
                  header->records,
                  header->repeats ? ", kept routing" : "")};
}

}  // namespace ferry
