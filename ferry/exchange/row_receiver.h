// Dispatch, the receiving side: all messages first, since a row's place is a prefix sum over what
// all ranks send; then the rows, copied to where experts want them, or only pointed at. Rows that
// came for a whole host are passed on by a signal: neighbours read them where they lie.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "ferry/exchange/dispatch_message.h"
#include "ferry/expert_rows.h"

namespace ferry {

/// Owns the rows that experts read. Used by steps, but for rows() and offsets.
class RowReceiver {
 public:
  RowReceiver(LaneState& lane, PeerLink& link, DispatchMessages& messages, DataPlane& plane);

  /// Everything but the rows: what all ranks send, and where it will stand.
  void receive_messages();
  /// Brings the rows of `home` to their places.
  void take(Rank home);
  /// Writes counts and offsets of all rows to where rows() shows them: where steps run later, into
  /// memory that the caller does not see yet. Else rows() shows the plan's own.
  void publish();

  /// What experts get, but for `out`: all slots with the counts and offsets published last.
  ExpertRows rows() const;

  /// Whether everything that receive_messages() and take() wait for is here; never blocks.
  bool arrived();

  /// Bytes of memory for experts' input, for `mem_size`.
  static std::size_t memory_bytes(const DispatcherOptions& options, const ExchangeLayout& layout);

 private:
  void bring(Rank home);
  ArrivedRows rows_from(Rank home) const;
  void copy(Rank home, const ArrivedRows& rows);
  void point_at_nothing(Rank home);
  void pass_on(Rank home);
  void pass_on_what_arrived();
  bool rows_arrived(Rank home);

  bool points() const { return lane_.options.exchange.format == DispatchFormat::row_pointers; }

  LaneState& lane_;
  PeerLink& link_;
  DispatchMessages& messages_;
  DataPlane& plane_;
  std::unique_ptr<PlaneMemory> input_;        // [expert_rows] unless rows are only pointed at
  std::unique_ptr<PlaneMemory> pointers_;     // [expert_rows] in that format
  std::unique_ptr<PlaneMemory> weights_;      // f32 [expert_rows] with that option
  std::unique_ptr<PlaneMemory> offsets_;      // i64 [L] that experts see,
  std::unique_ptr<PlaneMemory> counts_;       // and i32 [L]
  std::unique_ptr<PlaneMemory> no_row_;       // pointed at where a masked rank's never came
  std::vector<std::uint64_t> passed_;         // [R] exchange whose rows were last passed on
  std::vector<std::uint64_t> rows_expected_;  // [R] cumulative pushed rows
  std::size_t arriving_bytes_ = 0;            // of experts' rows, in this exchange
  bool own_rows_taken_ = false;               // before the other ranks' messages were there
};

}  // namespace ferry
