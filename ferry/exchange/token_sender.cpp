#include "ferry/exchange/token_sender.h"

#include "ferry/core/error.h"

namespace ferry {

TokenSender::TokenSender(LaneState& lane, PeerLink& link, DataPlane& plane)
    : lane_(lane), link_(link), plane_(plane) {}

MutableRowsView TokenSender::stage() const {
  return {link_.at<std::byte>(lane_.layout.stage),
          static_cast<std::ptrdiff_t>(lane_.layout.dispatch_row_bytes)};
}

void TokenSender::stage_rows(const RoutedTokens& tokens) {
  const DispatcherOptions& options = lane_.options;
  const MutableRowsView to = stage();
  if (tokens.rows.base == to.base && !tokens.rows.pointers) {
    FERRY_CHECK((tokens.encoded || wire_type(tokens.type) == options.dispatch_wire) &&
                    tokens.rows.stride == to.stride,
                "rows in the registered input must have its type and stride");
    return;
  }
  if (!tokens.encoded && is_quantized(options.dispatch_wire) && tokens.type == DType::f16)
    fail<ConfigError>("{} wires take f32 or bf16 rows, not f16",
                      wire_type_name(options.dispatch_wire));
  plane_.stage({.from = tokens.rows,
                .type = tokens.type,
                .encoded = tokens.encoded,
                .to = to,
                .wire = options.dispatch_wire,
                .columns = lane_.layout.columns,
                .tokens = tokens.tokens,
                .first = static_cast<int>(lane_.member_of(lane_.rank)),
                .step = options.tp});
}

/// push(first row in the slab, first token, rows) for all that is pushed to `peer`.
template <class Push>
void TokenSender::for_pushed_rows(Rank peer, Push push) const {
  if (link_.reads(peer) || lane_.relays.taker(lane_.rank, peer) != peer) return;
  const SendPlan& plan = lane_.own_plan();
  switch (lane_.options.exchange.send_per) {
    case ExchangeOptions::SendPer::rank:
      if (lane_.options.tp == 1) {
        push(0, 0, static_cast<std::size_t>(lane_.tokens));
        break;
      }
      for (std::size_t t = lane_.member_of(lane_.rank); t < static_cast<std::size_t>(lane_.tokens);
           t += static_cast<std::size_t>(lane_.options.tp))
        push(t, t, 1);
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

std::uint32_t TokenSender::num_row_puts(Rank peer) const {
  if (!link_.reads(peer) && lane_.relays.taker(lane_.rank, peer) != peer)
    return 1;  // the taker's word
  const std::size_t most = link_.rows_per_put(lane_.layout.dispatch_row_bytes);
  std::size_t puts = 0;
  for_pushed_rows(
      peer, [&](std::size_t, std::size_t, std::size_t rows) { puts += (rows + most - 1) / most; });
  return static_cast<std::uint32_t>(puts);
}

void TokenSender::push_rows(Rank peer) {
  if (link_.reads(peer)) return;
  const ExchangeLayout& layout = lane_.layout;
  const std::size_t row_bytes = layout.dispatch_row_bytes;
  const std::size_t slab = layout.dispatch_slab + static_cast<std::size_t>(lane_.rank) *
                                                      layout.dispatch_slab_rows * row_bytes;
  RowPushes pushes(link_, peer, row_bytes, ExchangeSignal::dispatch_rows);
  for_pushed_rows(peer, [&](std::size_t to_row, std::size_t token, std::size_t rows) {
    pushes.add(slab + to_row * row_bytes, layout.stage + token * row_bytes, rows);
  });
  pushes.finish();
}

}  // namespace ferry
