// What the sequences of one group hold, and the pages that stay behind them: rank 0's account of
// both, and the orders by which the group's ranks do the same.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "ferry/engine/step_record.h"
#include "ferry/state/prefix_index.h"
#include "ferry/state/state_layout.h"

namespace ferry {

/// A sequence's part.
struct Holding {
  PrefixPath path;
  std::size_t bytes = 0;  ///< beside the kept pages that it stands on
};

/// Kept pages that no sequence stands on fill what the sequences leave of the memory, and make way,
/// the one that was used least recently first. Where there is no limit they take no more than the
/// sequences have held at once. Plain logic; threads: one at a time.
class GroupMemory {
 public:
  /// `keeps`: pages stay behind sequences.
  GroupMemory(const StateLayout& layout, std::size_t limit, bool keeps);

  bool keeps() const { return index_.has_value(); }

  /// What of these tokens is kept, at most so many positions.
  PrefixIndex::Match find(const Admission& admission,
                          std::span<const std::int32_t> ids,
                          std::int64_t most_positions) const;

  /// Whether a sequence that is to have `bytes`, these pages included, has room once idle pages
  /// have made way.
  bool fits(std::size_t bytes, const PrefixIndex::Match& match) const;

  /// False: the record cannot tell any more pages to make way; the next one can.
  bool begin(Holding& holding,
             const Admission& admission,
             std::span<const std::int32_t> ids,
             std::int64_t pages,
             std::size_t bytes,
             StepRecord& record);

  /// Pages of these tokens that have been filled since, behind its `length` positions: it goes on
  /// behind them. Returns how many pages it stands on then; 0: there were none.
  std::int64_t catch_up(Holding& holding,
                        const Admission& admission,
                        std::span<const std::int32_t> ids,
                        std::int64_t length,
                        std::int64_t most_positions,
                        StepRecord& record);

  enum class Room : std::uint8_t { there, none, record_is_full };

  /// The most of its tokens, behind `length` that it has and up to `tokens` more, that it is to run
  /// in one step so that others find it where they part from it: all of them, but where layers are
  /// recurrent.
  std::int64_t up_to_snapshot(const Holding& holding,
                              std::span<const std::int32_t> ids,
                              std::int64_t length,
                              std::int64_t tokens) const;

  /// The sequence is to have `bytes`, the kept pages that it stands on included.
  Room resize(Holding& holding, std::size_t bytes, StepRecord& record);

  /// The sequence needs no more than `bytes`, counted as resize() counts. REQUIRES: it has them.
  void shrink(Holding& holding, std::size_t bytes);

  /// The sequence has come to `length` positions: what it has filled is kept.
  void fill(Holding& holding,
            std::uint64_t sequence,
            std::span<const std::int32_t> ids,
            std::int64_t length);

  /// The sequence is gone, or gives up what it has.
  void end(Holding& holding);

  /// Begins a record: with what is to be kept, and what makes way for that.
  void begin_record(StepRecord& record);

  /// Whether the group has to be told that nothing is kept any more. REQUIRES, to forget: no
  /// sequence is there.
  void forget_all();

  bool has_news() const { return forget_all_; }

  /// Of sequences, kept pages included that these stand on; of kept pages that none stands on.
  std::size_t used_bytes() const { return held_ + (index_ ? index_->used_full_bytes() : 0); }

  std::size_t idle_bytes() const { return index_ ? index_->idle_bytes() : 0; }

 private:
  bool make_room(StepRecord& record);
  void set(Holding& holding, std::size_t bytes);
  std::size_t beside_path(const Holding& holding, std::size_t bytes) const;
  bool over() const;

  StateLayout layout_;
  std::size_t limit_;
  std::optional<PrefixIndex> index_;
  std::size_t held_ = 0;  // all Holding::bytes
  std::size_t most_used_ = 0;
  bool forget_all_ = false;
  std::vector<KeepOrder> keeps_;  // for the next record
};

}  // namespace ferry
