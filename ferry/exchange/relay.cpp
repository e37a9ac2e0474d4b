// What an exchange does beyond its own tokens where hosts have several ranks: rows that came for
// all of them are passed on by a signal, since neighbours read them where they lie, and sums for
// another host are added up before they leave. Which rank does it for whom: relay_plan.h.
#include <algorithm>
#include <cstring>

#include "ferry/core/error.h"
#include "ferry/exchange/dispatcher.h"
#include "ferry/kernels/kernels.h"

namespace ferry {

namespace {

constexpr std::int64_t kSumGrain = 8;  // tokens

}  // namespace

/// The rows of `home` are here: its neighbours' wait for them is over, where this rank takes them.
void Dispatcher::pass_on(Rank home) {
  std::uint64_t& passed = passed_[static_cast<std::size_t>(home)];
  if (!relays_.relays(home) || passed == epoch_) return;
  passed = epoch_;
  for (const Rank neighbour : relays_.neighbours())
    raise(neighbour, home, ExchangeSignal::dispatch_rows);
}

/// For ranks that poll: two that wait for each other's relaying would wait for ever.
void Dispatcher::pass_on_what_arrived() {
  for (const Rank home : relays_.receive_order()) {
    if (!relays_.relays(home) || !arrived(home, ExchangeSignal::dispatch_message, epoch_)) continue;
    const auto h = static_cast<std::size_t>(home);
    const auto* header =
        at<const DispatchHeader>(layout_.dispatch_inbox + h * layout_.dispatch_message_bytes);
    if (arrived(home, ExchangeSignal::dispatch_rows, rows_expected_[h] + header->payload_puts))
      pass_on(home);
  }
}

/// The rank whose message brings the sum in which `rank` has its part, for this rank's tokens.
Rank Dispatcher::summing_rank(Rank rank) const {
  return rank >= 0 && sums_per_host_ && !relays_.is_near(rank)
             ? relays_.taker(transport_.rank(), rank)
             : rank;
}

void Dispatcher::relay_sums() {
  if (!sums_per_host_ || relays_.neighbours().empty()) return;
  for (const Rank neighbour : relays_.neighbours())
    raise(neighbour, transport_.rank(), ExchangeSignal::rank_sums);
  for (const Rank neighbour : relays_.neighbours())
    static_cast<void>(await(neighbour, ExchangeSignal::rank_sums, epoch_));
  for (const Rank home : relays_.send_order()) {
    if (!relays_.relays(home)) continue;
    sum_per_host(home);
    push_host_sums(home);
  }
}

/// Adds up, in order of rank, the sums that this host's ranks have for each token of `home`.
void Dispatcher::sum_per_host(Rank home) {
  const auto tokens = static_cast<std::size_t>(options_.max_tokens);
  const std::size_t first = static_cast<std::size_t>(home) * tokens;
  pool_.parallel_for(
      tokens_of_[static_cast<std::size_t>(home)],
      kSumGrain,
      [&](std::int64_t begin, std::int64_t end, int worker) {
        const auto w = static_cast<std::size_t>(worker);
        for (std::size_t t = first + static_cast<std::size_t>(begin);
             t < first + static_cast<std::size_t>(end);
             ++t) {
          std::size_t terms = 0;
          for (Rank r = 0; r < ranks_; ++r) {
            if (!relays_.is_near(r) || part_of(r)[layout_.has_sum + t] == std::byte{0}) continue;
            sum_rows_[w][terms] = results_of(r) + t * layout_.combine_row_bytes;
            sum_weights_[w][terms++] = 1.0F;
          }
          std::byte* sum = at<std::byte>(layout_.host_sums) + t * layout_.combine_row_bytes;
          if (terms > 1) {
            write_sum(sum, terms, options_.combine_wire, w);
          } else if (terms == 1) {
            std::memcpy(sum, sum_rows_[w][0], layout_.combine_row_bytes);
          }
          at<std::byte>(layout_.has_host_sum)[t] = static_cast<std::byte>(terms > 0);
        }
      });
}

/// Runs of neighbouring tokens with a sum leave together.
void Dispatcher::push_host_sums(Rank home) {
  const auto h = static_cast<std::size_t>(home);
  const auto me = static_cast<std::size_t>(transport_.rank());
  const std::size_t row_bytes = layout_.combine_row_bytes;
  const std::size_t first = h * static_cast<std::size_t>(options_.max_tokens);
  const auto* has_sum = at<const std::byte>(layout_.has_host_sum + first);
  const std::size_t tokens = tokens_of_[h];
  for (std::size_t t = 0; t < tokens;) {
    std::size_t end = t;
    while (end < tokens && has_sum[end] != std::byte{0}) ++end;
    if (end > t) {
      result_puts_[h] +=
          put_rows(home,
                   layout_.combine_slab + (me * layout_.combine_slab_rows + t) * row_bytes,
                   layout_.host_sums + (first + t) * row_bytes,
                   end - t,
                   row_bytes,
                   ExchangeSignal::combine_rows);
    }
    t = end + 1;
  }
}

}  // namespace ferry
