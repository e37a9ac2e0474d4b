// Combine: results that travel quantised are encoded where they stand, and everybody is told; then
// each home reads its results from the peers' memory and adds them up, in top-k order; or the sums
// of ranks (rank_sums.h), in order of rank.
#pragma once

#include "ferry/exchange/gpu/gpu_steps.h"
#include "ferry/kernels/gpu/sort_lanes.h"

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
    if (!may_begin(t, args, GpuPhase::combine_send)) return;
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
    const std::int64_t piece = encode_piece(layout.combine_wire, layout.result_columns);
    const std::int64_t pieces = pieces_of(layout.result_columns, piece);
    const std::int64_t first_row = t.load(offsets + slot);
    std::byte* results = args.part + layout.results;
    const std::int64_t units = t.load(counts + slot) * pieces;
    const auto encode_unit = [&](std::int64_t unit) {
      const std::int64_t row = first_row + unit / pieces;
      encode(t,
             output + row * layout.output_row_bytes,
             layout.output_type,
             results + row * layout.combine_row_bytes,
             {layout.combine_wire, layout.result_columns},
             unit % pieces * piece);
    };
    for_units(t, units, encode_unit, dealt);
    return units;
  }
};

struct SumResults {
  GpuExchangeArgs args;
  const float* weights = nullptr;  ///< [tokens, topk], unless ranks have summed by them
  MutableRowsView rows = {};       ///< [tokens, result_columns] of `type`
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
    const std::int64_t pieces = pieces_of(args.layout.result_columns, kPieceValues);
    for_units(t, num_tokens(t, args) * pieces, [&](std::int64_t unit) {
      const std::int64_t token = unit / pieces;
      // Of a token that a masked rank should have sent, for its group, nobody may have a result.
      const auto share = static_cast<int>(token % args.layout.tp);
      const bool unsent = is_masked(t, args, args.rank / args.layout.tp * args.layout.tp + share);
      const Found found = unsent             ? Found{}
                          : args.layout.sums ? find_sum(t, token)
                                             : find_result(t, token);
      if (args.layout.masks) {
        const bool lacks = t.ballot(unsent || found.is_lost) != 0;
        if (t.lane() == 0 && unit % pieces == 0) t.store(lost + token, lacks ? 1U : 0U);
      }
      weighted_sum(t,
                   found.term,
                   {args.layout.combine_wire, args.layout.result_columns},
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

  /// The slot of (token, k), k being this lane's number; -1: none.
  template <class Thread>
  FERRY_GPU SlotId slot_of(Thread& t, std::int64_t token) const {
    const GpuLayout& layout = args.layout;
    if (t.lane() >= layout.topk) return -1;
    const SlotId slot = t.load(args.slots + token * layout.topk + t.lane());
    return slot < layout.ranks * layout.slots ? slot : -1;
  }

  /// The first row that a peer has for this token's share, in a slot; kNoResults.
  template <class Thread>
  FERRY_GPU std::uint32_t begin_of(Thread& t, std::int64_t token, int peer, int slot) const {
    const auto share = static_cast<int>(token % args.layout.tp);
    return t.load(t.load(&args.from[peer].told.result_rows) + share * args.layout.slots + slot);
  }

  /// This lane's of the sums that ranks have for a token, in order of rank.
  template <class Thread>
  FERRY_GPU Found find_sum(Thread& t, std::int64_t token) const {
    const GpuLayout& layout = args.layout;
    constexpr std::uint32_t kNobody = ~0U;
    const SlotId slot = slot_of(t, token);
    const std::uint32_t rank =
        sort_lanes(t, slot < 0 ? kNobody : static_cast<std::uint32_t>(slot / layout.slots));
    const std::uint32_t before = t.shuffle_up(rank, 1);
    if (rank == kNobody || (t.lane() > 0 && rank == before)) return {};
    const auto peer = static_cast<int>(rank);
    if (is_masked(t, args, peer) || begin_of(t, token, peer, 0) == kNoResults)
      return {.is_lost = true};
    const int home = args.rank / layout.tp * layout.tp + static_cast<int>(token % layout.tp);
    return {.term = {t.load(&args.from[peer].results) + layout.sum_at(home, token), 1.0F}};
  }

  /// The result of (token, k), k being this lane's number, where its slot's rank has it.
  template <class Thread>
  FERRY_GPU Found find_result(Thread& t, std::int64_t token) const {
    const GpuLayout& layout = args.layout;
    const SlotId* ids = args.slots + token * layout.topk;
    const SlotId slot = slot_of(t, token);
    if (slot < 0) return {};
    int first = 0;
    while (t.load(ids + first) != slot) ++first;
    const int peer = slot / layout.slots;
    if (is_masked(t, args, peer)) return {.is_lost = true};
    const std::uint32_t begin = begin_of(t, token, peer, slot % layout.slots);
    if (begin == kNoResults) return {.is_lost = true};
    const GpuSource* source = args.from + peer;
    const std::uint32_t row = begin + t.load(args.in_slot + token * layout.topk + first);
    if (row >= t.load(&source->num_results)) {
      bad_message(t, args, peer, slot, row);
      return {};
    }
    return {.term = {t.load(&source->results) + row * layout.combine_row_bytes +
                         layout.columns_at(args.rank, layout.combine_row_bytes),
                     t.load(weights + token * layout.topk + t.lane())}};
  }
};

}  // namespace ferry::gpu
