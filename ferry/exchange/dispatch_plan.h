// The index arithmetic of one exchange: counts, offsets, permutations. No I/O, no ranks waited for.
// Places are fixed by prefix sums, never by a race, so every run puts every row in the same place.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "ferry/core/types.h"
#include "ferry/expert_rows.h"

namespace ferry {

/// One distinct (token, slot): a row that an expert computes. Travels in dispatch messages as it
/// is.
struct Record {
  std::uint32_t token = 0;  ///< of the home rank
  std::uint32_t slot = 0;   ///< local to the rank that computes it
};

/// Tokens [first, first + count) of a home rank.
struct TokenRun {
  std::uint32_t first = 0;
  std::uint32_t count = 0;
};

/// Where the result of one (token, k) will stand.
struct RecordPlace {
  Rank rank = -1;             ///< -1: nowhere, the id was -1
  std::int32_t slot = 0;      ///< local slot on that rank
  std::uint32_t in_slot = 0;  ///< index among this home rank's results of the slot
  std::uint32_t result = 0;   ///< index among this home rank's results there, slot after slot
};

/// What a home rank sends. The records for a rank stand in order of (token, k), so that a token's
/// row is read once for all its experts there; their results stand in order of (slot, token), as
/// the experts' rows do. A token that names a slot twice has one record for both.
class SendPlan {
 public:
  /// takers: [ranks] for each rank, the one that takes its rows (RelayPlan); empty: each its own.
  SendPlan(
      int ranks, int slots_per_rank, int topk, int max_tokens, std::span<const Rank> takers = {});

  /// The takers of the next build(): who plans for one home after the other keeps the memory.
  void set_takers(std::span<const Rank> takers);

  /// Of a group of `tp` ranks that hold the same tokens, member `member` sends those with
  /// token % tp == member.
  struct Share {
    int member = 0;
    int tp = 1;
  };

  /// slots: [tokens, topk], -1 = none. Throws BrokenContract for ids outside the slots. Allocates
  /// nothing.
  void build(std::span<const SlotId> slots, int tokens, Share share);

  void build(std::span<const SlotId> slots, int tokens) { build(slots, tokens, Share{}); }

  int tokens() const { return tokens_; }

  std::span<const Record> records(Rank rank) const;
  /// [slots_per_rank] records for each slot of a rank.
  std::span<const std::uint32_t> counts(Rank rank) const;
  /// The tokens with at least one record for a rank whose rows `taker` takes, as runs in rising
  /// order.
  std::span<const TokenRun> runs(Rank taker) const;
  RecordPlace place(int token, int k) const;

 private:
  std::uint32_t first_of(Rank rank) const;
  void add_to_runs(std::size_t taker, std::uint32_t token);

  int ranks_;
  int slots_per_rank_;
  int topk_;
  int max_tokens_;
  int tokens_ = 0;
  std::vector<std::size_t> takers_;          // [ranks]
  std::vector<SlotId> slots_;                // [tokens, topk] of the plan
  std::vector<std::uint32_t> in_slot_;       // [tokens, topk]
  std::vector<std::uint32_t> counts_;        // [P]
  std::vector<std::uint32_t> first_result_;  // [P + 1] prefix sums of counts_
  std::vector<Record> records_;              // those of rank 0, then of rank 1, ...
  std::vector<std::uint32_t> next_record_;   // [ranks] cursor into records_
  std::vector<TokenRun> runs_;               // [ranks][max_tokens]
  std::vector<std::uint32_t> num_runs_;      // [ranks]
};

/// Where the rows of all home ranks stand on the rank that computes them: slot by slot, and inside
/// a slot home rank by home rank.
class ReceivePlan {
 public:
  struct Options {
    int ranks = 0;
    int slots_per_rank = 0;
    DispatchFormat format = DispatchFormat::padded;
    std::int64_t slot_capacity = 0;  ///< padded: rows reserved for a slot
    std::int64_t alignment = 1;      ///< else: each slot starts at a multiple of it
    std::size_t max_records = 0;     ///< that one home rank may send
    Rank first_home = 0;  ///< whose rows stand first in a slot; the others follow in ring order
  };

  explicit ReceivePlan(const Options& options);

  /// counts_of(home): [slots_per_rank] records of that home rank for each local slot.
  template <class CountsOf>
  void build(CountsOf counts_of) {
    for (Rank home = 0; home < options_.ranks; ++home) set_counts(home, counts_of(home));
    finish();
  }

  /// Works out the row of each record of `home`, in the order of its message. False when they are
  /// not the records that its counts announced.
  bool place(Rank home, std::span<const Record> records);

  /// Whether the rows of first_home have their places before anybody else's counts are known.
  bool places_first_home_alone() const { return options_.format == DispatchFormat::padded; }

  /// As place(first_home, records), before build(). REQUIRES: places_first_home_alone().
  bool place_first_home(std::span<const Record> records, std::span<const std::uint32_t> counts);

  std::span<const std::int64_t> places(Rank home) const {
    return std::span(places_).subspan(static_cast<std::size_t>(home) * options_.max_records,
                                      options_.max_records);
  }

  std::span<const std::int32_t> counts() const { return counts_; }

  std::span<const std::int64_t> offsets() const { return offsets_; }

  /// [slots_per_rank] row of the first record of `home` in each slot.
  std::span<const std::int64_t> first_rows(Rank home) const { return in_order(order_of(home)); }

 private:
  std::size_t slots() const { return static_cast<std::size_t>(options_.slots_per_rank); }

  std::size_t order_of(Rank home) const {
    return static_cast<std::size_t>((home - options_.first_home + options_.ranks) % options_.ranks);
  }

  std::span<const std::int64_t> in_order(std::size_t order) const {
    return std::span(first_rows_).subspan(order * slots(), slots());
  }

  bool place_from(std::span<const Record> records, Rank home);
  void set_counts(Rank home, std::span<const std::uint32_t> counts);
  void finish();

  Options options_;
  std::vector<std::int32_t> counts_;      // [L]
  std::vector<std::int64_t> offsets_;     // [L]
  std::vector<std::int64_t> first_rows_;  // [ranks + 1][L] from first_home; counts until finish()
  std::vector<std::int64_t> next_row_;    // [L] cursor of place(),
  std::vector<std::int64_t> end_row_;     // [L] and where it must stop
  std::vector<std::int64_t> places_;      // [ranks][max_records]
};

}  // namespace ferry
