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
    std::byte* results = t.load(args.parts + args.rank) + layout.results;
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

  static constexpr std::size_t shared_bytes(const GpuLayout&) { return sizeof(std::uint32_t); }

  template <class Thread>
  FERRY_GPU void operator()(Thread& t) const {
    if (!await_all(t, args, GpuSignal::results)) return;
    const std::int64_t pieces = pieces_of(args.layout.hidden, kPieceValues);
    for_units(t, num_tokens(t, args) * pieces, [&](std::int64_t unit) {
      const std::int64_t token = unit / pieces;
      const Term term = t.lane() < args.layout.topk ? term_of(t, token, t.lane()) : Term{};
      weighted_sum(t,
                   term,
                   {args.layout.combine_wire, args.layout.hidden},
                   {rows.base + token * rows.stride, type, accumulate},
                   unit % pieces * kPieceValues);
    });
  }

 private:
  /// The result of (token, k), where its slot's rank has it.
  template <class Thread>
  FERRY_GPU Term term_of(Thread& t, std::int64_t token, int k) const {
    const GpuLayout& layout = args.layout;
    const SlotId* ids = args.slots + token * layout.topk;
    const SlotId slot = t.load(ids + k);
    if (slot < 0 || slot >= layout.ranks * layout.slots) return {};
    int first = 0;
    while (t.load(ids + first) != slot) ++first;
    const int peer = slot / layout.slots;
    const auto* result_rows =
        at<const std::uint32_t>(t.load(args.parts + args.rank), layout.result_rows);
    const auto share = static_cast<int>(token % layout.tp);
    const std::uint32_t row =
        t.load(result_rows + layout.results_of(share, peer, slot % layout.slots)) +
        t.load(args.in_slot + token * layout.topk + first);
    if (row >= layout.expert_rows) {
      record_fault(t,
                   args,
                   {.kind = GpuFaultRecord::bad_message,
                    .rank = static_cast<std::uint32_t>(peer),
                    .exchange = t.load(&args.state->exchange),
                    .where = slot,
                    .value = row});
      return {};
    }
    return {t.load(args.parts + peer) + layout.results + row * layout.combine_row_bytes,
            t.load(weights + token * layout.topk + k)};
  }
};

}  // namespace ferry::gpu
