// Combine: results that travel quantised are encoded where they stand, and everybody is told; then
// each home reads its results from the peers' memory and adds them up, in top-k order.
#pragma once

#include "ferry/exchange/gpu/gpu_steps.h"

namespace ferry::gpu {

struct SendResults {
  GpuExchangeArgs args;
  const std::byte* output = nullptr;  ///< [expert_rows] rows of output_type; null: experts have
                                      ///< written the results themselves
  const std::int32_t* counts = nullptr;
  const std::int64_t* offsets = nullptr;

  static constexpr std::size_t shared_bytes(const GpuLayout&) { return sizeof(std::uint32_t); }

  template <class Thread>
  FERRY_GPU void operator()(Thread& t) const {
    std::int64_t dealt = 0;
    for (int slot = 0; output != nullptr && slot < args.layout.slots; ++slot)
      dealt += encode_slot(t, slot, dealt);
    signal_all(t, args, GpuSignal::results, t.load(&args.state->exchange));
  }

 private:
  /// Returns the units of work that it dealt out.
  template <class Thread>
  FERRY_GPU std::int64_t encode_slot(Thread& t, int slot, std::int64_t dealt) const {
    const GpuLayout& layout = args.layout;
    const std::int64_t piece = encode_piece(layout.combine_wire, layout.hidden);
    const std::int64_t pieces = pieces_of(layout.hidden, piece);
    const std::int64_t first_row = t.load(offsets + slot);
    std::byte* results = args.part + layout.results;
    const std::int64_t units = t.load(counts + slot) * pieces;
    const auto encode_unit = [&](std::int64_t unit) {
      const std::int64_t row = first_row + unit / pieces;
      encode(t,
             output + row * layout.output_row_bytes,
             layout.output_type,
             results + row * layout.combine_row_bytes,
             {layout.combine_wire, layout.hidden},
             unit % pieces * piece);
    };
    for_units(t, units, encode_unit, dealt);
    return units;
  }
};

struct SumResults {
  GpuExchangeArgs args;
  const float* weights = nullptr;  ///< [tokens, topk]
  MutableRowsView rows = {};       ///< [tokens, hidden] of `type`
  DType type = DType::f32;
  bool accumulate = false;
  std::uint32_t* lost = nullptr;  ///< [max_tokens] not 0: a masked rank's part is missing

  static constexpr std::size_t shared_bytes(const GpuLayout&) { return sizeof(std::uint32_t); }

  template <class Thread>
  FERRY_GPU void operator()(Thread& t) const {
    const bool all_here = await_all(t, args, GpuSignal::results);
    if (all_here) sum_tokens(t);
    if (args.layout.masks && comes_last(t, args) && all_here) end_with_masks(t);
  }

 private:
  struct Found {
    Term term;
    bool is_lost = false;  ///< for want of a masked rank
  };

  template <class Thread>
  FERRY_GPU void sum_tokens(Thread& t) const {
    const std::int64_t pieces = pieces_of(args.layout.hidden, kPieceValues);
    for_units(t, num_tokens(t, args) * pieces, [&](std::int64_t unit) {
      const std::int64_t token = unit / pieces;
      // Of a token that a masked rank should have sent, for its group, nobody may have a result.
      const auto share = static_cast<int>(token % args.layout.tp);
      const bool unsent = is_masked(t, args, args.rank / args.layout.tp * args.layout.tp + share);
      const Found found =
          !unsent && t.lane() < args.layout.topk ? find(t, token, t.lane()) : Found{};
      if (args.layout.masks) {
        const bool lacks = t.ballot(unsent || found.is_lost) != 0;
        if (t.lane() == 0 && unit % pieces == 0) t.store(lost + token, lacks ? 1U : 0U);
      }
      weighted_sum(t,
                   found.term,
                   {args.layout.combine_wire, args.layout.hidden},
                   {rows.base + token * rows.stride, type, accumulate},
                   unit % pieces * kPieceValues);
    });
  }

  /// By the last block. Who goes on without this rank says so before it overwrites what this rank
  /// may have read.
  template <class Thread>
  FERRY_GPU void end_with_masks(Thread& t) const {
    const GpuLayout& layout = args.layout;
    for (int token = num_tokens(t, args) + t.thread(); token < layout.max_tokens;
         token += t.threads())
      t.store(lost + token, 0U);
    for (int peer = t.thread(); peer < layout.ranks; peer += t.threads())
      if (!is_masked(t, args, peer) && is_left_behind(t, args, peer)) break;
  }

  /// The result of (token, k), where its slot's rank has it.
  template <class Thread>
  FERRY_GPU Found find(Thread& t, std::int64_t token, int k) const {
    const GpuLayout& layout = args.layout;
    const SlotId* ids = args.slots + token * layout.topk;
    const SlotId slot = t.load(ids + k);
    if (slot < 0 || slot >= layout.ranks * layout.slots) return {};
    int first = 0;
    while (t.load(ids + first) != slot) ++first;
    const int peer = slot / layout.slots;
    if (is_masked(t, args, peer)) return {.is_lost = true};
    const GpuSource* source = args.from + peer;
    const auto share = static_cast<int>(token % layout.tp);
    const std::uint32_t begin =
        t.load(t.load(&source->told.result_rows) + share * layout.slots + slot % layout.slots);
    if (begin == kNoResults) return {.is_lost = true};
    const std::uint32_t row = begin + t.load(args.in_slot + token * layout.topk + first);
    if (row >= t.load(&source->num_results)) {
      record_fault(t,
                   args,
                   {.kind = GpuFaultRecord::bad_message,
                    .rank = static_cast<std::uint32_t>(peer),
                    .exchange = t.load(&args.state->exchange),
                    .where = slot,
                    .value = row});
      return {};
    }
    return {.term = {t.load(&source->results) + row * layout.combine_row_bytes,
                     t.load(weights + token * layout.topk + k)}};
  }
};

}  // namespace ferry::gpu
