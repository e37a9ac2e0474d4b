// The index arithmetic of one exchange: counts, offsets, permutations. No I/O, no ranks waited for.
// Places are fixed by prefix sums, never by a race, so every run puts every row in the same place.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "ferry/core/types.h"
#include "ferry/moe/experts.h"

namespace ferry {

/// Tokens [first, first + count) of a home rank.
struct TokenRun {
  std::uint32_t first = 0;
  std::uint32_t count = 0;
};

/// Where the result of one (token, k) will stand.
struct RecordPlace {
  Rank rank = -1;             ///< -1: nowhere, the id was -1
  std::int32_t slot = 0;      ///< local slot on that rank
  std::uint32_t in_slot = 0;  ///< index among this home rank's records of the slot
  std::uint32_t record = 0;   ///< index among all records for that rank
};

/// What a home rank sends. A record is one distinct (token, slot); the records for a rank are
/// sorted by (slot, token). A token that names a slot twice has one record for both.
class SendPlan {
 public:
  SendPlan(int ranks, int slots_per_rank, int topk, int max_tokens);

  /// slots: [tokens, topk], -1 = none. Throws BrokenContract for ids outside the slots. Allocates
  /// nothing.
  void build(std::span<const SlotId> slots, int tokens);

  int tokens() const { return tokens_; }

  std::uint32_t records(Rank rank) const { return first_of(rank + 1) - first_of(rank); }

  /// [slots_per_rank] records for each slot of a rank.
  std::span<const std::uint32_t> counts(Rank rank) const;
  /// [records(rank)] the token of each record.
  std::span<const std::uint32_t> record_tokens(Rank rank) const;
  /// The tokens with at least one record for the rank, as runs in rising order.
  std::span<const TokenRun> runs(Rank rank) const;
  RecordPlace place(int token, int k) const;

 private:
  std::uint32_t first_of(Rank rank) const;

  int ranks_;
  int slots_per_rank_;
  int topk_;
  int max_tokens_;
  int tokens_ = 0;
  std::vector<SlotId> slots_;                // [tokens, topk] of the plan
  std::vector<std::uint32_t> counts_;        // [P]
  std::vector<std::uint32_t> first_record_;  // [P + 1] prefix sums of counts_
  std::vector<std::uint32_t> position_;      // [tokens, topk] record of each entry, over all ranks
  std::vector<std::uint32_t> record_token_;  // [records]
  std::vector<TokenRun> runs_;               // [ranks][max_tokens]
  std::vector<std::uint32_t> num_runs_;      // [ranks]
};

/// Where the rows of all home ranks stand on the rank that computes them: slot by slot, and inside
/// a slot home rank by home rank.
class ReceivePlan {
 public:
  /// `slot_capacity`: rows reserved for a slot in the padded format. `alignment`: in the ragged
  /// format each slot starts at a multiple of it.
  ReceivePlan(int ranks,
              int slots_per_rank,
              DispatchFormat format,
              std::int64_t slot_capacity,
              std::int64_t alignment);

  /// counts(home): [slots_per_rank] records of that home rank for each local slot.
  template <class CountsOf>
  void build(CountsOf counts_of) {
    for (Rank home = 0; home < ranks_; ++home) set_counts(home, counts_of(home));
    finish();
  }

  std::span<const std::int32_t> counts() const { return counts_; }

  std::span<const std::int64_t> offsets() const { return offsets_; }

  /// Row of the first record of `home` in `slot`.
  std::int64_t first_row(Rank home, int slot) const {
    return first_rows_[static_cast<std::size_t>(home * slots_per_rank_ + slot)];
  }

  std::span<const std::int64_t> first_rows(Rank home) const {
    return std::span(first_rows_)
        .subspan(static_cast<std::size_t>(home * slots_per_rank_),
                 static_cast<std::size_t>(slots_per_rank_));
  }

  /// Rows of the whole buffer that are in use or skipped; the padded format counts all.
  std::int64_t rows() const { return rows_; }

 private:
  void set_counts(Rank home, std::span<const std::uint32_t> counts);
  void finish();

  int ranks_;
  int slots_per_rank_;
  DispatchFormat format_;
  std::int64_t slot_capacity_;
  std::int64_t alignment_;
  std::int64_t rows_ = 0;
  std::vector<std::int32_t> counts_;      // [L]
  std::vector<std::int64_t> offsets_;     // [L]
  std::vector<std::int64_t> first_rows_;  // [ranks][L]; counts until finish()
};

}  // namespace ferry
