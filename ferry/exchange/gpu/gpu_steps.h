// What the kernels of an exchange have in common: faults, waits, signals, shares of work.
#pragma once

#include "ferry/exchange/gpu/gpu_layout.h"
#include "ferry/kernels/gpu/rows.h"

namespace ferry::gpu {

/// Whether there can be so many.
FERRY_GPU bool is_possible(const GpuExchangeArgs& args, int tokens) {
  return tokens >= 0 && tokens <= args.count;
}

/// Of this rank; none where there cannot be so many, which is told where they are sent.
template <class Thread>
FERRY_GPU int num_tokens(Thread& t, const GpuExchangeArgs& args) {
  if (args.tokens == nullptr) return args.count;
  const int tokens = t.load(args.tokens);
  return is_possible(args, tokens) ? tokens : 0;
}

/// The first fault of an exchange is the one that is told.
template <class Thread>
FERRY_GPU void record_fault(Thread& t, const GpuExchangeArgs& args, const GpuFaultRecord& fault) {
  if (t.add_acquire_release(&args.state->has_fault, 1) != 0) return;
  GpuFaultRecord* to = &args.state->fault;
  t.store(&to->kind, fault.kind);
  t.store(&to->rank, fault.rank);
  t.store(&to->exchange, fault.exchange);
  t.store(&to->where, fault.where);
  t.store(&to->value, fault.value);
}

/// What `rank` has written for a slot cannot be.
template <class Thread>
FERRY_GPU void bad_message(
    Thread& t, const GpuExchangeArgs& args, int rank, std::int64_t slot, std::uint32_t value) {
  record_fault(t,
               args,
               {.kind = GpuFaultRecord::bad_message,
                .rank = static_cast<std::uint32_t>(rank),
                .exchange = t.load(&args.state->exchange),
                .where = slot,
                .value = value});
}

/// Whether all phases before this one have been run, and this one has not; then it has been now.
/// What earlier kernels wrote, and what a kernel's last block writes at its end, every block may
/// look at; what block 0 writes at once, block 0 alone.
template <class Thread>
FERRY_GPU bool takes_turn(Thread& t, const GpuExchangeArgs& args, GpuPhase phase) {
  GpuState* state = args.state;
  const std::uint64_t exchange = t.load(&state->exchange);
  std::uint64_t* own = phase == GpuPhase::dispatch_recv ? &state->received : &state->summed;
  switch (phase) {
    case GpuPhase::dispatch_send:
      return t.load(&state->summed) == exchange;
    case GpuPhase::combine_send:
      return t.load(&state->received) == exchange && t.load(&state->combined) + 1 == exchange;
    case GpuPhase::dispatch_recv:
      if (t.load(&state->combined) + 1 != exchange) return false;
      break;
    default:
      if (t.load(&state->combined) != exchange) return false;
  }
  if (t.block() != 0) return true;
  if (t.load(own) + 1 != exchange) return false;
  t.store(own, exchange);
  return true;
}

/// At the beginning of every kernel, by all threads of a block, for which it is one answer: whether
/// there is work, which there is not out of turn or behind a fault.
template <class Thread>
FERRY_GPU bool may_begin(Thread& t, const GpuExchangeArgs& args, GpuPhase phase) {
  auto* fails = reinterpret_cast<std::uint32_t*>(t.shared());
  if (t.thread() == 0) {
    bool may = t.load_acquire(&args.state->has_fault) == 0;
    if (may && !takes_turn(t, args, phase)) {
      may = false;
      record_fault(t,
                   args,
                   {.kind = GpuFaultRecord::out_of_turn,
                    .exchange = t.load(&args.state->exchange),
                    .where = static_cast<int>(phase)});
    }
    t.store(fails, may ? 0U : 1U);
  }
  t.sync();
  const bool may = t.load(fails) == 0;
  t.sync();
  return may;
}

/// Whether this rank goes on without that one.
template <class Thread>
FERRY_GPU bool is_masked(Thread& t, const GpuExchangeArgs& args, int peer) {
  return args.layout.masks && t.load(args.masked + peer) != 0;
}

/// Masks a peer that did not come, and tells it, should it live. By block 0.
template <class Thread>
FERRY_GPU void mask_late(Thread& t, const GpuExchangeArgs& args, int peer) {
  t.store(args.masked + peer, 1U);
  t.store_release(t.load(&args.to[peer].signals) + static_cast<int>(GpuSignal::masked), 1U);
}

template <class Thread>
FERRY_GPU const std::uint64_t* signal_from(Thread& t,
                                           const GpuExchangeArgs& args,
                                           GpuSignal kind,
                                           int peer) {
  return t.load(&args.from[peer].told.signals) + static_cast<int>(kind);
}

/// Whether `peer` goes on without this rank, which is noted: the exchange has failed.
template <class Thread>
FERRY_GPU bool is_left_behind(Thread& t, const GpuExchangeArgs& args, int peer) {
  if (t.load_acquire(signal_from(t, args, GpuSignal::masked, peer)) == 0) return false;
  record_fault(t,
               args,
               {.kind = GpuFaultRecord::left_behind,
                .rank = static_cast<std::uint32_t>(peer),
                .exchange = t.load(&args.state->exchange)});
  return true;
}

/// By one thread for one peer. False: it did not come in time, and is not masked either, has itself
/// masked this rank, or nothing can come from it any more.
template <class Thread>
FERRY_GPU bool await_peer(Thread& t, const GpuExchangeArgs& args, GpuSignal kind, int peer) {
  if (is_masked(t, args, peer)) return true;
  const bool masks = args.layout.masks;
  const std::uint64_t* signal = signal_from(t, args, kind, peer);
  const std::uint64_t exchange = t.load(&args.state->exchange);
  const std::uint64_t start = t.nanoseconds();
  for (;;) {
    if (masks && is_left_behind(t, args, peer)) return false;
    const std::uint64_t came = t.load_acquire(signal);
    if (came >= exchange && came != kLinkFailed) return true;
    if (came == kLinkFailed) {
      record_fault(t,
                   args,
                   {.kind = GpuFaultRecord::no_link,
                    .rank = static_cast<std::uint32_t>(peer),
                    .exchange = exchange});
      return false;
    }
    t.pause();
    if (t.nanoseconds() - start >= args.timeout_ns) break;
  }
  if (masks && peer != args.rank) {
    mask_late(t, args, peer);
    return true;
  }
  record_fault(
      t,
      args,
      {.kind = kind == GpuSignal::tokens ? GpuFaultRecord::no_tokens : GpuFaultRecord::no_results,
       .rank = static_cast<std::uint32_t>(peer),
       .exchange = exchange});
  return false;
}

/// Waits until every peer's signal has the number of this exchange, or the peer is masked: thread r
/// for peer r. False, for the whole block, where one does not come in time, or an earlier kernel
/// found a fault.
template <class Thread>
FERRY_GPU bool await_all(Thread& t, const GpuExchangeArgs& args, GpuSignal kind) {
  const bool of_tokens = kind == GpuSignal::tokens;
  if (!may_begin(t, args, of_tokens ? GpuPhase::dispatch_recv : GpuPhase::combine_recv))
    return false;
  auto* failed = reinterpret_cast<std::uint32_t*>(t.shared());  // 0 now
  const bool masks = args.layout.masks;
  std::uint64_t* decided = args.state->decided + static_cast<int>(kind);
  if (!masks || t.block() == 0) {
    for (int peer = t.thread(); peer < args.layout.ranks; peer += t.threads()) {
      if (await_peer(t, args, kind, peer)) continue;
      t.add(failed, 1);
      break;
    }
    t.sync();
    if (masks && t.thread() == 0) t.store_release(decided, t.load(&args.state->exchange));
  } else {
    if (t.thread() == 0) {
      while (t.load_acquire(decided) < t.load(&args.state->exchange)) t.pause();
      t.store(failed, t.load_acquire(&args.state->has_fault));
    }
    t.sync();
  }
  const bool all = t.load(failed) == 0;
  t.sync();  // shared memory is free again
  return all;
}

/// Called by all threads of all blocks when their work is done. True for those of the last block to
/// come.
template <class Thread>
FERRY_GPU bool comes_last(Thread& t, const GpuExchangeArgs& args) {
  auto* last = reinterpret_cast<std::uint32_t*>(t.shared());
  t.sync();
  if (t.thread() == 0) {
    const std::uint32_t before = t.add_acquire_release(&args.state->blocks_done, 1);
    const bool is_last = before + 1 == static_cast<std::uint32_t>(t.blocks());
    if (is_last) t.store(&args.state->blocks_done, 0U);
    t.store(last, is_last ? 1U : 0U);
  }
  t.sync();
  return t.load(last) != 0;
}

/// Called likewise: the last block to come tells all peers.
template <class Thread>
FERRY_GPU void signal_all(Thread& t,
                          const GpuExchangeArgs& args,
                          GpuSignal kind,
                          std::uint64_t exchange) {
  if (!comes_last(t, args)) return;
  if (t.thread() == 0) {
    const bool of_tokens = kind == GpuSignal::tokens;
    t.store(of_tokens ? &args.state->exchange : &args.state->combined, exchange);
  }
  for (int peer = t.thread(); peer < args.layout.ranks; peer += t.threads()) {
    if (is_masked(t, args, peer)) continue;
    t.store_release(t.load(&args.to[peer].signals) + static_cast<int>(kind), exchange);
  }
}

constexpr std::int64_t pieces_of(std::int64_t n, std::int64_t piece) {
  return (n + piece - 1) / piece;
}

/// Rows of this rank's tokens as a caller has them.
struct GpuRows {
  RowsView rows = {};  ///< [tokens, columns] of `type`
  DType type = DType::f32;
  bool encoded = false;  ///< they are in wire type already

  template <class Thread>
  FERRY_GPU const std::byte* row(Thread& t, std::int64_t token) const {
    return rows.pointers != nullptr ? t.load(rows.pointers + token)
                                    : rows.base + token * rows.stride;
  }
};

/// body(unit) for this warp's share of `units`; `dealt` units went to the warps before them.
template <class Thread, class Body>
FERRY_GPU void for_units(Thread& t, std::int64_t units, Body body, std::int64_t dealt = 0) {
  const std::int64_t warps = std::int64_t{t.blocks()} * t.warps();
  const std::int64_t own = std::int64_t{t.block()} * t.warps() + t.warp();
  for (std::int64_t unit = (own - dealt % warps + warps) % warps; unit < units; unit += warps)
    body(unit);
}

/// Rows of the tokens in this rank's share for which goes(token) holds, in dispatch wire, to their
/// tokens' places behind `to`. goes() is asked by whole warps.
template <class Thread, class Goes>
FERRY_GPU void write_rows(
    Thread& t, const GpuExchangeArgs& args, const GpuRows& from, std::byte* to, Goes goes) {
  const GpuLayout& layout = args.layout;
  const std::int64_t piece =
      from.encoded ? layout.dispatch_row_bytes : encode_piece(layout.dispatch_wire, layout.columns);
  const std::int64_t pieces = from.encoded ? 1 : pieces_of(layout.columns, piece);
  const int share = args.rank % layout.tp;
  const int tokens = num_tokens(t, args);
  for_units(t, layout.tokens_of(share, tokens) * pieces, [&](std::int64_t unit) {
    const std::int64_t token = unit / pieces * layout.tp + share;
    if (!goes(token)) return;
    std::byte* row = to + token * layout.dispatch_row_bytes;
    if (from.encoded)
      copy_bytes(t, row, from.row(t, token), piece);
    else
      encode(t,
             from.row(t, token),
             from.type,
             row,
             {layout.dispatch_wire, layout.columns},
             unit % pieces * piece);
  });
}

}  // namespace ferry::gpu
