// Dispatch, the receiving side: a place for every row, which is a prefix sum over what all ranks
// send; then the rows, read from their homes' stages. Every block works the places out for itself:
// that is less than to wait for another's.
#pragma once

#include "ferry/exchange/gpu/gpu_steps.h"
#include "ferry/kernels/gpu/prefix_sums.h"

namespace ferry::gpu {

struct ReceiveTokens {
  GpuExchangeArgs args;
  std::byte* input = nullptr;         ///< [expert_rows] rows of expert_type, or their addresses
  float* weights = nullptr;           ///< [expert_rows], with row_weights
  std::int32_t* counts = nullptr;     ///< [slots] what experts get,
  std::int64_t* offsets = nullptr;    ///< [slots] and where
  std::uint32_t* sum_rows = nullptr;  ///< [ranks, slots] first row of each home's, where ranks sum

  /// Of a block: where each home's rows begin among those of a slot, and each slot's first record
  /// and first row.
  static constexpr std::size_t shared_bytes(const GpuLayout& layout) {
    const auto slots = static_cast<std::size_t>(layout.slots);
    return (slots * static_cast<std::size_t>(layout.ranks) + 2 * (slots + 1)) *
           sizeof(std::uint32_t);
  }

  template <class Thread>
  FERRY_GPU void operator()(Thread& t) const {
    const GpuLayout& layout = args.layout;
    if (!await_all(t, args, GpuSignal::tokens)) {
      // Experts run all the same. They shall write nothing: who is late may still read results.
      for (int slot = t.thread(); t.block() == 0 && slot < layout.slots; slot += t.threads())
        t.store(counts + slot, 0);
      return;
    }
    count_slots(t);
    t.sync();
    if (t.warp() == 0) {
      prefix_sums(t, first_record(t), layout.slots, [](std::uint32_t count) { return count; });
    } else if (t.warp() == 1) {
      prefix_sums(t, first_row(t), layout.slots, [&](std::uint32_t count) {
        const auto unit = static_cast<std::uint32_t>(layout.alignment);
        return layout.padded ? static_cast<std::uint32_t>(layout.slot_capacity)
                             : (count + unit - 1) / unit * unit;
      });
    }
    t.sync();
    if (t.block() == 0) publish(t);
    const std::int64_t pieces =
        layout.pointers ? 1 : layout.column_ranks * pieces_of(layout.columns, kPieceValues);
    const std::int64_t records = t.load(first_record(t) + layout.slots);
    for_units(t, records * pieces, [&](std::int64_t unit) {
      take_row(t, static_cast<std::uint32_t>(unit / pieces), unit % pieces);
    });
  }

 private:
  /// The home whose rows stand at this place among a slot's: from this rank on, as on the CPU.
  FERRY_GPU int home_at(int order) const { return (args.rank + order) % args.layout.ranks; }

  /// [slots][sources()], in the homes' order
  template <class Thread>
  FERRY_GPU std::uint32_t* first_of_home(Thread& t) const {
    return reinterpret_cast<std::uint32_t*>(t.shared());
  }

  /// [slots + 1]
  template <class Thread>
  FERRY_GPU std::uint32_t* first_record(Thread& t) const {
    return first_of_home(t) + args.layout.slots * args.layout.sources();
  }

  /// [slots + 1]
  template <class Thread>
  FERRY_GPU std::uint32_t* first_row(Thread& t) const {
    return first_record(t) + args.layout.slots + 1;
  }

  /// Into both arrays by slot: the number of its rows. A number that cannot be, and a masked
  /// rank's, counts as 0.
  template <class Thread>
  FERRY_GPU void count_slots(Thread& t) const {
    const GpuLayout& layout = args.layout;
    for (int slot = t.thread(); slot < layout.slots; slot += t.threads()) {
      std::uint32_t rows = 0;
      for (int order = 0; order < layout.sources(); ++order) {
        const int home = home_at(order);
        std::uint32_t count =
            is_masked(t, args, home) ? 0 : t.load(t.load(&args.from[home].told.counts) + slot);
        if (count > static_cast<std::uint32_t>(layout.list_tokens)) {
          bad_message(t, args, home, slot, count);
          count = 0;
        }
        t.store(first_of_home(t) + slot * layout.sources() + order, rows);
        rows += count;
      }
      t.store(first_record(t) + slot, rows);
      t.store(first_row(t) + slot, rows);
    }
  }

  /// To experts: counts and offsets. To every home's group: where its results will begin, here or,
  /// for those of other hosts, in their boxes.
  template <class Thread>
  FERRY_GPU void publish(Thread& t) const {
    const GpuLayout& layout = args.layout;
    for (int slot = t.thread(); slot < layout.slots; slot += t.threads()) {
      const std::uint32_t* record = first_record(t) + slot;
      const std::uint32_t row = t.load(first_row(t) + slot);
      t.store(counts + slot, static_cast<std::int32_t>(t.load(record + 1) - t.load(record)));
      t.store(offsets + slot, std::int64_t{row});
      for (int order = 0; order < layout.sources(); ++order) {
        const int home = home_at(order);
        const std::uint32_t of_slot = t.load(first_of_home(t) + slot * layout.sources() + order);
        const std::uint32_t begin = is_masked(t, args, home) ? kNoResults : row + of_slot;
        tell_group(t, home, slot, begin, 0);
        if (layout.sums) t.store(sum_rows + home * layout.slots + slot, begin);
        if (args.far.stage != nullptr)
          t.store(args.far.home_rows + slot * layout.ranks + order, of_slot);
      }
    }
    if (args.far.stage == nullptr) return;
    for (int order = t.thread(); order < layout.sources(); order += t.threads())
      publish_box(t, order);
  }

  /// Results for the far ones of a home's group stand in its box in the order of its slots.
  template <class Thread>
  FERRY_GPU void publish_box(Thread& t, int order) const {
    const GpuLayout& layout = args.layout;
    const int home = home_at(order);
    if (t.load(args.far.results + home) == nullptr) return;
    const bool masked = is_masked(t, args, home);
    const auto of_share = static_cast<std::uint32_t>(home % layout.tp * layout.share_results);
    std::uint32_t row = 0;
    for (int slot = 0; slot < layout.slots; ++slot) {
      tell_group(t, home, slot, masked ? kNoResults : of_share + row, 1);
      t.store(args.far.box_rows + home * layout.slots + slot, row);
      const std::uint32_t* begins = first_of_home(t) + slot * layout.ranks;
      const std::uint32_t end = order + 1 < layout.ranks ? t.load(begins + order + 1)
                                                         : t.load(first_record(t) + slot + 1) -
                                                               t.load(first_record(t) + slot);
      row += end - t.load(begins + order);
    }
    t.store(args.far.result_counts + home, row);
  }

  /// To those of a home's group that are far, or to those that are not.
  template <class Thread>
  FERRY_GPU void tell_group(
      Thread& t, int home, int slot, std::uint32_t row, std::uint32_t far) const {
    const GpuLayout& layout = args.layout;
    const int share = home % layout.tp;
    const int members = layout.tp * layout.column_ranks;  // of these one is 1
    const int group = home / members * members;
    for (int member = group; member < group + members; ++member) {
      const GpuLink* link = args.to + member;
      if (is_masked(t, args, member) || t.load(&link->is_far) != far) continue;
      t.store(t.load(&link->result_rows) + share * layout.slots + slot, row);
    }
  }

  /// A piece of the row of record `record`, by one warp.
  template <class Thread>
  FERRY_GPU void take_row(Thread& t, std::uint32_t record, std::int64_t piece) const {
    const GpuLayout& layout = args.layout;
    const std::int64_t pieces = pieces_of(layout.columns, kPieceValues);
    const std::int64_t first = piece % pieces * kPieceValues;
    const int slot = find_last(t, first_record(t), layout.slots, record);
    const std::uint32_t in_slot = record - t.load(first_record(t) + slot);
    const std::uint32_t* homes = first_of_home(t) + slot * layout.sources();
    const int order = find_last(t, homes, layout.sources(), in_slot);
    const int home = home_at(order);
    const std::size_t entry = layout.list(slot) + (in_slot - t.load(homes + order));
    const GpuSource* source = args.from + home;
    const std::uint32_t token = t.load(t.load(&source->told.tokens) + entry);
    if (token >= static_cast<std::uint32_t>(layout.max_tokens)) {
      if (t.lane() == 0) bad_message(t, args, home, slot, token);
      return;
    }
    const std::int64_t place = std::int64_t{t.load(first_row(t) + slot)} + in_slot;
    const int holder = layout.column_ranks == 1 ? home : static_cast<int>(piece / pieces);
    const std::byte* from = t.load(&args.from[holder].stage) + token * layout.dispatch_row_bytes;
    std::byte* to =
        input + place * layout.input_row_bytes + layout.columns_at(holder, layout.expert_row_bytes);
    if (layout.row_weights && piece == 0 && t.lane() == 0)
      t.store(weights + place, t.load(t.load(&source->told.weights) + entry));
    if (layout.pointers) {
      if (t.lane() == 0) t.store(reinterpret_cast<const std::byte**>(to), from);
      return;
    }
    if (layout.expert_type == layout.dispatch_wire) {
      copy_piece(t, to, from, first);
      return;
    }
    const DType type = layout.expert_type == WireType::f32 ? DType::f32 : DType::bf16;
    decode(t, from, {layout.dispatch_wire, layout.columns}, to, type, first);
  }

  /// As delivered, scales and all: the pieces of a row are as many shares of its bytes.
  template <class Thread>
  FERRY_GPU void copy_piece(Thread& t,
                            std::byte* to,
                            const std::byte* from,
                            std::int64_t first) const {
    constexpr std::int64_t kUnit = 16;
    const std::int64_t pieces = pieces_of(args.layout.columns, kPieceValues);
    const std::int64_t bytes = args.layout.dispatch_row_bytes;
    const std::int64_t share = (bytes / pieces + kUnit) / kUnit * kUnit;
    const std::int64_t begin = first / kPieceValues * share;
    if (begin >= bytes) return;
    copy_bytes(t, to + begin, from + begin, bytes - begin < share ? bytes - begin : share);
  }
};

}  // namespace ferry::gpu
