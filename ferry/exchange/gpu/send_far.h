// What goes to ranks of other hosts, into memory that the network sends from (gpu_boxes.h): kernels
// of their own, put on the queue before those that raise the signals, only where there are such
// ranks.
#pragma once

#include "ferry/exchange/gpu/gpu_steps.h"
#include "ferry/kernels/gpu/prefix_sums.h"

namespace ferry::gpu {

/// Before SendTokens: the rows of tokens that some far rank computes.
struct SendFarTokens {
  GpuExchangeArgs args;
  GpuRows from;

  static constexpr std::size_t shared_bytes(const GpuLayout&) { return sizeof(std::uint32_t); }

  template <class Thread>
  FERRY_GPU void operator()(Thread& t) const {
    if (!may_begin(t, args, GpuPhase::dispatch_send)) return;
    const GpuLayout& layout = args.layout;
    write_rows(t, args, from, args.far.stage, [&](std::int64_t token) {
      const SlotId slot =
          t.lane() < layout.topk ? t.load(args.slots + token * layout.topk + t.lane()) : -1;
      const bool is_slot = slot >= 0 && slot < layout.ranks * layout.slots;
      return t.ballot(is_slot && t.load(&args.to[slot / layout.slots].is_far) != 0) != 0;
    });
  }
};

/// Before SendResults: the results of homes whose groups have far ranks.
struct SendFarResults {
  GpuExchangeArgs args;
  const std::byte* rows = nullptr;  ///< [expert_rows] of output_type, or
  bool encoded = false;             ///< in combine wire already
  const std::int32_t* counts = nullptr;
  const std::int64_t* offsets = nullptr;

  static constexpr std::size_t shared_bytes(const GpuLayout&) { return sizeof(std::uint32_t); }

  template <class Thread>
  FERRY_GPU void operator()(Thread& t) const {
    if (!may_begin(t, args, GpuPhase::combine_send)) return;
    std::int64_t dealt = 0;
    for (int slot = 0; slot < args.layout.slots; ++slot) dealt += send_slot(t, slot, dealt);
  }

 private:
  /// Returns the units of work that it dealt out.
  template <class Thread>
  FERRY_GPU std::int64_t send_slot(Thread& t, int slot, std::int64_t dealt) const {
    const GpuLayout& layout = args.layout;
    const std::int64_t piece = encoded ? layout.combine_row_bytes
                                       : encode_piece(layout.combine_wire, layout.result_columns);
    const std::int64_t pieces = encoded ? 1 : pieces_of(layout.result_columns, piece);
    const std::int64_t units = t.load(counts + slot) * pieces;
    const auto send_unit = [&](std::int64_t unit) {
      const auto in_slot = static_cast<std::uint32_t>(unit / pieces);
      std::byte* to = place(t, slot, in_slot);
      if (to == nullptr) return;
      const std::int64_t row = t.load(offsets + slot) + in_slot;
      if (encoded)
        copy_bytes(t, to, rows + row * layout.combine_row_bytes, piece);
      else
        encode(t,
               rows + row * layout.output_row_bytes,
               layout.output_type,
               to,
               {layout.combine_wire, layout.result_columns},
               unit % pieces * piece);
    };
    for_units(t, units, send_unit, dealt);
    return units;
  }

  /// Of a slot's row in its home's box; null: nobody far reads it.
  template <class Thread>
  FERRY_GPU std::byte* place(Thread& t, int slot, std::uint32_t in_slot) const {
    const GpuLayout& layout = args.layout;
    const std::uint32_t* begins = args.far.home_rows + slot * layout.ranks;
    const int order = find_last(t, begins, layout.ranks, in_slot);
    const int home = (args.rank + order) % layout.ranks;
    std::byte* box = t.load(args.far.results + home);
    if (box == nullptr) return nullptr;
    const std::int64_t row = std::int64_t{t.load(args.far.box_rows + home * layout.slots + slot)} +
                             in_slot - t.load(begins + order);
    return box + row * layout.combine_row_bytes;
  }
};

}  // namespace ferry::gpu
