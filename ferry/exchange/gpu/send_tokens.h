// Dispatch, the sending side: this rank's tokens into its stage, and to every peer the lists that
// say which of them its slots compute.
#pragma once

#include "ferry/exchange/gpu/gpu_steps.h"

namespace ferry::gpu {

struct SendTokens {
  GpuExchangeArgs args;
  GpuRows from;                        ///< null base: they are in the stage already
  const float* row_weights = nullptr;  ///< [tokens, topk], with that option
  const float* sum_weights = nullptr;  ///< [tokens, topk], where ranks sum

  static constexpr std::size_t shared_bytes(const GpuLayout&) { return sizeof(std::uint32_t); }

  template <class Thread>
  FERRY_GPU void operator()(Thread& t) const {
    if (!may_begin(t, args, GpuPhase::dispatch_send)) return;
    const int tokens = num_tokens(t, args);
    if (t.block() == 0 && t.thread() == 0) check_count(t);
    if (from.rows.base != nullptr)
      write_rows(t, args, from, args.part + args.layout.stage, [](std::int64_t) { return true; });
    check_ids(t, tokens);
    if (args.layout.sums) show_routing(t, tokens);
    const GpuLayout& layout = args.layout;
    for_units(t, std::int64_t{layout.ranks} * layout.slots, [&](std::int64_t slot) {
      if (is_masked(t, args, static_cast<int>(slot) / layout.slots)) return;
      for (int share = 0; share < layout.tp; ++share)
        write_list(t, tokens, share, static_cast<SlotId>(slot));
    });
    signal_all(t, args, GpuSignal::tokens, number(t));
  }

 private:
  /// Of this exchange. Read where it is needed: kept, it would cost registers that there are not.
  template <class Thread>
  FERRY_GPU std::uint64_t number(Thread& t) const {
    return t.load(&args.state->exchange) + 1;
  }

  /// A number of tokens for which there is no room is as none, and is told.
  template <class Thread>
  FERRY_GPU void check_count(Thread& t) const {
    if (args.tokens == nullptr) return;
    const int tokens = t.load(args.tokens);
    if (is_possible(args, tokens)) return;
    record_fault(t,
                 args,
                 {.kind = GpuFaultRecord::bad_count,
                  .exchange = number(t),
                  .where = args.count,
                  .value = tokens});
  }

  /// An id outside -1..slots - 1 goes nowhere and is told.
  template <class Thread>
  FERRY_GPU void check_ids(Thread& t, int tokens) const {
    const std::int64_t entries = std::int64_t{tokens} * args.layout.topk;
    const std::int64_t threads = std::int64_t{t.blocks()} * t.threads();
    for (std::int64_t e = std::int64_t{t.block()} * t.threads() + t.thread(); e < entries;
         e += threads) {
      const SlotId slot = t.load(args.slots + e);
      if (slot >= -1 && slot < args.layout.ranks * args.layout.slots) continue;
      record_fault(
          t,
          args,
          {.kind = GpuFaultRecord::bad_id, .exchange = number(t), .where = e, .value = slot});
    }
  }

  /// To ranks that sum: how many tokens there are, and where their results go into which sum.
  /// Places in lists are there already: in_slot is a part of what is shown.
  template <class Thread>
  FERRY_GPU void show_routing(Thread& t, int tokens) const {
    const GpuLayout& layout = args.layout;
    auto* slots = reinterpret_cast<SlotId*>(args.part + layout.routed_slots);
    auto* weights = reinterpret_cast<float*>(args.part + layout.routed_weights);
    const std::int64_t entries = std::int64_t{tokens} * layout.topk;
    const std::int64_t threads = std::int64_t{t.blocks()} * t.threads();
    const std::int64_t own = std::int64_t{t.block()} * t.threads() + t.thread();
    for (std::int64_t e = own; e < entries; e += threads) {
      t.store(slots + e, t.load(args.slots + e));
      t.store(weights + e, t.load(sum_weights + e));
    }
    for (std::int64_t peer = own; peer < layout.ranks; peer += threads) {
      if (is_masked(t, args, static_cast<int>(peer))) continue;
      t.store(t.load(&args.to[peer].num_tokens), static_cast<std::uint32_t>(tokens));
    }
  }

  /// Whether no earlier k of the token names the slot.
  template <class Thread>
  FERRY_GPU bool names_first(Thread& t, std::int64_t entry, SlotId slot) const {
    for (std::int64_t before = entry / args.layout.topk * args.layout.topk; before < entry;
         ++before)
      if (t.load(args.slots + before) == slot) return false;
    return true;
  }

  /// A share's tokens for a slot: where each stands among them, and, if the share is ours, the list
  /// itself into the peer's memory.
  template <class Thread>
  FERRY_GPU void write_list(Thread& t, int tokens, int share, SlotId slot) const {
    const GpuLayout& layout = args.layout;
    const int peer = slot / layout.slots;
    const bool ours =
        share == args.rank % layout.tp && (layout.column_ranks == 1 || peer == args.rank);
    const GpuLink* link = args.to + peer;
    const std::size_t first = layout.list(slot % layout.slots);
    std::uint32_t* to = t.load(&link->tokens) + first;
    float* weights = t.load(&link->weights) + first;
    const std::int64_t entries = std::int64_t{layout.tokens_of(share, tokens)} * layout.topk;
    std::uint32_t count = 0;
    for (std::int64_t begin = 0; begin < entries; begin += kWarpThreads) {
      const std::int64_t of_share = begin + t.lane();
      const std::int64_t token = of_share / layout.topk * layout.tp + share;
      const std::int64_t entry = token * layout.topk + of_share % layout.topk;
      const bool named =
          of_share < entries && t.load(args.slots + entry) == slot && names_first(t, entry, slot);
      const std::uint32_t all = t.ballot(named);
      if (named) {
        const std::uint32_t place = count + count_bits(all & ((1U << t.lane()) - 1));
        t.store(args.in_slot + entry, place);
        if (ours) t.store(to + place, static_cast<std::uint32_t>(token));
        if (ours && layout.row_weights) t.store(weights + place, t.load(row_weights + entry));
      }
      count += count_bits(all);
    }
    if (ours && t.lane() == 0) t.store(t.load(&link->counts) + slot % layout.slots, count);
  }

  static constexpr std::uint32_t count_bits(std::uint32_t x) {
    x -= x >> 1 & 0x55555555U;
    x = (x & 0x33333333U) + (x >> 2 & 0x33333333U);
    return ((x + (x >> 4)) & 0x0f0f0f0fU) * 0x01010101U >> 24;
  }
};

}  // namespace ferry::gpu
