// The floor of `ferry bench a2a`: what no exchange can do without. Under the routing of the very
// iteration each rank reads the distinct source rows that it receives once and writes them where
// the layout has them: places of padded slots, packed ones of ragged slots; for row pointers it
// writes the pointers alone. On the way back it reads the results of its own tokens where other
// ranks have written them, and writes the sums. No planning, messages or waiting, no casts.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "apps/ferry/a2a_case.h"
#include "ferry/buffer.h"
#include "ferry/core/threads.h"

namespace ferry {

/// Where the rows of all ranks' tokens stand. Worked out here, not by the plans that are measured.
class FloorPlan {
 public:
  explicit FloorPlan(const A2aCase& a2a);

  /// slots: [ranks][tokens][topk], all >= 0 and distinct for each token.
  void build(std::span<const SlotId> slots);

  Rank rank_of(std::size_t entry) const { return static_cast<Rank>(slot_[entry]) / slots_; }

  /// The row of (home, token, k), counted from the first of rank_of() it.
  std::int64_t row(std::size_t entry) const { return row_[entry]; }

  /// Rows that one rank may need room for.
  std::int64_t most_rows() const;

 private:
  DispatchFormat format_;
  int ranks_, slots_, topk_;
  std::int64_t tokens_;
  std::vector<SlotId> slot_;         // [ranks][tokens][topk]
  std::vector<std::int64_t> row_;    // the same
  std::vector<std::int64_t> first_;  // [P] row of each slot's first
  std::vector<std::int64_t> used_;   // [P]
};

/// Memory that the floors of all ranks share; made before the ranks. Untouched pages cost nothing.
class FloorMemory {
 public:
  explicit FloorMemory(const A2aCase& a2a);

  std::byte* input(Rank home, std::int64_t token) const {
    return &inputs_[static_cast<std::size_t>(home * tokens_ + token) * input_bytes_];
  }

  std::byte* result(Rank rank, std::int64_t row) const {
    return &results_[static_cast<std::size_t>(rank * rows_ + row) * result_bytes_];
  }

  /// The sum that `rank` makes for a token where ranks sum before home does.
  std::byte* sum(Rank rank, Rank home, std::int64_t token) const {
    return &sums_[static_cast<std::size_t>((rank * ranks_ + home) * tokens_ + token) *
                  result_bytes_];
  }

  /// [ranks][tokens][topk] of the iteration; each rank writes its own.
  std::span<SlotId> slots() const { return {&slots_[0], entries_}; }

 private:
  std::int64_t ranks_, tokens_, rows_;
  std::size_t input_bytes_, result_bytes_, entries_;
  SharedArray<std::byte> inputs_, results_, sums_;
  SharedArray<SlotId> slots_;
};

/// One rank's floor. All ranks call prepare, dispatch, consume and combine in this order and meet
/// before dispatch and before combine.
class A2aFloor {
 public:
  A2aFloor(const A2aCase& a2a, Rank rank, const FloorMemory& memory, ThreadPool& pool);

  void prepare();
  void dispatch();
  /// Stands for the experts: reads what dispatch delivered and writes the results.
  void consume();
  void combine(std::span<const float> weights, std::byte* out);

 private:
  struct Source {
    const std::byte* row;
    std::size_t first, end;  // of its places in places_
  };

  bool sums_per_rank() const {
    return a2a_.exchange.reduce_at == ExchangeOptions::ReduceAt::rank_then_home;
  }

  /// Under a launcher: the memory of the other ranks' floors is not theirs but a copy here.
  bool is_alone() const { return a2a_.launch.world.has_value(); }

  void stand_in_for_others();
  void sum_here();
  void sum_at_home(std::span<const float> weights,
                   std::byte* out,
                   std::int64_t token,
                   std::vector<const std::byte*>& rows) const;
  void sum_rows(std::span<const std::byte* const> rows,
                const float* weights,
                std::byte* out,
                std::size_t out_bytes) const;

  const A2aCase& a2a_;
  Rank rank_;
  const FloorMemory& memory_;
  ThreadPool& pool_;
  FloorPlan plan_;
  std::size_t source_bytes_, delivered_bytes_, result_bytes_;
  Buffer delivered_;
  std::vector<Source> sources_;
  std::vector<std::int64_t> places_;
  std::vector<const std::byte*> pointers_;            // [rows], where rows are only pointed at
  std::vector<std::vector<const std::byte*>> terms_;  // [threads] of one sum
  std::vector<float> ones_;                           // [topk]
};

}  // namespace ferry
