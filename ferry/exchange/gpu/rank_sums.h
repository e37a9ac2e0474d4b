// Sums before the sums at home: the rank of the experts adds up what its slots have for a token,
// weighted, in top-k order, and the home reads one row from each such rank. Which of a rank's rows
// are a token's, and their weights, the rank reads in the home's memory, where these lie by token.
#pragma once

#include "ferry/exchange/gpu/gpu_steps.h"

namespace ferry::gpu {

/// Combine, the sending side.
struct SendSums {
  GpuExchangeArgs args;
  std::byte* output = nullptr;            ///< [expert_rows] rows of output_type, which are used up
  const std::uint32_t* begins = nullptr;  ///< [ranks, slots] first row of each home's

  static constexpr std::size_t shared_bytes(const GpuLayout&) { return sizeof(std::uint32_t); }

  template <class Thread>
  FERRY_GPU void operator()(Thread& t) const {
    if (!may_begin(t, args, GpuPhase::combine_send)) return;
    sum_homes(t);
    signal_all(t, args, GpuSignal::results, t.load(&args.state->exchange));
  }

 private:
  /// Of rows of output_type, which is f32 where results are quantised.
  FERRY_GPU WireType plain_wire() const {
    return args.layout.output_type == DType::f32 ? WireType::f32 : WireType::bf16;
  }

  template <class Thread>
  FERRY_GPU void sum_homes(Thread& t) const {
    const GpuLayout& layout = args.layout;
    const std::int64_t piece = encode_piece(layout.combine_wire, layout.result_columns);
    const std::int64_t pieces = pieces_of(layout.result_columns, piece);
    std::int64_t dealt = 0;
    // From this rank on: else all ranks would read from one at a time.
    for (int order = 0; order < layout.ranks; ++order) {
      const int home = (args.rank + order) % layout.ranks;
      const int share = home % layout.tp;
      const std::int64_t units = layout.tokens_of(share, tokens_of(t, home)) * pieces;
      for_units(
          t,
          units,
          [&](std::int64_t unit) {
            const std::int64_t token = unit / pieces * layout.tp + share;
            sum_token(t, home, token, unit % pieces * piece, piece);
          },
          dealt);
      dealt += units;
    }
  }

  /// Of a home; 0: it is masked, or its word cannot be.
  template <class Thread>
  FERRY_GPU int tokens_of(Thread& t, int home) const {
    const GpuLayout& layout = args.layout;
    if (t.load(begins + home * layout.slots) == kNoResults) return 0;
    const std::uint32_t tokens = t.load(t.load(&args.from[home].told.num_tokens));
    if (tokens <= static_cast<std::uint32_t>(layout.max_tokens)) return static_cast<int>(tokens);
    bad_message(t, args, home, 0, tokens);
    return 0;
  }

  /// A piece of a token's sum. What is quantised is added up in the row of the token's first
  /// result, which is its alone.
  template <class Thread>
  FERRY_GPU void sum_token(
      Thread& t, int home, std::int64_t token, std::int64_t first, std::int64_t piece) const {
    const GpuLayout& layout = args.layout;
    const Term term = find(t, home, token);
    const std::uint32_t terms = t.ballot(term.row != nullptr);
    if (terms == 0) return;
    const WireType plain = plain_wire();
    std::byte* result = args.part + layout.results + layout.sum_at(home, token);
    std::byte* sum = layout.combine_wire == plain ? result : row_of_first(t, term, terms);
    weighted_sum(t, term, {plain, layout.result_columns}, {sum, layout.output_type}, first, piece);
    if (sum == result) return;
    t.sync_warp();
    encode(t, sum, DType::f32, result, {layout.combine_wire, layout.result_columns}, first);
  }

  template <class Thread>
  FERRY_GPU std::byte* row_of_first(Thread& t, const Term& term, std::uint32_t terms) const {
    int lane = 0;
    while ((terms >> lane & 1U) == 0) ++lane;
    const auto address = t.shuffle(__builtin_bit_cast(std::uint64_t, term.row), lane);
    return __builtin_bit_cast(std::byte*, address);
  }

  /// This rank's result of (token, k) of a home, k being this lane's number, if it has one.
  template <class Thread>
  FERRY_GPU Term find(Thread& t, int home, std::int64_t token) const {
    const GpuLayout& layout = args.layout;
    const int k = t.lane();
    if (k >= layout.topk) return {};
    const GpuSource* source = args.from + home;
    const std::int64_t entry = token * layout.topk;
    const SlotId* slots = t.load(&source->slots) + entry;
    const SlotId slot = t.load(slots + k);
    const SlotId own = slot - args.rank * layout.slots;
    if (own < 0 || own >= layout.slots) return {};
    int first = 0;
    while (first < k && t.load(slots + first) != slot) ++first;
    const std::uint32_t row = t.load(begins + home * layout.slots + own) +
                              t.load(t.load(&source->places) + entry + first);
    if (row >= layout.expert_rows) {
      bad_message(t, args, home, own, row);
      return {};
    }
    return {output + row * layout.output_row_bytes, t.load(t.load(&source->weights) + entry + k)};
  }
};

}  // namespace ferry::gpu
